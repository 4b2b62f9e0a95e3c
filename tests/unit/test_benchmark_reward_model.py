"""What the reward-model benchmark teaches and tests by, and how it counts."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.reward_model import accuracy, bag_of_words, by_length, describe, read_pairs, reward_model, split


def row(number: int, **fields: Any) -> dict[str, Any]:
    """The chosen answer says "certainly", the rejected one "never"; every second chosen one is the longer."""
    longer = " indeed" * (number % 2)
    plain = {
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "chosen": f"certainly {number}{longer}",
        "rejected": f"never ever {number}",
        "source": "someone/pairs",
        "license": "MIT",
    }
    return {**plain, **fields}


def test_only_permissive_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    rows = [
        row(k, license=license) for k, license in enumerate(("MIT", "CC-BY-NC-4.0", "Apache-2.0-repo", "Apache-2.0"))
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)
    assert [one["license"] for one in read_pairs(path)] == ["MIT", "Apache-2.0"]


def test_benchmarks_never_teach_and_no_prompt_is_on_both_sides() -> None:
    rows = [row(k % 100) for k in range(200)] + [row(k, benchmark=True) for k in range(100, 120)]
    train, test = split(rows)
    asked = [{json.dumps(one["prompt"]) for one in side} for side in (train, test)]
    assert not asked[0] & asked[1]
    assert not any(one.get("benchmark") for one in train)
    assert 10 <= len(test) - 20 <= 70


def test_a_tie_is_half_right() -> None:
    assert accuracy(np.array([1.0, -1.0, 0.0, 2.0]))["accuracy"] == pytest.approx(0.625)


def test_all_three_rank_pairs_and_adversarial_ones_are_counted_apart(tmp_path: Path) -> None:
    train = [row(k) for k in range(80)]
    test = [row(k) for k in range(80, 100)]
    test += [row(k, source="x/LLMBar", subset="Adversarial/Manual") for k in range(100, 110)]
    rank, num_taught = reward_model(train, 40, 64, tmp_path)
    assert num_taught == 80
    found = describe({"length": by_length, "bag_of_words": bag_of_words(train), "reward_model": rank}, test)
    assert found["length"]["all"]["num_pairs"] == 30
    assert found["length"]["adversarial"]["num_pairs"] == 10
    assert found["length"]["all"]["accuracy"] < 0.8
    for learnt in ("bag_of_words", "reward_model"):
        assert found[learnt]["all but adversarial"]["accuracy"] > 0.9, learnt
