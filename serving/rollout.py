"""The verdicts of a rollout. Pure: stored units are folded into a tally, and `decide` turns evidence into a transition.

Each closed canary user is paired with the mean of k stable users who closed in the same stretch of time of the same
stage; the differences are bet on (`hone.stats`). Pairs are formed in the order of stored positions, so folding all rows
at once or in parts gives the same bits. Raw outcomes are never pooled across stages; the wealth carries over.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from hone.records import Track, TrafficPlan
from hone.rollout import FINAL, ArmCounts, ArmHealth, Phase, Policy, Transition, Unit
from hone.stats import Bets, EffectBets, log_mean_of_two, sample_ratio_log_e, wilson_interval


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout as it stands; `stage_started_at` is when its last transition was made."""

    rollout_id: UUID
    phase: Phase
    stage: int
    weight: float
    epoch: int
    created_at: datetime
    stage_started_at: datetime


@dataclass(frozen=True, slots=True)
class Queues:
    """Outcomes of one block of one stage that wait for their partners."""

    key: tuple[int, int] = (-1, 0)
    canary: tuple[float, ...] = ()
    stable: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ArmTally:
    """Closed users of one arm in one stage."""

    num_closed: int = 0
    num_rated: int = 0
    total: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """What the units up to `position` say."""

    position: int
    goal_queues: Queues
    vote_queues: Queues
    up: Bets
    "Against: the canary is not better by more than -non_inferiority."
    down: Bets
    "Against: the canary is not worse."
    effect: EffectBets
    votes_up: Bets
    votes_down: Bets
    total_difference: float
    arms: Mapping[tuple[int, Track], ArmTally]


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


def start_tally(policy: Policy) -> Tally:
    """Return the tally of no units."""
    gap = policy.max_propensity_gap
    return Tally(
        position=0,
        goal_queues=Queues(),
        vote_queues=Queues(),
        up=Bets.against(-policy.non_inferiority),
        down=Bets.against(0.0),
        effect=EffectBets.start(),
        votes_up=Bets.against(gap),
        votes_down=Bets.against(gap),
        total_difference=0.0,
        arms={},
    )


def fold(tally: Tally, units: Sequence[Unit], policy: Policy) -> Tally:
    """Return the tally after `units`, which continue it in the order of their positions."""
    if not units:
        return tally
    rated = [(unit, unit.value) for unit in units if unit.value is not None]
    goal_queues, differences = pair(tally.goal_queues, rated, policy)
    vote_queues, votes = pair(tally.vote_queues, [(unit, float(unit.value is not None)) for unit in units], policy)
    negative, against = [-d for d in differences], [-v for v in votes]
    return Tally(
        position=units[-1].position,
        goal_queues=goal_queues,
        vote_queues=vote_queues,
        up=tally.up.bet(differences),
        down=tally.down.bet(negative),
        effect=tally.effect.bet(differences),
        votes_up=tally.votes_up.bet(votes),
        votes_down=tally.votes_down.bet(against),
        total_difference=sum(differences, start=tally.total_difference),
        arms=count_arms(tally.arms, units),
    )


def pair(queues: Queues, values: Iterable[tuple[Unit, float]], policy: Policy) -> tuple[Queues, list[float]]:
    """Return what still waits, and canary minus mean stable of each pair, in order.

    Who is paired with whom depends on order, stage and block alone, never on the values. A unit of an earlier stage or
    block than the newest one is left out.
    """
    key, canary, stable, differences = queues.key, list(queues.canary), list(queues.stable), []
    for unit, value in values:
        here = (unit.stage, math.floor(unit.closed_at.timestamp() / policy.block_s))
        if here < key:
            continue
        if here > key:
            key, canary, stable = here, [], []
        (canary if unit.track == Track.CANARY else stable).append(value)
        k = policy.stages[unit.stage].stable_per_canary
        if canary and len(stable) >= k:
            differences.append(canary.pop(0) - math.fsum(stable[:k]) / k)
            del stable[:k]
    return Queues(key, tuple(canary), tuple(stable)), differences


