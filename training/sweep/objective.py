"""What a sweep looks for: a number of the run's own evaluation on rows that it did not learn from, and which way."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from hone.errors import ConfigError
from training.spec import Method, RunSpec
from training.sweep.table import Sweep

Direction = Literal["maximize", "minimize"]


class Objective(NamedTuple):
    """Where the number stands in a run's evaluation.json, and whether more is better."""

    name: str
    path: str
    direction: Direction
    meaning: str
    needs_dev: bool = True

    def better(self, one: float, other: float) -> bool:
        """Say whether `one` is the better value."""
        return one > other if self.direction == "maximize" else one < other


OBJECTIVES = {
    "dev_accuracy": Objective(
        "dev_accuracy", "dev.accuracy", "maximize", "share of dev comparisons that the policy decides as people did"
    ),
    "dev_loss": Objective("dev_loss", "dev.loss", "minimize", "nats a token of the dev rows' good answers"),
    "reward_accuracy": Objective(
        "reward_accuracy",
        "measured.*.accuracy",
        "maximize",
        "share of dev pairs that the reward model ranks as people did",
    ),
    "held_out_signal": Objective(
        "held_out_signal",
        "training.last_step.held_out",
        "maximize",
        "rewards.held_out at the last step, which nobody is rewarded for",
        needs_dev=False,
    ),
}
DEFAULTS: dict[Method, str] = {
    "sft": "dev_loss",
    "reward_model": "reward_accuracy",
    "dpo": "dev_accuracy",
    "kto": "dev_accuracy",
    "ppo": "held_out_signal",
    "rloo": "held_out_signal",
    "grpo": "held_out_signal",
}


def objective_of(sweep: Sweep, spec: RunSpec) -> Objective:
    """Return what the sweep looks for.

    Raises:
        ConfigError: it is neither a known name nor a path with a direction, or the spec measures no such thing.
    """
    name = sweep.objective or DEFAULTS[sweep.method]
    if name not in OBJECTIVES and ("." not in name or sweep.direction is None):
        raise ConfigError(
            f"objective = {name!r} is none of {', '.join(OBJECTIVES)}: name one, or the path of a number in "
            'evaluation.json, such as "measured.degenerate.distinct_2", with its direction'
        )
    if name == "held_out_signal" and not spec.rewards.held_out:
        raise ConfigError(
            "objective held_out_signal needs rewards.held_out, a function that the policy is not rewarded for: set it, "
            "or name another objective; the reward itself is what is trained on"
        )
    found = OBJECTIVES.get(name) or Objective(name, name, sweep.direction or "maximize", name, needs_dev=False)
    return found if sweep.direction is None else found._replace(direction=sweep.direction)


def value_of(report: Mapping[str, Any], objective: Objective) -> float:
    """Return the number; of several (`*`) the mean. Raises ConfigError where the run did not measure it."""
    found = numbers(report, objective.path.split("."))
    if not found:
        raise ConfigError(
            f"the run measured no {objective.path}, the objective {objective.name}: its dev rows lack what is needed, "
            "or the path is wrong; name another objective"
        )
    return sum(found) / len(found)


def numbers(value: Any, keys: list[str]) -> list[float]:
    """Return all numbers under the keys; `*` stands for every key."""
    if not keys:
        return [float(value)] if isinstance(value, int | float) else []
    if not isinstance(value, Mapping):
        return []
    below = list(value.values()) if keys[0] == "*" else [value[keys[0]]] if keys[0] in value else []
    return [number for one in below for number in numbers(one, keys[1:])]
