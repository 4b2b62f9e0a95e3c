"""Kahneman-Tversky optimisation (arXiv:2402.01306): from single answers that were called good or bad, through TRL."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from hone.errors import ConfigError, NotEnoughData
from training.adapter import peft_config
from training.completions import encode_answers, labels_of, thin
from training.fit import Task
from training.method_tables import Kto
from training.pairs import Row
from training.result import TrainResult
from training.trl_engine import arguments, run_trainer

BAND = (1.0, 4 / 3)
"""Advised ratio of the classes' weights times numbers, good to bad: arXiv:2402.01306, eq. 8."""
TOLERANCE = 0.01


def train_kto(task: Task) -> TrainResult:
    """Return the policy that good and bad answers pull apart.

    Raises:
        NotEnoughData: a class has too few rows.
        ConfigError: the spec's class weights leave the advised band.
    """
    trainer, dropped = make_trainer(task)
    beta = task.spec.beta

    def figures(logs: Mapping[str, float]) -> dict[str, float]:
        # A batch without good (or bad) answers has no such figures.
        found = {"loss": logs["loss"], "kl_estimate": logs.get("kl", 0.0)}
        if "rewards/margins" in logs:
            found["margin"] = logs["rewards/margins"]
        if "logps/chosen" in logs:
            found["chosen_logps"] = logs["logps/chosen"]
            found["reference_chosen_logps"] = logs["logps/chosen"] - logs["rewards/chosen"] / beta
        return found

    return run_trainer(trainer, task, figures, dropped)


def make_trainer(task: Task) -> tuple[Any, dict[str, int]]:
    """Return TRL's trainer, and how many rows were dropped for which reason."""
    spec = task.spec
    rows = labels_of(task.rows)
    kept = thin(rows, spec.seed)
    answers, dropped = encode_answers(kept, task.tokenizer, spec.max_length)
    usable = [answer.row for answer in answers]
    good, bad = class_weights([bool(row["label"]) for row in usable], spec.kto)
    torch.manual_seed(spec.seed)
    # A last batch of one answer would be paired with itself.
    shared = arguments(task)
    dev = (
        [a.row for a in encode_answers(labels_of(task.dev), task.tokenizer, spec.max_length)[0]]
        if ("eval_strategy" in shared)
        else []
    )
    trainer = KTOTrainer(
        task.model,
        None,
        KTOConfig(
            beta=spec.beta,
            max_length=spec.max_length,
            desirable_weight=good,
            undesirable_weight=bad,
            dataloader_drop_last=True,
            **shared,
        ),
        train_dataset=dataset_of(mixed(usable, spec.seed)),
        eval_dataset=dataset_of(dev) if dev else None,
        processing_class=task.tokenizer,
        peft_config=peft_config(spec),
    )
    return trainer, {"by_weight": len(rows) - len(kept), **dropped}


def class_weights(labels: Sequence[bool], kto: Kto) -> tuple[float, float]:
    """Return the weights of good and bad answers: the spec's, else such that both classes weigh the same.

    Raises:
        NotEnoughData: a class has fewer than `min_rows` rows.
        ConfigError: the spec's weights leave the advised band.
    """
    num_good = sum(labels)
    num_bad = len(labels) - num_good
    if min(num_good, num_bad) < kto.min_rows:
        raise NotEnoughData(
            f"{num_good} good and {num_bad} bad answers, needs {kto.min_rows} of each: wait for more, "
            "or lower kto.min_rows"
        )
    good, bad = kto.desirable_weight, kto.undesirable_weight
    if good is None:
        good = max(1.0, num_bad / num_good) if bad is None else bad * num_bad / num_good
    if bad is None:
        bad = good * num_good / num_bad
    ratio = good * num_good / (bad * num_bad)
    low, high = BAND
    if not low - TOLERANCE <= ratio <= high + TOLERANCE:
        raise ConfigError(
            f"kto weights {good:g} and {bad:g} with {num_good} good and {num_bad} bad answers weigh the classes "
            f"{ratio:.2f} to 1, advised is {low:.2f} to {high:.2f}: take the weights out, they are then computed"
        )
    return good, bad


def mixed(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows in a random order: a batch's mismatched answers are those of its neighbours."""
    return random.Random(seed).sample(list(rows), len(rows))


def dataset_of(rows: Sequence[Row]) -> Dataset:
    """Return the rows as TRL reads them."""
    return Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                "completion": [{"role": "assistant", "content": row["completion"]}],
                "label": bool(row["label"]),
            }
            for row in rows
        ]
    )
