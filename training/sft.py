"""Supervised fine-tuning: the model learns to write people's corrected answers, through TRL.

The loss counts answer tokens only, the end token included. With packing several conversations share a row; positions
start anew in each, by which attention keeps them apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.adapter import peft_config
from training.completions import TokenAnswer, answers_of, encode_answers, thin
from training.fit import Task
from training.result import TrainResult
from training.trl_engine import arguments, run_trainer

NOT_TRAINED = -100
"""Label of a token that the loss leaves out."""


def train_sft(task: Task) -> TrainResult:
    """Return the model that imitates the rows' answers. Raises like `fit`."""
    trainer, dropped = make_trainer(task)
    return run_trainer(trainer, task, figures, dropped)


def make_trainer(task: Task) -> tuple[Any, dict[str, int]]:
    """Return TRL's trainer on the rows, and how many rows were dropped for which reason."""
    spec = task.spec
    rows = answers_of(task.rows)
    kept = thin(rows, spec.seed)
    answers, dropped = encode_answers(kept, task.tokenizer, spec.max_length)
    shared = arguments(task)
    dev = answers_of(task.dev) if "eval_strategy" in shared else []
    trainer = SFTTrainer(
        task.model,
        SFTConfig(max_length=spec.max_length, packing=spec.sft.packing, eval_packing=False, **shared),
        train_dataset=dataset_of(answers),
        eval_dataset=dataset_of(encode_answers(dev, task.tokenizer, spec.max_length)[0]) if dev else None,
        processing_class=task.tokenizer,
        peft_config=peft_config(spec),
    )
    return trainer, {"by_weight": len(rows) - len(kept), **dropped}


def dataset_of(answers: Sequence[TokenAnswer]) -> Dataset:
    """Return the token ids that were checked, and which of them the loss counts."""
    return Dataset.from_dict(
        {
            "input_ids": [[*a.prompt, *a.answer] for a in answers],
            "labels": [[NOT_TRAINED] * len(a.prompt) + list(a.answer) for a in answers],
        }
    )


def figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Return one step's figures."""
    return {"loss": logs["loss"], "token_accuracy": logs["mean_token_accuracy"]}
