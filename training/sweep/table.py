"""The file of a sweep: what is varied, what is measured, and how many trials there may be. No torch here."""

import json
import random
from collections.abc import Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hone.errors import ConfigError
from hone.settings import read_toml
from training.method_tables import Table
from training.spec import Method, RunSpec, merged, parse

Level = bool | int | float | str
Params = dict[str, Level]
"""Key of the spec, such as `lora.rank` -> its level; of a list, its JSON."""

DEFAULT_TRIALS = 20
NOT_VARIED = ("method", "base", "dataset", "launcher", "launch", "threads", "report_to")
"""What decides where a run happens, or on what: trials would not be comparable."""


class Factor(Table):
    """What one key of the spec may be: a list of values, or a range."""

    values: tuple[Any, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    "Two whole numbers are a range of whole numbers."
    log: bool = False
    "A range is searched by factors, as learning rates are."

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.values) == (self.low is not None and self.high is not None):
            raise ValueError("needs either values = [...], or low and high")
        if self.low is not None and self.high is not None and not (0 if self.log else self.low) < self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g} are no range")
        if self.log and not (self.low or 0) > 0:
            raise ValueError("log = true needs low > 0")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        """Values as they are stored: lists as JSON."""
        return tuple(v if isinstance(v, Level) else json.dumps(v) for v in self.values)

    @property
    def is_whole(self) -> bool:
        """Whether a range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def read(self, level: Level) -> Any:
        """Return a level as the spec has it."""
        return self.values[self.levels.index(level)] if self.values else level


class Sweep(Table):
    """A sweep: trials of one method that differ in the levels of some keys only."""

    method: Method = "dpo"
    spec: dict[str, Any] = Field(default_factory=dict)
    "Keys laid over METHOD.toml for every trial; steps or epochs among them are the budget of each."
    space: dict[str, Factor] = Field(min_length=1)
    objective: str | None = None
    "A name of `training.sweep.objective`, or the path of a number in evaluation.json; null: the method's own."
    direction: Literal["maximize", "minimize"] | None = None
    "Needed where the objective is a path."
    trials: int | None = Field(None, ge=1)
    "Null: the whole grid, or 20."
    max_hours: float | None = Field(None, gt=0)
    "No trial is begun that would go beyond it."
    repeats: int = Field(1, ge=1)
    "Runs of each trial, with seeds one after the other; the mean counts."
    sampler: Literal["auto", "grid", "random", "tpe"] = "auto"
    "`auto`: the grid where it has no more points than there may be trials, else tpe."
    prune: bool = False
    "Stop a trial whose dev loss is above the median of the others at that step; needs spec.stop.patience."
    seed: int = 0

    @property
    def grid_size(self) -> int | None:
        """Points of the grid; None where a factor is a range."""
        sizes = [len(factor.values) for factor in self.space.values()]
        return prod(sizes) if all(sizes) else None

    @property
    def num_trials(self) -> int:
        """Trials that there may be at most."""
        size = self.grid_size
        if self.trials is None:
            return size or DEFAULT_TRIALS
        return min(self.trials, size) if size else self.trials

    @property
    def is_grid(self) -> bool:
        """Whether the grid is walked."""
        fits = self.grid_size is not None and self.grid_size <= (self.trials or self.grid_size)
        return self.sampler == "grid" or (self.sampler == "auto" and fits)

    def grid(self) -> list[Params]:
        """Return the grid's points in random order, so that a sweep that is stopped early has seen all levels."""
        names = list(self.space)
        points = product(*(self.space[name].levels for name in names))
        found = [dict(zip(names, point, strict=True)) for point in points]
        return random.Random(self.seed).sample(found, len(found))

    def values_of(self, params: Params) -> dict[str, Any]:
        """Return a trial's levels as nested tables of the spec."""
        found: dict[str, Any] = {}
        for name, level in params.items():
            found = merged(found, nested(name, self.space[name].read(level)))
        return found


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return `a.b` and a value as nested tables."""
    key, _, rest = name.partition(".")
    return {key: nested(rest, value) if rest else value}


def load_sweep(path: Path, overrides: Mapping[str, Any]) -> Sweep:
    """Return the sweep of a TOML file with overrides laid over it. Raises ConfigError: a key is wrong, and which."""
    values = merged(read_toml(path), overrides)
    values["space"] = flat(values.get("space", {}))
    sweep = parse(Sweep, values, str(path))
    if sweep.sampler == "grid" and sweep.grid_size is None:
        ranges = [name for name, factor in sweep.space.items() if not factor.values]
        raise ConfigError(f"{path}: a grid needs a list of values, and {', '.join(ranges)} is a range")
    for name in sweep.space:
        if name.partition(".")[0] in NOT_VARIED:
            raise ConfigError(f"{path}: {name} cannot be varied, only what decides how the same rows are learnt")
    return sweep


def flat(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the space with dotted names; a list stands for its values."""
    found: dict[str, Any] = {}
    for name, value in space.items():
        if isinstance(value, Mapping) and not {"values", "low", "high"} & set(value):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = {"values": value} if isinstance(value, list) else value
    return found


def spec_of_trial(sweep: Sweep, base: Mapping[str, Any], params: Params, repeat: int = 0) -> RunSpec:
    """Return the spec of a trial's run, `base` being that of all trials. Raises ConfigError: levels do not fit."""
    values = merged(base, sweep.values_of(params))
    values["seed"] = values.get("seed", 0) + repeat
    return parse(RunSpec, values, f"the trial {describe(params)}")


def check_levels(sweep: Sweep, base: Mapping[str, Any]) -> None:
    """Raise ConfigError where the spec does not take a level, the other factors being as in `base`."""
    for name, factor in sweep.space.items():
        for level in factor.levels or [end for end in (factor.low, factor.high) if end is not None]:
            parse(RunSpec, merged(base, nested(name, factor.read(level))), f"space.{name} = {level}")


def describe(params: Mapping[str, Level]) -> str:
    """Return a trial's levels in words."""
    return ", ".join(f"{name} {shown(level)}" for name, level in params.items())


def shown(level: Level) -> str:
    """Return a level for people."""
    return f"{level:.3g}" if isinstance(level, float) else str(level)
