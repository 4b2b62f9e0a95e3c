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


@dataclass(frozen=True)
class Decision:
    """Who answers. `fallback` is the version that answers if this one fails before its first byte."""

    track: Track
    model_version: str
    rollout_id: UUID | None = None
    stage: int | None = None
    propensity: float = 1.0
    fallback: str | None = None
    shadow: str | None = None
    "The version that gets a copy of the request, whose answer nobody sees."


def bucket(rollout_id: UUID, user: UUID) -> float:
    """Return the user's fixed place in [0, 1) within a rollout; another rollout shuffles everyone anew."""
    digest = hashlib.blake2b(rollout_id.bytes + user.bytes, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def route(plan: TrafficPlan, user: UUID, *, broken: frozenset[UUID], now: datetime) -> Decision:
    """Return the decision for one request.

    A user whom the canary answers keeps it while the weight grows. A plan past its time, and a rollout whose glass
    was broken, serve stable only and outside of any rollout.
    """
    if plan.rollout_id is None or plan.canary is None or plan.rollout_id in broken or plan.expires_at <= now:
        return Decision(Track.STABLE, plan.stable)
    if bucket(plan.rollout_id, user) < plan.canary_weight:
        return Decision(
            Track.CANARY, plan.canary, plan.rollout_id, plan.stage, plan.canary_weight, fallback=plan.stable
        )
    shadow = plan.canary if plan.shadow else None
    return Decision(Track.STABLE, plan.stable, plan.rollout_id, plan.stage, 1.0 - plan.canary_weight, shadow=shadow)


def canary_weight(plan: TrafficPlan | None, *, broken: frozenset[UUID], now: datetime) -> float:
    """Return the weight that is in force, after expiry and break-glass."""
    if plan is None or plan.canary is None or plan.expires_at <= now or plan.rollout_id in broken:
        return 0.0
    return plan.canary_weight


def check_plan(plan: TrafficPlan) -> None:
    """Raise ValueError, naming field, value and remedy, if the plan contradicts itself."""
    if not 0.0 <= plan.canary_weight <= 1.0:
        raise ValueError(f"canary_weight = {plan.canary_weight} is not a share: send 0 to 1")
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

    def decide(self, user: UUID, now: datetime) -> Decision | None:
        """Return who answers this user, or None while no stable model is known."""
        return None if self.plan is None else route(self.plan, user, broken=self.broken, now=now)

    def weight(self, now: datetime) -> float:
        """Return the canary's weight in force."""
        return canary_weight(self.plan, broken=self.broken, now=now)

    def break_glass(self, rollout_id: UUID) -> None:
        """Take all traffic from this rollout's canary, at once and for ever; on disk before it returns."""
        self.broken |= {rollout_id}
        write_ids(self.broken_glass_file, self.broken)


def open_router(var_dir: Path, stable: str | None, now: datetime) -> Router:
    """Return a router that serves `stable` alone until a plan comes, and knows the glass broken in earlier lives."""
    file = var_dir / "broken_glass.json"
    broken = msgspec.json.decode(file.read_bytes(), type=frozenset[UUID]) if file.exists() else frozenset()
    plan = TrafficPlan(fence=-1, stable=stable, expires_at=now) if stable else None
    return Router(file, plan, now if plan else None, broken)


def write_ids(file: Path, ids: frozenset[UUID]) -> None:
    """Replace the file's content by these ids, surviving a crash at any moment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    with fresh.open("wb") as stream:
        stream.write(msgspec.json.encode(sorted(ids)))
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
