"""Reward models: a score for an answer, learnt from pairs (arXiv:2203.02155), through TRL.

Each objective has a model of its own, since one with several outputs cannot be trained on pairs. The scores are put on
one scale (mean 0, deviation 1 over the pairs that were learnt from) and summed with the objectives' weights.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from hone.errors import NotEnoughData, ProgramFailed
from training.adapter import peft_config
from training.checkpoint import publish
from training.fit import Task
from training.pairs import Row, TokenPair, encode_pairs
from training.precision import base_dtype, is_rounded
from training.quantized import load_quantized, onto
from training.result import TrainResult
from training.reward_set import REWARDS, score_ids
from training.spec import RunSpec
from training.trl_engine import arguments, run_trainer

logger = logging.getLogger(__name__)

HEAD = "score"
"""The module that turns a hidden state into a score: trained whole, and saved with the adapter."""
ONLY = "reward"
"""Name of the one model where the spec names no objectives."""
MIN_DEVIATION = 1e-4
SCORES_COMPARED = 64
"""Pairs whose scores before and after merging are set beside each other, where the base was rounded for training."""
RELOAD_TOLERANCE = 1e-3

Report = dict[str, dict[str, float]]


def train_reward_models(task: Task, target: Path) -> tuple[TrainResult, Report]:
    """Leave one model for each objective and `rewards.json` in `target`, which appears complete or not at all.

    The result's history is that of all models, one after the other.

    Raises:
        NotEnoughData: an objective has no pairs.
        ProgramFailed: a model collapsed, or scores otherwise once it is reloaded.
    """
    weights = task.spec.reward.objectives or {ONLY: 1.0}
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    whole, report, described = TrainResult(None), {}, {}
    for name, weight in weights.items():
        part = replace(
            task,
            rows=rows_about(task.rows, name, task.spec),
            dev=rows_about(task.dev, name, task.spec),
            directory=task.directory / "objectives" / name,
        )
        task.progress.part = f"{name}/" if len(weights) > 1 else ""
        result, model = train_one(part, name)
        report[name] = measured = measure(model, part, name) | rounding_of(result.model, model, part)
        described[name] = {"weight": weight, "mean": measured["mean"], "deviation": measured["deviation"]}
        export(model, part, scratch / name)
        whole.history += result.history
        whole.fired |= {f"{name}: {rule}": step for rule, step in result.fired.items()}
        whole.dropped |= {f"{name}: {reason}": number for reason, number in result.dropped.items()}
    (scratch / REWARDS).write_text(json.dumps(described, indent=1))
    publish(scratch, target)
    return whole, report


def rows_about(rows: Sequence[Row], name: str, spec: RunSpec) -> list[Row]:
    """Return the rows of an objective; without objectives, all."""
    return [row for row in rows if not spec.reward.objectives or row.get("objective") == name]


def train_one(task: Task, name: str) -> tuple[TrainResult, Any]:
    """Return what happened, and the model with its adapter merged."""
    if not task.rows:
        raise NotEnoughData(f"no row names the objective {name!r}: rows carry it as `objective`")
    pairs, dropped = encode_pairs(task.rows, task.tokenizer, task.spec.max_length)
    torch.manual_seed(task.spec.seed)  # the head is drawn when the model is loaded
    model = load_scorer(task, is_rounded=True)
    shared = arguments(task)
    dev = encode_pairs(task.dev, task.tokenizer, task.spec.max_length)[0] if "eval_strategy" in shared else []
    trainer = RewardTrainer(
        model,
        RewardConfig(max_length=task.spec.max_length, center_rewards_coefficient=task.spec.reward.center, **shared),
        train_dataset=dataset_of(pairs, task.spec),
        eval_dataset=dataset_of(dev, task.spec) if dev else None,
        processing_class=task.tokenizer,
        peft_config=peft_config(task.spec, task="SEQ_CLS", heads=(HEAD,)),
    )
    result = run_trainer(trainer, task, figures, dropped)
    trained = result.model
    if is_rounded(task.spec):
        trained = onto(load_scorer(task, is_rounded=False), trained)
    return result, trained.merge_and_unload() if hasattr(trained, "merge_and_unload") else trained


def load_scorer(task: Task, *, is_rounded: bool) -> Any:
    """Return the base with a head of one output, drawn anew: in 4 bits or bf16 as it is trained, or in fp32."""
    if is_rounded and task.spec.adapter == "qlora":
        return load_quantized(task.model.name_or_path, task.spec, AutoModelForSequenceClassification, num_labels=1)
    dtype = base_dtype(task.spec) if is_rounded else torch.float32
    return AutoModelForSequenceClassification.from_pretrained(
        task.model.name_or_path, num_labels=1, local_files_only=True, dtype=dtype
    )


def dataset_of(pairs: Sequence[TokenPair], spec: RunSpec) -> Dataset:
    """Return both sequences of each pair, and by how much the chosen one must win: more for surer labels."""
    columns: dict[str, list[Any]] = {
        "chosen_ids": [[*pair.prompt, *pair.chosen] for pair in pairs],
        "rejected_ids": [[*pair.prompt, *pair.rejected] for pair in pairs],
    }
    if spec.reward.margin:
        columns["margin"] = [spec.reward.margin * pair.weight for pair in pairs]
    return Dataset.from_dict(columns)


def figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Return one step's figures."""
    return {"loss": logs["loss"], "accuracy": logs["accuracy"], "reward": logs["mean_reward"]}


