"""The same DPO run through TRL's own trainer: for architectures that the native engine refuses, and as its oracle.

TRL knows no weights of pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from hone.errors import ConfigError
from training.adapter import peft_config
from training.fit import Task
from training.pairs import Row, TokenPair, encode_pairs
from training.result import TrainResult
from training.spec import RunSpec
from training.trl_engine import arguments, run_trainer

FIGURES = {"margin": "rewards/margins", "accuracy": "rewards/accuracies", "chosen_logps": "logps/chosen"}
"""Ours -> TRL's names."""


def train(task: Task) -> TrainResult:
    """Train with `DPOTrainer`.

    Raises:
        ConfigError: pairs have weights other than 1.
    """
    pairs, dropped = encode_pairs(task.rows, task.tokenizer, task.spec.max_length)
    if any(pair.weight != 1.0 for pair in pairs):
        raise ConfigError('engine = "trl" knows no weights of pairs, and some differ from 1: use engine = "native"')

    def figures(logs: Mapping[str, float]) -> dict[str, float]:
        # TRL logs no reference figures: the implicit reward of the chosen answers gives them back.
        reference = logs["logps/chosen"] - logs["rewards/chosen"] / task.spec.beta
        known = {name: logs[theirs] for name, theirs in FIGURES.items()}
        return {"loss": logs["loss"], **known, "reference_chosen_logps": reference}

    return run_trainer(make_trainer(task, pairs), task, figures, dropped)


def make_trainer(task: Task, pairs: Sequence[TokenPair]) -> Any:
    """Return TRL's trainer; the reference is the model without its adapter, or for `full` a copy of it."""
    torch.manual_seed(task.spec.seed)
    shared = arguments(task)
    dev = encode_pairs(task.dev, task.tokenizer, task.spec.max_length)[0] if "eval_strategy" in shared else []
    return DPOTrainer(
        task.model,
        None,
        DPOConfig(**losses(task.spec), beta=task.spec.beta, max_length=task.spec.max_length, **shared),
        train_dataset=Dataset.from_list([chat_row(pair.row) for pair in pairs]),
        eval_dataset=Dataset.from_list([chat_row(pair.row) for pair in dev]) if dev else None,
        processing_class=task.tokenizer,
        peft_config=peft_config(task.spec),
    )


def losses(spec: RunSpec) -> dict[str, Any]:
    """Return the preference loss and the SFT term in TRL's words."""
    loss = {"loss_type": [spec.preference.loss], "loss_weights": [1.0]}
    if spec.sft_weight > 0:
        loss = {"loss_type": [spec.preference.loss, "sft"], "loss_weights": [1.0, spec.sft_weight]}
    return {**loss, "label_smoothing": spec.preference.label_smoothing}


def chat_row(row: Row) -> dict[str, Any]:
    """Return a pair as TRL reads it."""
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": row["prompt"], **answers}
