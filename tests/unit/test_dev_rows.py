"""What a policy makes of dev rows: by hand, and on the tiny model."""

from pathlib import Path

import pytest

from tests.support.training import row, write_rows
from training.dev_rows import accuracy, measure_dev
from training.policy import answer_logps, load_model


def test_pairs_count_by_their_weight_and_a_tie_is_half() -> None:
    rows = [
        {"chosen": "a", "pair": 0, "label": True, "weight": 3.0},
        {"chosen": "a", "pair": 0, "label": False, "weight": 3.0},
        {"chosen": "b", "pair": 1, "label": True},
        {"chosen": "b", "pair": 1, "label": False},
        {"chosen": "c", "pair": 2, "label": True},
    ]
    found = accuracy(rows, [1.0, 0.0, 2.0, 2.0, 9.0])
    assert found == {"accuracy": (3.0 + 0.5) / 4.0, "num_comparisons": 2}, "the third lost its other side"


def test_thumbs_are_compared_every_good_one_with_every_bad_one() -> None:
    rows = [{"label": True, "pair": k} for k in range(2)] + [{"label": False, "pair": k} for k in range(2, 4)]
    assert accuracy(rows, [1.0, 3.0, 2.0, 0.0]) == {"accuracy": 0.75, "num_comparisons": 4}


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        pytest.param({}, {"num_rows", "loss", "accuracy", "num_comparisons"}, id="pairs"),
        pytest.param({"completion": "Open it."}, {"num_rows", "loss"}, id="demonstrations"),
    ],
)
def test_a_policy_that_is_its_base_decides_nothing(
    tiny_base: Path, tmp_path: Path, fields: dict[str, str], keys: set[str]
) -> None:
    policy = load_model(tiny_base)
    rows = [row(k) for k in range(3)]
    if fields:
        rows = [{"prompt": one["prompt"], **fields} for one in rows]
    write_rows(tmp_path / "dev.jsonl", rows)
    found = measure_dev(tmp_path, policy, policy[0], 256)
    assert set(found) == keys
    assert found.get("accuracy", 0.5) == 0.5
    tokenizer = policy[1]
    answer = fields.get("completion") or rows[0]["chosen"]
    chat = [*rows[0]["prompt"], {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(rows[0]["prompt"], tokenize=True, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    write_rows(tmp_path / "one" / "dev.jsonl", rows[:1])
    alone = measure_dev(tmp_path / "one", policy, policy[0], 256)["loss"]
    logp = answer_logps(policy[0], [(prompt, whole[len(prompt) :])], tokenizer.pad_token_id)[0]
    assert alone == pytest.approx(-float(logp.detach()) / (len(whole) - len(prompt)), rel=1e-5)


def test_prompts_and_no_rows_measure_nothing(tiny_base: Path, tmp_path: Path) -> None:
    policy = load_model(tiny_base)
    assert measure_dev(tmp_path, policy, policy[0], 256) == {}
    write_rows(tmp_path / "dev.jsonl", [{"prompt": row(0)["prompt"]}])
    assert measure_dev(tmp_path, policy, policy[0], 256) == {}
