"""What is measured of challenger and champion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hone.errors import ConfigError
from tests.support.tiny_model import make_tiny_model
from tests.support.training import make_job, row, write_rows
from training.evaluate import (
    Check,
    compare,
    distinct_2,
    evaluate,
    measure_preference,
    read_checks,
    read_exam,
    repeated_share,
    sit_exam,
)
from training.generate import Answer, Decoding, generate
from training.policy import load_model
from training.progress import Progress


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


def answer(text: str, ended: bool = True) -> Answer:
    return Answer(text, len(text.split()), ended)


def job_with_people(directory: Path, base: Path, **splits: list[dict[str, Any]]) -> Any:
    for split, rows in splits.items():
        write_rows(directory / "people" / f"{split}.jsonl", rows)
    checks = [{"prompt": "Where is it?", "must_contain": ["page"]}, {"prompt": row(30)["prompt"], "must_contain": []}]
    golden = write_rows(directory / "golden.jsonl", checks)
    fields = {"evaluation_data": directory / "people", "golden_tests": golden}
    return make_job(directory, base, [row(k) for k in range(3)], job=fields)


def test_prompts_near_those_trained_on_are_neither_asked_nor_counted(base: Path, tmp_path: Path) -> None:
    loud = row(1, prompt=[{"role": "user", "content": row(1)["prompt"][0]["content"].upper()}])
    job = job_with_people(tmp_path, base, test=[loud, row(5), row(6)], dev=[row(2), row(7)])
    exam = read_exam(job)
    asked = [prompt[0]["content"] for prompt in exam.prompts]
    assert asked == [row(k)["prompt"][0]["content"] for k in (5, 6, 7)] + [
        "Where is it?",
        row(30)["prompt"][0]["content"],
    ]
    assert [r["user_id"] for r in exam.held_out] == [row(k)["user_id"] for k in (5, 6, 7)]
    assert len(exam.people) == 5


def test_a_model_against_itself_ties_everywhere(base: Path, tmp_path: Path) -> None:
    """The same seeds and weights write the same answers, so every comparison is a draw."""
    people = {"test": [row(k) for k in range(5, 10)], "train": [row(k) for k in range(100, 170)]}
    job = job_with_people(tmp_path, base, **people)
    measured = evaluate(job, load_model(base), load_model(base), Progress(tmp_path / "p.json"))
    assert measured["held_out_preference"]["accuracy"] == 0.5
    assert measured["win_rate"]["win_rate"] == 0.5
    assert measured["win_rate"]["num_answers"] == 12
    assert measured["forgetting"]["change"] == 0
    assert measured["degenerate"]["repeat_excess"] == 0
    assert measured["degenerate"]["length"] == measured["degenerate"]["champion_length"]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 6 + 2


def test_without_peoples_pairs_nothing_is_claimed(base: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, base, [row(0)])
    measured = evaluate(job, load_model(base), load_model(base), Progress(tmp_path / "p.json"))
    assert measured["held_out_preference"] == {"num_pairs": 0}
    assert measured["win_rate"] == {"num_prompts": 0, "num_answers": 0}
    assert measured["forgetting"] == {"num_checks": 0}
    assert measured["degenerate"] == {"num_answers": 0}


def test_the_implicit_reward_follows_the_difference_of_both_models(base: Path, other: Path, tmp_path: Path) -> None:
    """Swapping chosen and rejected, or challenger and champion, turns every hit into a miss."""
    job = make_job(tmp_path, base, [row(0)])
    exam = read_exam(job)
    progress = Progress(tmp_path / "p.json")
    new, old = (sit_exam(*load_model(path), exam, job, progress, "x") for path in (other, base))
    rows = [row(k) for k in range(5, 25)]
    swapped = [row(k, chosen=row(k)["rejected"], rejected=row(k)["chosen"]) for k in range(5, 25)]
    hits = measure_preference(rows, new, old, job)["accuracy"]
    assert 0 < hits < 1
    assert measure_preference(swapped, new, old, job)["accuracy"] == pytest.approx(1 - hits)
    assert measure_preference(rows, old, new, job)["accuracy"] == pytest.approx(1 - hits)


def test_answers_do_not_depend_on_the_batch_they_are_written_in(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(base)
    prompts = [row(k)["prompt"] for k in (0, 40, 3)]
    whole = generate(model, tokenizer, prompts, Decoding(0.0, 10, 8), Progress(tmp_path / "p.json"))
    single = generate(model, tokenizer, prompts, Decoding(0.0, 10, 1), Progress(tmp_path / "p.json"))
    assert [a.text for a in whole] == [a.text for a in single]
    assert all(a.num_tokens <= 10 for a in whole)


def test_every_answer_meets_every_one_to_the_same_prompt() -> None:
    scores = np.array([3.0, 1.0, 2.0, 1.0])
    assert compare(scores, [100, 100, 100, 500]) == (2.5, 4.0, 1.0, 2.0)


def test_an_answer_for_all_prompts_is_noticed() -> None:
    varied = [[answer(f"unlike {k}"), answer(f"other {k}")] for k in range(10)]
    same = [[answer("Same!"), answer(f"other {k}")] for k in range(5)] + varied[5:]
    assert repeated_share(varied).mean() == pytest.approx(0.05)
    assert repeated_share(same).mean() == pytest.approx(0.25)


def test_loops_lower_the_share_of_distinct_word_pairs() -> None:
    assert distinct_2("open the page and press the button") == 1.0
    assert distinct_2("the page the page the page the page") < 0.3
    assert distinct_2("word") == 1.0


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        pytest.param(answer("Open the Billing page."), True, id="right and whole"),
        pytest.param(answer("Open the page."), False, id="a string is missing"),
        pytest.param(answer("Open the Billing page or Orders."), False, id="a forbidden string"),
        pytest.param(answer("Open the Billing page", ended=False), False, id="cut off"),
    ],
)
def test_a_check_passes_for_a_right_and_whole_answer(given: Answer, passes: bool) -> None:
    assert Check([], ("Billing page",), ("Orders",)).passes(given) is passes


def test_a_bad_or_missing_file_of_checks_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "golden.jsonl", [{"prompt": "a", "must_contain": ["b"]}, {"prompt": "a"}])
    with pytest.raises(ConfigError, match=r"golden\.jsonl line 2"):
        read_checks(path)
    with pytest.raises(ConfigError, match="is missing"):
        read_checks(tmp_path / "none.jsonl")
