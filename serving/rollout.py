"""The verdicts of a rollout: `decide` turns evidence into a transition. Pure: no clock, no input or output."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from hone.records import Track, TrafficPlan
from hone.rollout import FINAL, ArmHealth, Phase, Policy, Transition
from hone.stats import wilson_interval


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


def decide(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the next transition, or None to wait.

    Safety acts in every live phase, also while a person holds the rollout. Moving forward needs evidence: what is
    missing never advances, and what is undecided at the horizon is rolled back.
    """
    if rollout.phase in FINAL:
        return None
    if rollout.phase is Phase.ROLLING_BACK:
        return finish(rollout, Phase.ROLLED_BACK) if evidence.withdrawn else None
    if reason := danger(rollout, evidence, policy, now):
        return Transition(Phase.ROLLING_BACK, rollout.stage, 0.0, reason)
    if rollout.phase is Phase.PROMOTING:
        done = evidence.in_force and evidence.ready and seconds_in_phase(rollout, now) >= policy.bake_s
        return finish(rollout, Phase.PROMOTED) if done else None
    if rollout.phase is Phase.PAUSED or evidence.held:
        return None
    if rollout.phase is Phase.CREATED:
        return begin(policy) if evidence.ready else None
    return forward(rollout, evidence, policy, now)