def measure(model: Any, task: Task, name: str) -> dict[str, float]:
    """Return how often the model ranks pairs as people did, beside the rule that the longer answer is the better.

    Raises:
        ProgramFailed: it gives every answer about the same score, or is hardly better than chance.
    """
    spec, pad = task.spec, task.tokenizer.pad_token_id
    learnt, _ = encode_pairs(task.rows, task.tokenizer, spec.max_length)
    held_out = encode_pairs(task.dev, task.tokenizer, spec.max_length)[0] if task.dev else []
    is_held_out = len(held_out) >= spec.reward.min_held_out
    judged = held_out if is_held_out else learnt
    chosen, rejected = scores_of(model, judged, pad)
    scores = np.concatenate(scores_of(model, learnt, pad))
    longer = np.array([len(pair.chosen) - len(pair.rejected) for pair in judged])
    found = {
        "accuracy": float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean()),
        "length_accuracy": float(((longer > 0) + 0.5 * (longer == 0)).mean()),
        "num_pairs": float(len(judged)),
        "held_out": float(is_held_out),
        "mean": float(scores.mean()),
        "deviation": float(scores.std()),
    }
    if found["deviation"] < MIN_DEVIATION or found["accuracy"] < spec.reward.min_accuracy:
        raise ProgramFailed(
            f"the reward model {name!r} has collapsed: it ranks {found['accuracy']:.3f} of {len(judged)} pairs as "
            f"people did (needs {spec.reward.min_accuracy}) and its scores deviate by {found['deviation']:.5f}: "
            "train longer, raise learning_rate, or look at the labels"
        )
    return found


def rounding_of(trained: Any, served: Any, task: Task) -> dict[str, float]:
    """Return by how much the scores of trained and served model differ, in deviations, where the base was rounded."""
    if not is_rounded(task.spec):
        return {}
    pairs, _ = encode_pairs(task.rows[:SCORES_COMPARED], task.tokenizer, task.spec.max_length)
    ours, theirs = (np.concatenate(scores_of(model, pairs, task.tokenizer.pad_token_id)) for model in (trained, served))
    return {"rounding": float(np.abs(ours - theirs).mean() / theirs.std())}


def scores_of(model: Any, pairs: Sequence[TokenPair], pad: int) -> tuple[Any, Any]:
    """Return the scores of chosen and rejected answers, one number a pair."""
    chosen = score_ids(model, [[*pair.prompt, *pair.chosen] for pair in pairs], pad)
    rejected = score_ids(model, [[*pair.prompt, *pair.rejected] for pair in pairs], pad)
    return np.array(chosen), np.array(rejected)


def export(model: Any, task: Task, target: Path) -> None:
    """Write the merged model and read it again. Raises ProgramFailed where it then scores otherwise: a lost head."""
    model.save_pretrained(target, max_shard_size=round(task.spec.max_shard_gb * 1e9))
    task.tokenizer.save_pretrained(target)
    pairs, _ = encode_pairs(task.rows[:4], task.tokenizer, task.spec.max_length)
    reloaded = AutoModelForSequenceClassification.from_pretrained(target, local_files_only=True, dtype=torch.float32)
    pad = task.tokenizer.pad_token_id
    before, after = (np.concatenate(scores_of(found, pairs, pad)) for found in (model, reloaded.eval()))
    gap = float(np.abs(before - after).max())
    if not gap < RELOAD_TOLERANCE * max(1.0, float(np.abs(before).max())):
        raise ProgramFailed(f"the reloaded reward model's scores differ by {gap:.5f}: its head was not saved")
