"""Several runs one after the other, each from what an earlier one made: `python -m training recipe FILE`.

A stage is a spec laid over `METHOD.toml` in the folder above the recipe's. `dataset = "pairs"` names an entry of
`[datasets]`; `@name` is the directory of the model that stage `name` made. No torch here.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from hone.errors import ConfigError
from hone.settings import Settings, read_toml
from training.method_tables import Table
from training.spec import Method, RunSpec, merged, parse
from training.start import run_spec

logger = logging.getLogger(__name__)

Stage = dict[str, Any]


class Recipe(Table):
    """A file of stages."""

    base: str | None = None
    "Where the stages that name no base start from; null: the stable model."
    datasets: dict[str, str] = Field(default_factory=dict)
    "Name -> id or directory."
    stages: tuple[Stage, ...] = Field(min_length=1)
    "Each has a `name` and a `method`; the rest are keys of the spec."


def load_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with overrides laid over it; every stage is a valid spec, and names only earlier ones.

    Raises:
        ConfigError: it is not; names the stage, the key and the remedy.
    """
    recipe = parse(Recipe, merged(read_toml(path), overrides), str(path))
    known: dict[str, str] = {}
    for stage in recipe.stages:
        if not {"name", "method"} <= set(stage):
            raise ConfigError(f"{path}: a stage needs a name and a method, this one has {sorted(stage)}")
        resolve(recipe, stage, known, path)
        known[stage["name"]] = f"(the model of stage {stage['name']})"
    return recipe


def resolve(recipe: Recipe, stage: Stage, made: Mapping[str, str], path: Path) -> RunSpec:
    """Return a stage's spec, with names replaced by what earlier stages made."""
    values = {key: value for key, value in stage.items() if key != "name"}
    dataset = values.get("dataset", "")
    if dataset not in recipe.datasets:
        raise ConfigError(
            f"{path}: stage {stage['name']} reads dataset {dataset!r}, given are {sorted(recipe.datasets)}: "
            f"add --set datasets.{dataset}=ID"
        )
    values["dataset"] = recipe.datasets[dataset]
    values["base"] = replaced(values.get("base", recipe.base), made, path)
    models = values.get("rewards", {}).get("models", {})
    if models:
        found = {replaced(place, made, path): weight for place, weight in models.items()}
        values["rewards"] = {**values["rewards"], "models": found}
    return parse(RunSpec, merged(method_defaults(stage["method"], path), values), f"{path}, stage {stage['name']}")


def method_defaults(method: Method, path: Path) -> dict[str, Any]:
    """Return the method's own file, from the folder above the recipe's."""
    return read_toml(path.resolve().parents[1] / f"{method}.toml")


def replaced(place: str | None, made: Mapping[str, str], path: Path) -> str | None:
    """Return `@name` as the directory that the stage made, and everything else as it is."""
    if place is None or not place.startswith("@"):
        return place
    if place[1:] not in made:
        raise ConfigError(f"{path}: {place} names no earlier stage: earlier are {sorted(made)}")
    return made[place[1:]]


def run_recipe(settings: Settings, path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Do the stages in order and return what became of each; stages that are done are not done again.

    Raises:
        HoneError: a stage cannot start or went wrong; the earlier ones stay.
    """
    recipe = load_recipe(path, overrides)
    made: dict[str, str] = {}
    done = {}
    for stage in recipe.stages:
        logger.info("stage %s: %s", stage["name"], stage["method"])
        found = run_spec(settings, resolve(recipe, stage, made, path))
        made[stage["name"]] = str(Path(found["directory"]) / "model")
        done[stage["name"]] = found
    return done
