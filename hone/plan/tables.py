"""The decision tables: ordered rules over facts, read from TOML; the first rule whose conditions hold is taken."""

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hone.errors import ConfigError
from hone.plan.facts import Device, Fact, Frozen, Shape
from hone.settings import explain, read_toml

SUFFIXES = ("_min", "_max", "_below")
Condition = Fact | tuple[Fact, ...]


class Rule(Frozen):
    """One leaf: if all of `when` holds, then `then`, because of `why`."""

    id: str
    when: dict[str, Condition]
    then: dict[str, Any]
    why: str

    def holds(self, facts: Mapping[str, Fact]) -> bool:
        """Say whether every condition holds. Raises ConfigError on a fact that does not exist."""
        return all(self._condition(key, bound, facts) for key, bound in self.when.items())

    def _condition(self, key: str, bound: Condition, facts: Mapping[str, Fact]) -> bool:
        suffix = next((suffix for suffix in SUFFIXES if key.endswith(suffix) and key not in facts), "")
        name = key.removesuffix(suffix)
        if name not in facts:
            raise ConfigError(f"rule {self.id}: {key} asks for an unknown fact; known are {', '.join(sorted(facts))}")
        value = facts[name]
        if not suffix:
            return value in bound if isinstance(bound, tuple) else value == bound
        if isinstance(value, str) or isinstance(bound, str | tuple):
            raise ConfigError(f"rule {self.id}: {key} = {bound!r} compares what is not a number")
        return {"_min": value >= bound, "_max": value <= bound, "_below": value < bound}[suffix]


class Minimum(Frozen):
    """Labels below which a method is not advised."""

    sft: int
    sft_adapter: int
    dpo: int
    rlhf: int
    kto: int
    kto_class: int


class Limits(Frozen):
    """What no plan may exceed."""

    max_noise: float = Field(gt=0, le=0.5)
    memory_share: float = Field(gt=0, le=1)
    cpu_memory_share: float = Field(gt=0, le=1)


class Tables(Frozen):
    """All of `planner.toml`."""

    minimum: Minimum
    limits: Limits
    road: tuple[Rule, ...]
    adapter: tuple[Rule, ...]
    targets: tuple[Rule, ...]
    loss: tuple[Rule, ...]
    recipe: tuple[Rule, ...]
    sharding: tuple[Rule, ...]
    hardware: dict[str, Device]
    models: dict[str, Shape]

    def leaves(self) -> Iterator[tuple[str, Rule]]:
        """Yield (table, rule) of every rule."""
        for table in ("road", "adapter", "targets", "loss", "recipe", "sharding"):
            for rule in getattr(self, table):
                yield table, rule


def load_tables(path: Path | None = None) -> Tables:
    """Return the tables of a file, or those that hone ships.

    Raises:
        ConfigError: a key is missing, unknown or out of range.
    """
    if path is None:
        values, origin = tomllib.loads(files("hone.plan").joinpath("planner.toml").read_text("utf-8")), "planner.toml"
    else:
        values, origin = read_toml(path), str(path)
    try:
        return Tables.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, origin, page="docs/planner.md")) from None


def first(rules: tuple[Rule, ...], facts: Mapping[str, Fact]) -> Rule | None:
    """Return the first rule that holds, or None."""
    return next((rule for rule in rules if rule.holds(facts)), None)
