"""What a trained policy makes of the dev rows: numbers to choose a recipe by. Gates have their own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hone.errors import NotEnoughData
from training.completions import answers_of, encode_answers, labels_of
from training.pairs import Row, read_rows
from training.policy import answer_logps, on_device

BATCH = 32

Model = tuple[Any, Any]
"""A model and its tokenizer."""


def measure_dev(data: Path, policy: Model, base: Any, max_length: int) -> dict[str, float]:
    """Return what can be measured on `dev.jsonl`; nothing without rows that have answers.

    `loss`: nats a token of the good answers. `accuracy`: how often the implicit reward, log-probability under the
    policy minus that under the base (arXiv:2305.18290, section 4), ranks a good answer above a bad one; of pairs the
    two of each pair, by weight, of thumbs every good one against every bad one.
    """
    rows = read_rows(data / "dev.jsonl")
    if not any("chosen" in row or "completion" in row for row in rows):
        return {}
    logps, lengths, kept = score(policy, rows, max_length)
    good = np.array([bool(row["label"]) for row in kept])
    found = {"num_rows": float(len(rows))}
    if good.any():
        found["loss"] = float(-logps[good].sum() / lengths[good].sum())
    if not good.all():
        reference, _, _ = score((base, policy[1]), rows, max_length)
        found |= accuracy(kept, logps - reference)
    return found


@torch.inference_mode()
def score(policy: Model, rows: Sequence[Row], max_length: int) -> tuple[Any, Any, list[Row]]:
    """Return log-probability and tokens of each answer, good and bad, and its row with `label` and `pair`."""
    model, tokenizer = policy
    numbered = [{**row, "pair": number} for number, row in enumerate(rows)]
    singles = labels_of(numbered) if any("chosen" in row or "label" in row for row in rows) else answers_of(numbered)
    try:
        answers, _ = encode_answers([{"label": True, **row} for row in singles], tokenizer, max_length)
    except NotEnoughData:
        answers = []
    logps: list[float] = []
    with on_device(model):
        for at in range(0, len(answers), BATCH):
            part = [(a.prompt, a.answer) for a in answers[at : at + BATCH]]
            logps += answer_logps(model, part, tokenizer.pad_token_id).tolist()
    return np.array(logps), np.array([len(a.answer) for a in answers]), [a.row for a in answers]


def accuracy(rows: Sequence[Row], reward: Any) -> dict[str, float]:
    """Return the share of comparisons that the rewards decide as people did; nothing where there is none."""
    pairs = list(of_pairs(rows, reward) if "chosen" in rows[0] else of_thumbs(rows, reward))
    total = sum(weight for _, weight in pairs)
    won = sum((float(np.sign(gap)) / 2 + 0.5) * weight for gap, weight in pairs)
    return {"accuracy": won / total, "num_comparisons": float(len(pairs))} if total else {}


def of_pairs(rows: Sequence[Row], reward: Any) -> Iterator[tuple[float, float]]:
    """Yield (reward of the chosen answer minus that of the rejected one, weight) of pairs that were kept whole."""
    found: dict[tuple[int, bool], float] = {
        (row["pair"], row["label"]): float(value) for row, value in zip(rows, reward, strict=True)
    }
    for row in rows:
        if row["label"] and (row["pair"], False) in found:
            yield found[row["pair"], True] - found[row["pair"], False], float(row.get("weight", 1.0))


def of_thumbs(rows: Sequence[Row], reward: Any) -> Iterator[tuple[float, float]]:
    """Yield (reward of a good answer minus that of a bad one, 1) of every such two."""
    good = [float(value) for row, value in zip(rows, reward, strict=True) if row["label"]]
    bad = [float(value) for row, value in zip(rows, reward, strict=True) if not row["label"]]
    yield from ((one - other, 1.0) for one in good for other in bad)
