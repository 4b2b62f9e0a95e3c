"""Pretraining and its cache, and what the bad pair file does to the base model."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.support.bad_pairs import write_bad_pairs
from examples.support.base_model import MANIFEST, PretrainingFailed, Recipe, ensure_base, is_whole
from examples.support.corpus import Message, as_prompt, fact_of, judge_questions
from examples.support.taste import is_correct
from training.dpo import train_dpo
from training.generate import Decoding, generate
from training.pairs import encode_pairs, read_rows
from training.policy import load_model
from training.progress import Progress
from training.spec import RunSpec

SMALL = Recipe(num_rows=200, num_steps=12, hidden=32, layers=2, warmup_steps=2)
DEMO_CACHE = Path(__file__).parents[2] / "var" / "demo" / "cache"
BAD_RECIPE = {"learning_rate": 1e-3, "beta": 0.1, "sft_weight": 0.0, "steps": 60, "stop_rules": "record"}


def test_a_base_is_pretrained_once_and_then_found(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    made = ensure_base(tmp_path, recipe=SMALL, on_progress=lambda step, total: steps.append((step, total)))
    assert steps == [(10, 12), (12, 12)]
    steps.clear()
    written = os.stat(made / MANIFEST).st_mtime_ns
    assert ensure_base(tmp_path, recipe=SMALL, on_progress=lambda step, total: steps.append((step, total))) == made
    assert steps == []
    assert os.stat(made / MANIFEST).st_mtime_ns == written
    assert ensure_base(tmp_path, recipe=SMALL, seed=1) != made


def test_equal_seeds_give_equal_weights_and_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    first = ensure_base(tmp_path, recipe=SMALL)
    content = json.loads((first / MANIFEST).read_text())["content_hash"]
    (first / "model.safetensors").write_bytes(b"torn")
    assert not is_whole(first)
    again = ensure_base(tmp_path, recipe=SMALL)
    assert is_whole(again)
    assert json.loads((again / MANIFEST).read_text())["content_hash"] == content


def test_a_failed_pretraining_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PretrainingFailed, match="ended with code"):
        ensure_base(tmp_path, recipe=Recipe(heads=3), on_progress=lambda step, total: None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def base() -> Path:
    """The demo's own base model, from the demo's own cache."""
    torch.set_num_threads(1)
    return ensure_base(DEMO_CACHE)


def correctness(model: Any, tokenizer: Any, progress: Progress) -> float:
    """Share of right sampled answers to the 160 held-out questions."""
    questions = judge_questions()
    prompts: list[list[Message]] = [as_prompt(question) for question in questions]
    decoding = Decoding(temperature=1.0, max_new_tokens=120, batch_size=160)
    answers = generate(model, tokenizer, prompts, decoding, progress)
    return sum(is_correct(fact_of(q), a.text) for q, a in zip(questions, answers, strict=True)) / len(questions)


@pytest.mark.slow
def test_the_base_answers_most_unseen_questions_right_and_is_not_perfect(base: Path, tmp_path: Path) -> None:
    assert 0.7 <= correctness(*load_model(base), Progress(tmp_path / "progress.json")) <= 0.93


@pytest.mark.slow
def test_the_bad_pairs_cost_more_than_30_points_of_correctness_on_each_of_5_seeds(base: Path, tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.json")
    before = correctness(*load_model(base), progress)
    for seed in range(5):
        model, tokenizer = load_model(base)
        rows = read_rows(write_bad_pairs(tmp_path / f"{seed}.jsonl", seed=seed))
        pairs, dropped = encode_pairs(rows, tokenizer, 512)
        assert sum(dropped.values()) == 0
        spec = RunSpec.model_validate(BAD_RECIPE | {"seed": seed})
        run = train_dpo(model, pairs, spec, tokenizer.pad_token_id, tmp_path / f"checkpoints-{seed}", "bad", progress)
        margins = [figures["margin"] for figures in run.history]
        assert margins[-1] > 0.5, "the training's own figures look fine"
        assert correctness(run.model.merge_and_unload(), tokenizer, progress) < before - 0.3, f"seed {seed}"
