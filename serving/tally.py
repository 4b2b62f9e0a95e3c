"""What the closed users of a rollout say. Pure: stored units are folded into a tally.

Each closed canary user is paired with the mean of k stable users who closed in the same stretch of time of the same
stage; the differences are bet on (`hone.stats`). Pairs are formed in the order of stored positions, so folding all rows
at once or in parts gives the same bits. Raw outcomes are never pooled across stages; the wealth carries over.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hone.records import Track
from hone.rollout import ArmCounts, Guard, Policy, Unit
from hone.stats import LAMBDAS_BETTER, LAMBDAS_WORSE, Bets, EffectBets, log_mean_of_two, sample_ratio_log_e


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
class GuardTally:
    """What one guarded measure says; `bets` are against "it moved for the worse by at most the margin"."""

    guard: Guard
    queues: Queues
    bets: Bets

    def log_e(self) -> float:
        """Return the log e-value against a model that is within the margin."""
        return float(self.bets.log_wealth()[0])


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """What the units up to `position` say."""

    position: int
    goal_queues: Queues
    vote_queues: Queues
    up: Bets
    "Against: the canary is not better by more than -non_inferiority."
    down: Bets
    "Against: the canary is not worse by more than non_inferiority."
    effect: EffectBets
    votes_up: Bets
    votes_down: Bets
    total_difference: float
    guards: tuple[GuardTally, ...]
    last_rated_at: datetime | None
    "When the newest unit with an outcome was closed."
    arms: Mapping[tuple[int, Track], ArmTally]


def start_tally(policy: Policy) -> Tally:
    """Return the tally of no units.

    A reverse watch bets that the former model, its canary, is better by more than the margin that the promotion was
    allowed: up and down then have the same null.
    """
    gap, margin = policy.max_propensity_gap, policy.non_inferiority
    return Tally(
        position=0,
        goal_queues=Queues(),
        vote_queues=Queues(),
        up=Bets.against(margin if policy.reverse else -margin, LAMBDAS_BETTER),
        down=Bets.against(margin, LAMBDAS_WORSE),
        effect=EffectBets.start(),
        votes_up=Bets.against(gap),
        votes_down=Bets.against(gap),
        total_difference=0.0,
        guards=tuple(
            GuardTally(guard, Queues(), Bets.against(guard.margin, LAMBDAS_WORSE))
            for guard in policy.guardrails.metrics
        ),
        last_rated_at=None,
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
        guards=tuple(watch_measure(guard, units, policy) for guard in tally.guards),
        last_rated_at=rated[-1][0].closed_at if rated else tally.last_rated_at,
        arms=count_arms(tally.arms, units),
    )


def watch_measure(tally: GuardTally, units: Sequence[Unit], policy: Policy) -> GuardTally:
    """Return what the measure says after `units`; of a reverse watch the new model is the stable arm."""
    name = tally.guard.metric
    known = [(unit, unit.measures[name]) for unit in units if name in unit.measures]
    queues, differences = pair(tally.queues, known, policy)
    sign = -tally.guard.sign if policy.reverse else tally.guard.sign
    return GuardTally(tally.guard, queues, tally.bets.bet([sign * d for d in differences]))


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
        "guards": {guard.guard.complaint: guard.log_e() for guard in tally.guards},
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
