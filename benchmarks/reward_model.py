"""A small reward model on real pairs, beside rules that cost nothing: `python -m benchmarks.reward_model --json`.

Rows of `../shared/data` whose licence is MIT, Apache-2.0 or CC-BY-4.0. People's pairs that are no published benchmark
teach (80 % of their prompts); the rest of them, and the benchmarks, test. LLMBar's adversarial pairs are made so that
surface quality points the wrong way: their accuracy stands apart.
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Target, report, say

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "preference_pairs.jsonl.gz"
LICENCES = frozenset({"MIT", "Apache-2.0", "CC-BY-4.0"})
HELD_OUT = 0.2
SEED = 0
VOCABULARY = 4096
Row = dict[str, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ranker = Callable[[Sequence[Row]], Floats]
"""Score of the chosen answer minus score of the rejected one."""


def read_pairs(path: Path) -> list[Row]:
    """Return the permissive rows."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["license"] in LICENCES]


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return what teaches and what tests: a prompt is on one side only, a benchmark always on the second."""
    train: list[Row] = []
    test: list[Row] = []
    for row in rows:
        is_held_out = zlib.crc32(json.dumps(row["prompt"]).encode()) / 2**32 < HELD_OUT
        side = test if row.get("benchmark") or row.get("eval_only") or is_held_out else train
        side.append(row)
    return train, test


def slice_of(row: Row) -> str:
    """Return the name under which a test row is counted."""
    if "LLMBar" in row["source"]:
        return "adversarial" if str(row.get("subset", "")).startswith("Adversarial") else "LLMBar natural"
    return str(row["source"]).split()[0]


def by_length(rows: Sequence[Row]) -> Floats:
    """The longer answer is the better."""
    return np.array([float(len(row["chosen"]) - len(row["rejected"])) for row in rows])


def bag_of_words(train: Sequence[Row]) -> Ranker:
    """Return the product's own judge, fitted on the training pairs."""
    from training.judge import BagOfWords, Preference

    judge = BagOfWords([Preference(str(k), str(k), r["chosen"], r["rejected"], 1.0) for k, r in enumerate(train)])

    def rank(rows: Sequence[Row]) -> Floats:
        gaps: Floats = judge.scores([row["chosen"] for row in rows]) - judge.scores([row["rejected"] for row in rows])
        return gaps

    return rank


def reward_model(train: Sequence[Row], steps: int, max_length: int, scratch: Path) -> tuple[Ranker, int]:
    """Return a transformer that was trained from nothing on the pairs, and how many were short enough to teach it."""
    import torch

    from benchmarks.learning_runs import Silent
    from examples.support.chat_model import build_model, save_model, train_tokenizer
    from training.fit import Task
    from training.policy import load_model
    from training.reward_model import train_reward_models
    from training.reward_set import load_objectives
    from training.spec import RunSpec

    torch.set_num_threads(1)
    tokenizer = train_tokenizer((row[side] for row in train for side in ("chosen", "rejected")), vocab_size=VOCABULARY)
    save_model(
        build_model(tokenizer, hidden=128, layers=2, heads=4, max_length=4096, seed=SEED), tokenizer, scratch / "base"
    )
    spec = RunSpec.model_validate(
        {
            "method": "reward_model",
            "adapter": "full",
            "learning_rate": 3e-4,
            "warmup_steps": 10,
            "batch_size": 16,
            "steps": steps,
            "max_length": max_length,
            "checkpoint_steps": 100_000,
            "reward": {"min_accuracy": 0.5},
            "seed": SEED,
        }
    )
    task = Task(*load_model(scratch / "base"), list(train), [], spec, scratch, "r-bench", Silent())
    result, _ = train_reward_models(task, scratch / "model")
    (objective,) = load_objectives(scratch / "model").values()

    def rank(rows: Sequence[Row]) -> Floats:
        prompts = [row["prompt"] for row in rows]
        chosen, rejected = (objective(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
        gaps: Floats = np.array(chosen) - np.array(rejected)
        return gaps

    return rank, len(train) - sum(result.dropped.values())


def accuracy(gaps: Floats) -> dict[str, float]:
    """Return the share of pairs that are ranked as people did (ties count half) with its standard error."""
    hits = (gaps > 0) + 0.5 * (gaps == 0)
    return {
        "accuracy": float(hits.mean()),
        "error": float(hits.std() / len(hits) ** 0.5),
        "num_pairs": float(len(hits)),
    }


def describe(rankers: dict[str, Ranker], test: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return each ranker's accuracy on all test rows, on those that are not adversarial, and by slice."""
    slices: dict[str, list[int]] = {"all": list(range(len(test)))}
    for k, row in enumerate(test):
        slices.setdefault(slice_of(row), []).append(k)
    slices["all but adversarial"] = [k for k in slices["all"] if slice_of(test[k]) != "adversarial"]
    found = {}
    for name, rank in rankers.items():
        gaps = rank(test)
        found[name] = {place: accuracy(gaps[indices]) for place, indices in slices.items()}
        say(f"{name}: " + ", ".join(f"{place} {figures['accuracy']:.3f}" for place, figures in found[name].items()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--full", action="store_true", help="longer answers and ten times the steps")
    parser.add_argument("--data", type=Path, default=DATA, help="preference_pairs.jsonl.gz")
    arguments = parser.parse_args()
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    if not arguments.data.exists():
        say(f"{arguments.data} is not there: name the data pack's file with --data")
        return 2
    train, test = split(read_pairs(arguments.data))
    steps, max_length = (1500, 1024) if arguments.full else (150, 256)
    with tempfile.TemporaryDirectory() as scratch:
        rank, num_taught = reward_model(train, steps, max_length, Path(scratch))
        rankers = {"length": by_length, "bag_of_words": bag_of_words(train), "reward_model": rank}
        figures = describe(rankers, test)
    reference = max(figures[name]["all"]["accuracy"] for name in ("length", "bag_of_words"))
    targets = {
        "reward_model_over_best_baseline": Target(figures["reward_model"]["all"]["accuracy"] - reference, ">", 0.0),
        "reward_model_adversarial": Target(figures["reward_model"]["adversarial"]["accuracy"], ">", 0.5),
    }
    return report({**figures, "num_train": len(train), "num_taught": num_taught}, targets, seeds=[SEED])


if __name__ == "__main__":
    sys.exit(main())