def count_arms(
    arms: Mapping[tuple[int, Track], ArmTally], units: Iterable[Unit]
) -> Mapping[tuple[int, Track], ArmTally]:
    """Return the counts after `units`."""
    counts = dict(arms)
    for unit in units:
        place = (unit.stage, Track(unit.track))
        old = counts.get(place, ArmTally())
        rated, value = unit.value is not None, unit.value or 0.0
        counts[place] = ArmTally(old.num_closed + 1, old.num_rated + rated, old.total + value)
    return counts


def canary_users(tally: Tally, policy: Policy) -> tuple[int, ...]:
    """Return the number of rated canary users of each stage."""
    empty = ArmTally()
    return tuple(tally.arms.get((stage, Track.CANARY), empty).num_rated for stage in range(len(policy.stages)))


def propensity_log_e(tally: Tally) -> float:
    """Return the log e-value against "both arms vote alike, but for the allowed gap", two-sided."""
    return log_mean_of_two(float(tally.votes_up.log_wealth()[0]), float(tally.votes_down.log_wealth()[0]))


def assignment_log_e(counts: Iterable[ArmCounts]) -> float:
    """Return the log e-value against "users were drawn with the intended weights"."""
    return sample_ratio_log_e((c.weight, c.canary, c.stable) for c in counts)


def describe(tally: Tally, counts: Sequence[ArmCounts], policy: Policy) -> dict[str, Any]:
    """Return the evidence as JSON for people: kept in the rollout's row."""
    log_up, log_down = float(tally.up.log_wealth()[0]), float(tally.down.log_wealth()[0])
    low, high = tally.effect.interval(policy.alpha)
    return {
        "position": tally.position,
        "num_pairs": tally.up.num,
        "log_wealth_up": log_up,
        "log_wealth_down": log_down,
        "log_target": -math.log(policy.alpha),
        "e_value": math.exp(min(log_up, 700.0)),
        "effect": tally.total_difference / tally.up.num if tally.up.num else None,
        "effect_low": low,
        "effect_high": high,
        "sample_ratio_log_e": assignment_log_e(counts),
        "propensity_log_e": propensity_log_e(tally),
        "arms": {track: describe_arm(tally, counts, track) for track in (Track.CANARY, Track.STABLE)},
        "canary_users_by_stage": list(canary_users(tally, policy)),
    }


def describe_arm(tally: Tally, counts: Sequence[ArmCounts], track: Track) -> dict[str, Any]:
    """Return the counts of one arm. Its mean pools stages and is for display only; no verdict reads it."""
    parts = [arm for (_, of), arm in tally.arms.items() if of == track]
    rated = sum(arm.num_rated for arm in parts)
    return {
        "assigned": sum(c.canary if track == Track.CANARY else c.stable for c in counts),
        "closed": sum(arm.num_closed for arm in parts),
        "rated": rated,
        "mean": sum(arm.total for arm in parts) / rated if rated else None,
    }


def decide(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the next transition, or None to wait.

    Safety acts in every live phase, also while a person holds the rollout. Moving forward needs evidence: what is
    missing never advances, and what is undecided at the horizon is rolled back.
    """
    if rollout.phase in FINAL:
        return None
    if rollout.phase is Phase.ROLLING_BACK:
        return replace_phase(rollout, Phase.ROLLED_BACK, "withdrawn") if evidence.withdrawn else None
    if reason := danger(rollout, evidence, policy, now):
        return Transition(Phase.ROLLING_BACK, rollout.stage, 0.0, reason)
    if rollout.phase is Phase.PROMOTING:
        done = evidence.in_force and evidence.ready and seconds_in_phase(rollout, now) >= policy.bake_s
        return replace_phase(rollout, Phase.PROMOTED, "in force") if done else None
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
            f"inconclusive: log e-value {evidence.log_up:.2f} of {-math.log(policy.alpha):.2f} "
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
    return f"better: log e-value {evidence.log_up:.2f} after {evidence.num_pairs} pairs, {users} canary users"


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
        return f"harm: log e-value {evidence.log_down:.2f} after {evidence.num_pairs} pairs"
    if evidence.sample_ratio_log_e >= -math.log(policy.alpha_check):
        return f"sample_ratio: arms do not have their intended shares (log e-value {evidence.sample_ratio_log_e:.2f})"
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


def replace_phase(rollout: Rollout, phase: Phase, reason: str) -> Transition:
    """Return the transition that changes the phase alone."""
    return Transition(phase, rollout.stage, rollout.weight, reason)


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
