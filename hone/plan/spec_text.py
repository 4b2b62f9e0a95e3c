"""Writes the stages of a plan as specs (TOML) that `python -m training run` and `hone train --spec` take."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hone.plan.decide import Plan, Stage
from hone.plan.fit import OWN_ENGINE, SAMPLING, Fit

LAUNCHERS = {"none": "local", "ddp": "accelerate", "zero2": "accelerate", "fsdp2": "accelerate", "zero3": "accelerate"}
SHARDED = ("zero2", "fsdp2", "zero3")
"""Where no process holds the whole model."""
CPU_THREADS = 1
"""Weights are bit-identical for one number of threads only, and small models gain nothing from more."""


def spec_paths(plan: Plan, path: Path) -> list[Path]:
    """Return one path for each stage: `path` itself, or `NAME-1-sft.toml`, `NAME-2-dpo.toml`, … beside it."""
    if len(plan.stages) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}-{stage.method}{path.suffix}") for k, stage in enumerate(plan.stages, 1)]


def spec_texts(plan: Plan) -> list[str]:
    """Return the TOML of each stage of a plan that fits, with the reasons as comments."""
    return [stage_text(plan, stage, stage.fit) for stage in plan.stages if stage.fit]


def stage_text(plan: Plan, stage: Stage, fit: Fit) -> str:
    """Return one stage's TOML."""
    comments = [f"# {what}: {why}" for what, why in stage.why]
    gigabytes = fit.memory.total / 1e9
    comments.append(f"# planned for {plan.question.hardware.name}: at most {gigabytes:.1f} GB on each device")
    top, tables = stage_values(plan, stage, fit)
    lines = [*comments, *toml_lines(top)]
    for name, values in tables.items():
        lines += ["", f"[{name}]", *toml_lines(values)]
    return "\n".join(lines) + "\n"


def stage_values(plan: Plan, stage: Stage, fit: Fit) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the top level and the tables of a stage's spec."""
    has_gpu = plan.question.hardware.gpus > 0
    top: dict[str, Any] = {
        "method": stage.method,
        "adapter": stage.adapter,
        "precision": fit.setup.precision,
        "learning_rate": stage.learning_rate,
        "epochs": stage.epochs,
        "batch_size": fit.batch,
        "max_length": fit.setup.tokens,
        "gradient_checkpointing": fit.setup.checkpointing,
        "launcher": LAUNCHERS.get(fit.setup.sharding, "accelerate"),
        "threads": CPU_THREADS,
    }
    if stage.method == "dpo" and fit.setup.sharding in SHARDED:
        top["engine"] = "trl"
    if fit.accumulation > 1 and stage.method not in OWN_ENGINE and (has_gpu or stage.method != "dpo"):
        top["micro_batch_size"] = fit.labels_per_device
    tables: dict[str, dict[str, Any]] = {}
    if fit.setup.sharding in LAUNCHERS and fit.setup.world > 1:
        tables["launch"] = {"processes": fit.setup.world, "sharding": fit.setup.sharding}
    if stage.adapter != "full":
        targets = stage.targets if isinstance(stage.targets, str) else list(stage.targets)
        tables["lora"] = {"rank": stage.rank, "alpha": 2 * stage.rank, "targets": targets}
    if stage.method == "dpo":
        tables["preference"] = {"loss": stage.loss}
        if stage.label_smoothing:
            tables["preference"]["label_smoothing"] = round(stage.label_smoothing, 3)
    if stage.method == "ppo":
        tables["ppo"] = {"minibatch_size": max(2, fit.labels_per_device)}
    if stage.method in SAMPLING:
        # The directory of the reward model's run is known only once it is trained.
        tables["rewards.models"] = {"reward_model": 1.0}
    return top, tables


def toml_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield `key = value`; JSON's texts, numbers, truth values and lists are TOML's too."""
    for key, value in values.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
