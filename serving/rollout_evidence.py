"""What a verdict rests on: a rollout as it stands, and what was found about it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from hone.rollout import ArmHealth, Phase


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout as it stands; `stage_started_at` is when its last transition was made."""

    rollout_id: UUID
    phase: Phase
    stage: int
    weight: float
    epoch: int
    reason: str
    "Of the last transition."
    created_at: datetime
    stage_started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a verdict rests on."""

    num_pairs: int
    log_up: float
    log_down: float
    canary_users: tuple[int, ...]
    "Rated canary users by stage."
    sample_ratio_log_e: float
    propensity_log_e: float
    health: Mapping[str, ArmHealth]
    ready: bool
    "The canary (while promoting: the new stable) is loaded."
    unready_s: float
    in_force: bool
    "Every router was seen to follow the plan of this epoch."
    withdrawn: bool
    "No router can send this canary traffic any more."
    held: bool = False
    "Frozen, or observe-only: nothing moves forward."
    broken_glass: bool = False
    stable_moved: bool = False
    "`stable` is no longer the version that the rollout compares with."
    guards: Mapping[str, float] = field(default_factory=dict)
    "Log e-value of each guarded measure, by what people read when it fires."
    approved: bool = False
    "A person let it meet traffic."
    drift_looks: int = 0
    "Looks in a row that found a router on another plan than the one that was sent to it."
    silent_s: float = 0.0
    "Since the newest rated user was closed, or the last transition made, whichever is later."


def age_s(rollout: Rollout, now: datetime) -> float:
    """Return the seconds since the rollout began, or was approved."""
    return (now - rollout.created_at).total_seconds()


def seconds_in_phase(rollout: Rollout, now: datetime) -> float:
    """Return how long ago the last transition was."""
    return (now - rollout.stage_started_at).total_seconds()


def e_value(log_e: float) -> str:
    """Return evidence as people read it; 20 is the line at alpha 0.05."""
    return f"{math.exp(min(log_e, 700.0)):.3g}"
