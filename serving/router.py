"""Which model answers whom. Pure but for `Router`, which holds the plan in force and remembers break-glass on disk."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

import msgspec

from hone.errors import Conflict
from hone.records import Track, TrafficPlan

MIN_DUEL_WEIGHT = 0.25
"""Canary weight from which duels are allowed: below it hardly anybody sees one, and the canary is still unproven."""


class Decision(msgspec.Struct, frozen=True):
    """Who answers. `fallback` is the version that answers if this one fails before its first byte."""

    track: Track
    model_version: str
    rollout_id: UUID | None = None
    stage: int | None = None
    propensity: float = 1.0
    fallback: str | None = None
    duel: bool = False
    "The lot gave this regenerate to the arm that is not the user's own."
    shadow: str | None = None
    "The version that gets a copy of the request, whose answer nobody sees."


@dataclass(frozen=True)
class Regenerate:
    """A turn that is asked for again: its id, and who gave its first answer, under which rollout."""

    turn_id: UUID
    rollout_id: UUID
    track: Track


def bucket(key: bytes, rollout_id: UUID, unit: UUID, purpose: bytes = b"arm") -> float:
    """Return the fixed place in [0, 1) of a user (or, for duels, of a turn) within a rollout.

    Another rollout shuffles everyone anew; without `key` nobody can work out the place, and so the arm.
    """
    digest = hashlib.blake2b(rollout_id.bytes + unit.bytes, key=key[:64], digest_size=8, person=purpose).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def route(
    plan: TrafficPlan,
    user: UUID,
    *,
    key: bytes,
    broken: frozenset[UUID],
    now: datetime,
    again: Regenerate | None = None,
) -> Decision:
    """Return the decision for one request.

    A user whom the canary answers keeps it while the weight grows. A plan past its time, and a rollout whose glass
    was broken, serve stable only and outside of any rollout; where the canary is the former stable model, broken glass
    goes back to it. `again` is set for the first regenerate of a turn.
    """
    if plan.reverse and plan.canary is not None and plan.rollout_id in broken:
        return Decision(Track.STABLE, plan.canary)
    if plan.rollout_id is None or plan.canary is None or plan.rollout_id in broken or plan.expires_at <= now:
        return Decision(Track.STABLE, plan.stable)
    track = Track.CANARY if bucket(key, plan.rollout_id, user) < plan.canary_weight else Track.STABLE
    if again is not None and (again.rollout_id, again.track) == (plan.rollout_id, track):
        chance = duel_chance(plan, track)
        if bucket(key, plan.rollout_id, again.turn_id, b"duel") < chance:
            return answered_by(plan, other(track), chance, duel=True)
    return answered_by(plan, track, plan.canary_weight if track is Track.CANARY else 1.0 - plan.canary_weight)


def duel_chance(plan: TrafficPlan, own: Track) -> float:
    """Return the chance that the other arm gets the first regenerate of a user whose arm is `own`.

    Both orders are equally frequent, (1 - w) p_stable = w p_canary, and the rarer arm's chance is `duel_share`. So the
    canary answers exactly its weight w of these regenerates too, and never more than the stage allows.
    """
    weight = plan.canary_weight
    if weight < MIN_DUEL_WEIGHT or weight >= 1.0:
        return 0.0
    odds = weight / (1.0 - weight)
    return plan.duel_share * min(1.0, odds if own is Track.STABLE else 1.0 / odds)


def other(track: Track) -> Track:
    """Return the other arm."""
    return Track.STABLE if track is Track.CANARY else Track.CANARY


def answered_by(plan: TrafficPlan, track: Track, propensity: float, *, duel: bool = False) -> Decision:
    """Return the decision for this arm; the canary falls back to stable, stable's requests may be copied to it."""
    is_canary = track is Track.CANARY
    return Decision(
        track,
        (plan.canary if is_canary else None) or plan.stable,
        plan.rollout_id,
        plan.stage,
        propensity,
        fallback=plan.stable if is_canary else None,
        duel=duel,
        shadow=plan.canary if plan.shadow and not is_canary else None,
    )


