"""One way to train: `fit(task)` finds the method's code by method and engine, and imports only that."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hone.errors import ConfigError
from training.distributed import native_obstacle, world
from training.pairs import Row
from training.progress import Progress
from training.result import TrainResult
from training.spec import Engine, Method, RunSpec

TRAINERS: dict[tuple[Method, Engine], str] = {
    ("sft", "trl"): "training.sft:train_sft",
    ("dpo", "native"): "training.preference:train",
    ("dpo", "trl"): "training.trl_dpo:train",
    ("kto", "trl"): "training.kto:train_kto",
    ("ppo", "native"): "training.ppo:train_ppo",
    ("rloo", "trl"): "training.online:train_rloo",
    ("grpo", "trl"): "training.online:train_grpo",
}
"""`module:function`, takes a `Task` and returns a `TrainResult`. For reward models see `training.reward_model`."""


@dataclass(frozen=True)
class Task:
    """All that a method may use. Nothing else decides the weights."""

    model: Any
    "The base, in fp32; frozen or not as the method likes."
    tokenizer: Any
    rows: list[Row]
    dev: list[Row]
    "Held-out rows that a method may choose its checkpoint by."
    spec: RunSpec
    directory: Path
    "Of the run: a method keeps its checkpoints below it."
    run_id: str
    progress: Progress


def fit(task: Task) -> TrainResult:
    """Return the trained model, going on from the newest whole checkpoint of this run.

    Raises:
        ConfigError: base, data and spec do not fit together.
        NotEnoughData: nothing is left to train on.
        ProgramFailed: training went wrong.
    """
    if problem := native_obstacle(task.spec, world()):
        raise ConfigError(problem)
    module, _, function = TRAINERS[task.spec.method, task.spec.engine].partition(":")
    result: TrainResult = getattr(import_module(module), function)(task)
    return result
