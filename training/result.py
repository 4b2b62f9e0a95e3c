"""What every method hands back."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainResult:
    """A trained model (adapter not merged yet) and what happened on the way."""

    model: Any
    history: list[dict[str, float]] = field(default_factory=list)
    "One entry a step."
    fired: dict[str, int] = field(default_factory=dict)
    "Stop rule -> the step (from 1) after which it first fired."
    best_step: int | None = None
    "Of the checkpoint that was taken, where held-out rows decided."
    dropped: dict[str, int] = field(default_factory=dict)
    "Reason -> rows that were left out."