def canary_weight(plan: TrafficPlan | None, *, broken: frozenset[UUID], now: datetime) -> float:
    """Return the weight that is in force, after expiry and break-glass."""
    if plan is None or plan.canary is None or plan.expires_at <= now or plan.rollout_id in broken:
        return 0.0
    return plan.canary_weight


def check_plan(plan: TrafficPlan) -> None:
    """Raise ValueError, naming field, value and remedy, if the plan contradicts itself."""
    if not 0.0 <= plan.canary_weight <= 1.0:
        raise ValueError(f"canary_weight = {plan.canary_weight} is not a share: send 0 to 1")
    if not 0.0 <= plan.duel_share <= 1.0:
        raise ValueError(f"duel_share = {plan.duel_share} is not a share: send 0 to 1")
    if (plan.canary_weight > 0 or plan.shadow) and (plan.canary is None or plan.rollout_id is None):
        raise ValueError("canary or rollout_id is missing: a plan with canary traffic or shadow names both")
    if plan.expires_at.tzinfo is None:
        raise ValueError(f"expires_at = {plan.expires_at.isoformat()} has no zone: send UTC with a Z")


@dataclass
class Router:
    """The plan in force, the rollouts whose glass was broken, and how many answers each track gave.

    Break-glass needs neither database nor metrics: it is kept in `broken_glass_file` and wins over every plan.
    """

    broken_glass_file: Path
    key: bytes
    "Secret of the draws, the same in every gateway."
    plan: TrafficPlan | None = None
    taken_at: datetime | None = None
    broken: frozenset[UUID] = frozenset()
    served: Counter[Track] = field(default_factory=Counter)

    def take(self, plan: TrafficPlan, now: datetime) -> None:
        """Put the plan in force.

        Raises:
            ValueError: it contradicts itself.
            Conflict: its fence is smaller than that of the plan in force: somebody newer speaks already.
        """
        check_plan(plan)
        if self.plan is not None and plan.fence < self.plan.fence:
            raise Conflict(f"fence {plan.fence} is older than {self.plan.fence}, which is in force: stop sending plans")
        self.plan, self.taken_at = plan, now

    def decide(self, user: UUID, now: datetime, again: Regenerate | None = None) -> Decision | None:
        """Return who answers this user, or None while no stable model is known."""
        if self.plan is None:
            return None
        return route(self.plan, user, key=self.key, broken=self.broken, now=now, again=again)

    def holds_duels(self) -> bool:
        """Say whether the plan asks for duels."""
        return self.plan is not None and self.plan.duel_share > 0

    def weight(self, now: datetime) -> float:
        """Return the canary's weight in force."""
        return canary_weight(self.plan, broken=self.broken, now=now)

    def break_glass(self, rollout_id: UUID) -> None:
        """Take all traffic from this rollout's canary, at once and for ever; on disk before it returns."""
        self.broken |= {rollout_id}
        write_ids(self.broken_glass_file, self.broken)


def open_router(var_dir: Path, key: bytes, stable: str | None, now: datetime) -> Router:
    """Return a router that serves `stable` alone until a plan comes, and knows the glass broken in earlier lives."""
    file = var_dir / "broken_glass.json"
    broken = msgspec.json.decode(file.read_bytes(), type=frozenset[UUID]) if file.exists() else frozenset()
    plan = TrafficPlan(fence=-1, stable=stable, expires_at=now) if stable else None
    return Router(file, key, plan, now if plan else None, broken)


def write_ids(file: Path, ids: frozenset[UUID]) -> None:
    """Replace the file's content by these ids, surviving a crash at any moment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    with fresh.open("wb") as stream:
        stream.write(msgspec.json.encode(sorted(ids)))
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
