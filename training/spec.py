"""The one description of a training run: TOML for people, resolved JSON stored with the run. No torch here."""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from hone.datasets import Kind
from hone.errors import ConfigError
from hone.gates import Thresholds, load_thresholds
from hone.settings import explain, read_toml
from training.bootstrap import Bootstrap
from training.launch.table import Launch, Launcher
from training.method_tables import Kto, Lora, Ppo, Preference, Replay, Reward, Rewards, Samples, Sft, StopRules, Table

Method = Literal["sft", "reward_model", "dpo", "kto", "ppo", "rloo", "grpo"]
Engine = Literal["native", "trl"]
ReportTo = Literal["tensorboard", "mlflow", "wandb"]

ENGINES: dict[Method, tuple[Engine, ...]] = {
    "sft": ("trl",),
    "reward_model": ("trl",),
    "dpo": ("native", "trl"),
    "kto": ("trl",),
    "ppo": ("native",),
    "rloo": ("trl",),
    "grpo": ("trl",),
}
"""Engines that can do a method; the first is the default."""
KINDS: dict[Method, tuple[Kind, ...]] = {
    "sft": ("demonstrations", "pairs"),
    "reward_model": ("pairs",),
    "dpo": ("pairs",),
    "kto": ("labels", "pairs"),
    "ppo": ("prompts", "pairs", "labels", "demonstrations"),
    "rloo": ("prompts", "pairs", "labels", "demonstrations"),
    "grpo": ("prompts", "pairs", "labels", "demonstrations"),
}
"""Kinds of datasets that a method reads; the first is frozen for it."""
TABLES: dict[str, tuple[Method, ...]] = {
    "replay": ("sft", "dpo", "kto"),
    "preference": ("dpo",),
    "sft": ("sft",),
    "reward": ("reward_model",),
    "kto": ("kto",),
    "samples": ("ppo", "rloo", "grpo"),
    "rewards": ("ppo", "rloo", "grpo"),
    "ppo": ("ppo",),
}
"""Tables that only some methods read."""
MIN_KTO_BATCH = 4
MIN_GROUP = 2


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
    test_only: bool = False
    "Dev rows judge nothing: they have chosen this spec, as those of a sweep do."

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are made."""
        return Bootstrap(self.num_bootstraps, self.confidence)


class RunSpec(Table):
    """Everything that decides the weights and the evaluation of a run, besides the contents of dataset and base."""

    method: Method = "dpo"
    engine: Engine = "native"
    "Default: the first that the method has, see `ENGINES`."
    base: str | None = None
    "Registered version or directory of the model to start from; null: the stable one."
    dataset: str | None = None
    "Id of a frozen dataset, or a directory with train.jsonl, dev.jsonl, test.jsonl."
    tokenizer: Literal["as_served", "any"] = "as_served"
    "`any` lets a base read and write other tokens than the model that serves now."
    adapter: Literal["lora", "qlora", "full"] = "lora"
    export: Literal["merged", "adapter"] = "merged"
    "What is served: whole weights, or the adapter and the name of the base that it lies on."
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    beta: float = Field(0.1, ge=0)
    "Strength of the pull to the reference: DPO, KTO, RLOO, GRPO. (PPO has a table of its own.)"
    sft_weight: float = Field(0.3, ge=0)
    "Weight of the likelihood of chosen answers (DPO)."
    steps: int | None = Field(None, ge=1)
    "Optimiser steps (PPO: batches of samples); null: `epochs` passes over the training rows."
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    "Rows that go through the model at once, gradients added up to `batch_size`; null: all of them."
    gradient_checkpointing: bool = False
    max_length: int = Field(1024, ge=8)
    "Tokens of prompt and answer; longer rows are dropped and counted, never cut."
    max_grad_norm: float = Field(1.0, gt=0)
    seed: int = 0
    threads: int = Field(1, ge=1)
    checkpoint_steps: int = Field(20, ge=1)
    max_shard_gb: float = Field(5.0, gt=0)
    "Weights of a made model beyond so many gigabytes lie in several files."
    stop_rules: Literal["stop", "record"] = "stop"
    "`record` goes on training after a rule fired; either way the gates see it."
    report_to: tuple[ReportTo, ...] = ()
    "Where the curve is shown besides the run's own folder."
    launcher: Launcher = "local"
    launch: Launch = Launch()
    lora: Lora = Lora()
    replay: Replay = Replay()
    preference: Preference = Preference()
    sft: Sft = Sft()
    reward: Reward = Reward()
    kto: Kto = Kto()
    samples: Samples = Samples()
    rewards: Rewards = Rewards()
    ppo: Ppo = Ppo()
    stop: StopRules = StopRules()
    evaluation: Evaluation = Evaluation()
    gates: dict[str, float] = Field(default_factory=dict)
    "Thresholds that differ from the defaults, see docs/gates.md."

    @model_validator(mode="before")
    @classmethod
    def _default_engine(cls, values: Any) -> Any:
        engines = ENGINES.get(values.get("method", "dpo"), ()) if isinstance(values, Mapping) else ()
        return {"engine": engines[0], **values} if engines else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problem := next(chain(self._problems(), self._method_problems()), None):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if self.engine not in ENGINES[self.method]:
            yield f"method {self.method} has no engine {self.engine!r}: use {' or '.join(ENGINES[self.method])}"
        for name, methods in TABLES.items():
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default:
                yield f"method {self.method} does not read [{name}] (for {', '.join(methods)}): take the table out"
        if self.export == "adapter" and (self.adapter == "full" or self.method == "reward_model"):
            yield 'export = "adapter" needs a policy that was trained as one: adapter = "lora" or "qlora"'
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            yield f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}"
        if self.engine == "native" and self.optimizer != "adamw":
            yield f"the native engine has adamw and no {self.optimizer}: take optimizer out"
        if self.adapter == "qlora" and self.launch.sharding in ("fsdp2", "zero3"):
            yield f'weights in 4 bits are not split by {self.launch.sharding}: set sharding = "zero2" or "ddp"'

    def _method_problems(self) -> Iterator[str]:
        if self.micro_batch_size and self.method == "ppo":
            yield "PPO goes through [ppo] minibatch_size rows at once: take micro_batch_size out"
        if self.method == "dpo" and self.beta == 0:
            yield "beta = 0 leaves nothing of a preference: use 0.05 to 0.5"
        if self.method == "kto" and (self.micro_batch_size or self.batch_size) < MIN_KTO_BATCH:
            yield f"KTO pairs the answers of a batch with each other: batches of {MIN_KTO_BATCH} or more"
        if self.method in TABLES["samples"] and self.batch_size % self.samples.per_prompt:
            yield f"batch_size {self.batch_size} is no multiple of samples.per_prompt {self.samples.per_prompt}"
        if self.method in ("rloo", "grpo") and self.samples.per_prompt < MIN_GROUP:
            yield f"{self.method} compares the answers to one prompt: set samples.per_prompt to {MIN_GROUP} or more"

    @property
    def thresholds(self) -> Thresholds:
        """The bounds that the gates use."""
        return load_thresholds(self.gates)


def needs_bitsandbytes(spec: RunSpec) -> bool:
    """Say whether a run uses the package of the extra `qlora`."""
    return spec.adapter == "qlora" or spec.optimizer == "adamw_8bit"


class Job(Table):
    """One run on this machine: the spec and where things are. Written to `job.json` in the run's directory."""

    run_id: str
    spec: RunSpec
    base_version: str
    base_directory: Path
    served_version: str | None = None
    served_directory: Path | None = None
    "Of the model that serves now: its tokenizer must be the base's."
    directory: Path
    "Holds `data/{train,dev,test}.jsonl`, and takes checkpoints, the model and `evaluation.json`."
    evaluation_data: Path | None = None
    "Directory of people's pairs that judge the answers; null: nobody's, so these gates are inconclusive."
    golden_tests: Path | None = None
    general_prompts: Path | None = None
    replay: dict[str, Any] = Field(default_factory=dict)
    "What was mixed into the training rows, and where nothing was, why; see training/mix.py."


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
        raise ConfigError(explain(error, origin, known=keys_of(table), page="docs/training.md")) from None
    if isinstance(found, RunSpec):
        load_thresholds(found.gates)
    return found


def keys_of(table: type[BaseModel]) -> list[str]:
    """Return every key of a table and of the tables in it."""
    found = list(table.model_fields)
    for field in table.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys_of(field.annotation)
    return found
