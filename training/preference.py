"""The native engine's door: rows in, preference training by `training.dpo`."""

from hone.errors import NotEnoughData
from training.dpo import train_dpo
from training.fit import Task
from training.pairs import encode_pairs
from training.result import TrainResult

REFERENCE_CACHE = ".reference"
"""Beside the runs: they share it."""


def train(task: Task) -> TrainResult:
    """Train on the pairs that can be trained on. Raises like `fit`."""
    pairs, dropped = encode_pairs(task.rows, task.tokenizer, task.spec.max_length)
    if not pairs:
        raise NotEnoughData("there is no pair to train on: freeze a dataset first")
    is_watched = task.spec.stop.patience is not None and bool(task.dev)
    dev = encode_pairs(task.dev, task.tokenizer, task.spec.max_length)[0] if is_watched else []
    pad = task.tokenizer.pad_token_id
    result = train_dpo(
        task.model,
        pairs,
        task.spec,
        pad,
        task.directory / "checkpoints",
        task.run_id,
        task.progress,
        dev=dev,
        cache=task.directory.parent / REFERENCE_CACHE,
    )
    result.dropped = dropped
    return result
