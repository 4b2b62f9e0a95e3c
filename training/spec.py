"""The one description of a training run: TOML for people, resolved JSON stored with the run. No torch here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hone.errors import ConfigError
from hone.gates import Thresholds, load_thresholds
from hone.settings import explain, read_toml
from training.bootstrap import Bootstrap


class Table(BaseModel):
    """A table of the spec; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Table):
    """The adapter that is trained and then merged (arXiv:2106.09685)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    targets: str | tuple[str, ...] = "all-linear"


class StopRules(Table):
    """When a run is going wrong. Each rule looks at means over the last `window` steps."""

    window: int = Field(10, ge=1)
    max_chosen_drop: float = Field(0.5, gt=0)
    "Fall of the chosen answers' log-probability below the reference's, relative to it (likelihood displacement)."
    max_margin: float = Field(15.0, gt=0)
    "Mean implicit reward margin; beyond it the policy has left the reference behind."


class Evaluation(Table):
    """How challenger and champion are compared after training."""

    num_prompts: int = Field(200, ge=1)
    num_samples: int = Field(3, ge=1)
    "Sampled answers to each prompt, of each model."
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(160, ge=1)
    batch_size: int = Field(256, ge=1)
    num_bootstraps: int = Field(1000, ge=100)
    confidence: float = Field(0.95, ge=0.8, lt=1)
    "Of the two-sided intervals that the gates look at."
    num_folds: int = Field(5, ge=2)
    "Folds of people among which the judge is cross-fitted."

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are made."""
        return Bootstrap(self.num_bootstraps, self.confidence)


class RunSpec(Table):
    """Everything that decides the weights and the evaluation of a run, besides dataset and base."""

    method: Literal["dpo"] = "dpo"
    engine: Literal["native", "trl"] = "native"
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    beta: float = Field(0.1, gt=0)
    sft_weight: float = Field(0.3, ge=0)
    steps: int | None = Field(None, ge=1)
    "Optimiser steps; null: `epochs` passes over the training rows."
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    max_length: int = Field(1024, ge=8)
    "Tokens of prompt and answer; longer pairs are dropped and counted, never cut."
    max_grad_norm: float = Field(1.0, gt=0)
    seed: int = 0
    threads: int = Field(1, ge=1)
    checkpoint_steps: int = Field(20, ge=1)
    stop_rules: Literal["stop", "record"] = "stop"
    "`record` goes on training after a rule fired; either way the gates see it."
    lora: Lora = Lora()
    stop: StopRules = StopRules()
    evaluation: Evaluation = Evaluation()
    gates: dict[str, float] = Field(default_factory=dict)
    "Thresholds that differ from the defaults, see docs/gates.md."

    @property
    def thresholds(self) -> Thresholds:
        """The bounds that the gates use."""
        return load_thresholds(self.gates)


class Job(Table):
    """One run on this machine: the spec and where things are. Written to `job.json` in the run's directory."""

    run_id: str
    spec: RunSpec
    base_version: str
    base_directory: Path
    directory: Path
    "Holds `data/{train,dev,test}.jsonl`, and takes checkpoints, the model and `evaluation.json`."
    evaluation_data: Path | None = None
    "Directory of people's pairs that judge the answers; null: nobody's, so these gates are inconclusive."
    golden_tests: Path | None = None
    general_prompts: Path | None = None


def load_spec(path: Path, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """Return the spec of a TOML file with a request's overrides laid over it, table by table.

    Raises:
        ConfigError: a key is unknown or a value out of range; names key, value and remedy.
    """
    return parse(RunSpec, merged(read_toml(path), overrides or {}), str(path))


def load_job(path: Path) -> Job:
    """Return the job of a JSON file. Raises ConfigError like `load_spec`."""
    try:
        return parse(Job, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read job {path}: {error}") from None


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` laid over it; tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in overrides.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


T = TypeVar("T", bound=Table)


def parse(table: type[T], values: Mapping[str, Any], origin: str) -> T:
    """Return the table. Raises ConfigError with one line for each wrong key."""
    try:
        found = table.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, origin)) from None
    if isinstance(found, RunSpec):
        load_thresholds(found.gates)
    return found