def forward(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the promotion, the end at the horizon, or the next stage of a rollout in shadow or canary."""
    if reason := proof(rollout, evidence, policy):
        return Transition(Phase.PROMOTING, rollout.stage, 0.0, reason)
    age_s = (now - rollout.created_at).total_seconds()
    if evidence.num_pairs >= policy.horizon_pairs or age_s >= policy.horizon_s:
        return Transition(
            Phase.ROLLING_BACK,
            rollout.stage,
            0.0,
            f"inconclusive: e-value {e_value(evidence.log_up)} of {1 / policy.alpha:.0f} "
            f"after {evidence.num_pairs} pairs and {age_s:.0f} s",
        )
    if not (evidence.ready and evidence.in_force):
        return None
    if rollout.phase is Phase.SHADOW:
        shadow = evidence.health.get(Track.SHADOW, ArmHealth())
        seen = shadow.num >= policy.min_shadow_responses
        return begin_canary(policy) if seen and seconds_in_phase(rollout, now) >= policy.shadow_s else None
    return next_stage(rollout, evidence, policy, now)


def begin(policy: Policy) -> Transition:
    """Return the first phase with traffic."""
    return Transition(Phase.SHADOW, 0, 0.0, "ready") if policy.shadow_s > 0 else begin_canary(policy)


def begin_canary(policy: Policy) -> Transition:
    """Return the first stage."""
    return Transition(Phase.CANARY, 0, policy.stages[0].weight, "ready")


def next_stage(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the next stage once this one has had its users and its time; the last stage has no next."""
    stage = policy.stages[rollout.stage]
    later = rollout.stage + 1
    users = evidence.canary_users[rollout.stage]
    if later == len(policy.stages) or users < stage.min_users or seconds_in_phase(rollout, now) < stage.min_dwell_s:
        return None
    return Transition(Phase.CANARY, later, policy.stages[later].weight, f"advance: {users} rated canary users")


def proof(rollout: Rollout, evidence: Evidence, policy: Policy) -> str | None:
    """Return why the canary may be promoted, or None."""
    if rollout.phase is not Phase.CANARY or policy.stages[rollout.stage].weight < policy.promote_weight:
        return None
    users = sum(
        number
        for number, stage in zip(evidence.canary_users, policy.stages, strict=True)
        if stage.weight >= policy.promote_weight
    )
    sound = evidence.ready and evidence.in_force and evidence.propensity_log_e < -math.log(policy.alpha_check)
    if not sound or users < policy.min_canary_users or evidence.log_up < -math.log(policy.alpha):
        return None
    found = f"{evidence.num_pairs} pairs, {users} canary users"
    return f"better: e-value {e_value(evidence.log_up)} of {1 / policy.alpha:.0f}, {found}"


def e_value(log_e: float) -> str:
    """Return evidence as people read it; 20 is the line at alpha 0.05."""
    return f"{math.exp(min(log_e, 700.0)):.3g}"


def danger(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> str | None:
    """Return why the canary must leave traffic now, or None. The first word is stable; metrics count it."""
    if evidence.broken_glass:
        return "break_glass: an operator stopped it at a router"
    if evidence.stable_moved:
        return "stable_moved: the version that it is compared with is no longer served"
    if reason := unready(rollout, evidence, policy, now):
        return reason
    if rollout.phase in (Phase.CREATED, Phase.PROMOTING):
        return None
    if evidence.log_down >= -math.log(policy.alpha_harm):
        return f"harm: e-value {e_value(evidence.log_down)} of {1 / policy.alpha_harm:.0f}, {evidence.num_pairs} pairs"
    if evidence.sample_ratio_log_e >= -math.log(policy.alpha_check):
        return f"sample_ratio: arms do not have their intended shares (e-value {e_value(evidence.sample_ratio_log_e)})"
    return failing(evidence, policy) or slow(evidence, policy)


def unready(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> str | None:
    """Return that the canary did not load in time, or has been away for too long."""
    limits = policy.guardrails
    if evidence.ready:
        return None
    if rollout.phase is Phase.CREATED:
        waited = seconds_in_phase(rollout, now)
        return f"not_ready: not loaded after {waited:.0f} s" if waited > limits.ready_timeout_s else None
    return f"not_ready: away for {evidence.unready_s:.0f} s" if evidence.unready_s > limits.max_unready_s else None


def failing(evidence: Evidence, policy: Policy) -> str | None:
    """Return that the canary fails more often than stable, beyond chance and the allowed excess."""
    canary = evidence.health.get(Track.CANARY, ArmHealth())
    stable = evidence.health.get(Track.STABLE, ArmHealth())
    if canary.num_failed < policy.guardrails.min_failed:
        return None
    low, _ = wilson_interval(canary.num_failed, canary.num, z=3.0)
    allowed = stable.num_failed / max(stable.num, 1) + policy.guardrails.max_error_excess
    return f"errors: {canary.num_failed} of {canary.num} canary answers failed" if low > allowed else None


def slow(evidence: Evidence, policy: Policy) -> str | None:
    """Return that the canary's slow answers are far slower than stable's."""
    limits = policy.guardrails
    canary = evidence.health.get(Track.CANARY, ArmHealth())
    stable = evidence.health.get(Track.STABLE, ArmHealth())
    if min(canary.num, stable.num) < limits.min_responses or not (canary.p95_latency_ms and stable.p95_latency_ms):
        return None
    allowed = stable.p95_latency_ms * limits.max_latency_ratio + limits.latency_slack_ms
    if canary.p95_latency_ms <= allowed:
        return None
    return f"latency: p95 {canary.p95_latency_ms:.0f} ms, at most {allowed:.0f} ms allowed"


def finish(rollout: Rollout, phase: Phase) -> Transition:
    """Return the transition to a final phase; it keeps the verdict's reason."""
    return Transition(phase, rollout.stage, 0.0, rollout.reason)


def intended_plan(
    rollout: Rollout | None, *, canary: str | None, stable: str, held: bool, fence: int, expires_at: datetime
) -> TrafficPlan:
    """Return the plan that follows from the stored state alone; `held` (frozen, observe-only) takes the canary out."""
    bare = TrafficPlan(fence=fence, stable=stable, expires_at=expires_at)
    if rollout is None or held or rollout.phase not in (Phase.SHADOW, Phase.CANARY, Phase.PAUSED):
        return bare
    if rollout.weight == 0 and rollout.phase is not Phase.SHADOW:
        return bare
    return msgspec.structs.replace(
        bare,
        canary=canary,
        canary_weight=rollout.weight,
        shadow=rollout.phase is Phase.SHADOW,
        rollout_id=rollout.rollout_id,
        stage=rollout.stage,
    )


def seconds_in_phase(rollout: Rollout, now: datetime) -> float:
    """Return how long ago the last transition was."""
    return (now - rollout.stage_started_at).total_seconds()
