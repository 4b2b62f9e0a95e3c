"""Whole rollouts on simulated users: the product's own tally and verdict, look after look, without a database.

Users arrive one by one, are drawn to an arm with the stage's weight, and vote; every LOOK_S the closed ones are folded
and judged. What only people read (the band of effects) is left out, so that thousands of rollouts can be run.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hone.records import Track
from hone.rollout import ArmCounts, Phase, Policy, Unit, parse_policy
from hone.stats import Bets, EffectBets, Floats
from serving.rollout import decide
from serving.rollout_evidence import Evidence, Rollout
from serving.tally import Tally, assignment_log_e, canary_users, fold, propensity_log_e, start_tally

SHIPPED = Path(__file__).parents[1] / "configs" / "rollout.toml"
START = datetime(2026, 3, 2, tzinfo=UTC)
USERS_PER_DAY = 10_000
LOOK_S = 120.0
"""The controller looks every few seconds; the more seldom, the later harm is found and the fewer false promotions."""
ICC = 0.3
"""How alike the votes of one person are, in the clustered world."""

Draw = Callable[[np.random.Generator, NDArray[np.bool_], Floats], Floats]
"""Outcomes of users, from the arm of each and the days since the start."""


def shipped_policy(**changes: Any) -> Policy:
    """Return the policy of configs/rollout.toml with some values changed."""
    return parse_policy(tomllib.loads(SHIPPED.read_text()) | changes)


def without_first_stage(**changes: Any) -> Policy:
    """Return the shipped policy without its stage of 1 %."""
    stages = tomllib.loads(SHIPPED.read_text())["stages"][1:]
    return shipped_policy(stages=stages, **changes)


def half_and_half(**changes: Any) -> Policy:
    """Return the shipped policy with one stage of 50 %."""
    return shipped_policy(stages=[{"weight": 0.5, "min_users": 1}], **changes)


def better_by(lift: float) -> Draw:
    """People who vote for themselves."""
    return lambda rng, canary, days: (rng.random(len(canary)) < 0.60 + lift * canary).astype(np.float64)


def drifting(rng: np.random.Generator, canary: NDArray[np.bool_], days: Floats) -> Floats:
    """No effect, while everybody's mood rises by ten points in the first day."""
    return (rng.random(len(canary)) < 0.55 + 0.10 * np.minimum(days, 1.0)).astype(np.float64)


def clustered(rng: np.random.Generator, canary: NDArray[np.bool_], days: Floats) -> Floats:
    """No effect; the unit is a person's mean of about eight votes, alike with the intraclass correlation ICC."""
    votes, ups = clustered_votes(rng, len(canary))
    means: Floats = ups / votes
    return means


def clustered_votes(rng: np.random.Generator, num: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each person's number of votes, and how many of them are up."""
    total = 1 / ICC - 1
    votes = 1 + rng.poisson(7, num)
    return votes, rng.binomial(votes, rng.beta(0.6 * total, 0.4 * total, num))


SCENARIOS: dict[str, tuple[Callable[[], Policy], Draw]] = {
    **{f"{points:+d}": (shipped_policy, better_by(points / 100)) for points in (-10, -5, -2, 0, 2, 5, 10)},
    "drift": (lambda: without_first_stage(horizon_pairs=2000), drifting),
    "clustered": (lambda: half_and_half(horizon_pairs=1500), clustered),
}


@dataclass(frozen=True)
class Ending:
    """How one rollout ended."""

    verdict: str
    "First word of the reason: better, harm, inconclusive, sample_ratio, …"
    canary_users: int
    "Closed and rated until the verdict."
    total_users: int
    days: float
    pooled_z: float
    "Largest z over the ends of the stages, of shares pooled over all stages: what a naive dashboard shows."


class Unseen(EffectBets):
    """The band of effects, which only people read, left out."""

    def __init__(self) -> None:
        super().__init__(Bets.against(0.0), Bets.against(0.0))

    def bet(self, values: ArrayLike) -> "Unseen":
        return self


@dataclass
class World:
    """The users of one simulated rollout."""

    policy: Policy
    draw: Draw
    rng: np.random.Generator
    num: int = 0

    def next_units(self, rollout: Rollout) -> list[Unit]:
        """Return the users who close until the next look."""
        count = round(USERS_PER_DAY * LOOK_S / 86_400)
        canary = self.rng.random(count) < rollout.weight
        seconds = (self.num + np.arange(count)) * 86_400 / USERS_PER_DAY
        values = self.draw(self.rng, canary, seconds / 86_400)
        tracks = [Track.CANARY if is_canary else Track.STABLE for is_canary in canary]
        first, self.num = self.num + 1, self.num + count
        rows = zip(range(first, first + count), tracks, values.tolist(), seconds.tolist(), strict=True)
        return [Unit(n, track, rollout.stage, v, START + timedelta(seconds=s)) for n, track, v, s in rows]


def run_rollout(scenario: str, seed: int) -> Ending:
    """Run one rollout of a scenario to its verdict."""
    make, draw = SCENARIOS[scenario]
    policy = make()
    world = World(policy, draw, np.random.default_rng(seed))
    weight = policy.stages[0].weight
    rollout = Rollout(UUID(int=seed), Phase.CANARY, 0, weight, 0, "ready", START, START)
    tally = replace(start_tally(policy), effect=Unseen())
    pooled_z = 0.0
    while True:
        tally = fold(tally, world.next_units(rollout), policy)
        now = START + timedelta(days=world.num / USERS_PER_DAY)
        change = decide(rollout, evidence_of(tally, policy), policy, now)
        if change is None:
            continue
        pooled_z = max(pooled_z, z_of_pooled(tally))
        if change.phase is not Phase.CANARY:
            verdict = change.reason.split(":", 1)[0]
            users = sum(canary_users(tally, policy))
            return Ending(verdict, users, world.num, world.num / USERS_PER_DAY, pooled_z)
        rollout = replace(
            rollout, stage=change.stage, weight=change.weight, epoch=rollout.epoch + 1, stage_started_at=now
        )


def evidence_of(tally: Tally, policy: Policy) -> Evidence:
    """Return what the controller would see: all of it in order, but for what people say."""
    return Evidence(
        num_pairs=tally.up.num,
        log_up=float(tally.up.log_wealth()[0]),
        log_down=float(tally.down.log_wealth()[0]),
        canary_users=canary_users(tally, policy),
        sample_ratio_log_e=assignment_log_e(arm_counts(tally, policy)),
        propensity_log_e=propensity_log_e(tally),
        health={},
        ready=True,
        unready_s=0.0,
        in_force=True,
        withdrawn=False,
    )


def arm_counts(tally: Tally, policy: Policy) -> list[ArmCounts]:
    """Return the users of each arm and stage; here every assigned user closes."""
    closed = {place: arm.num_closed for place, arm in tally.arms.items()}
    return [
        ArmCounts(number, stage.weight, closed.get((number, Track.CANARY), 0), closed.get((number, Track.STABLE), 0))
        for number, stage in enumerate(policy.stages)
    ]


def z_of_pooled(tally: Tally) -> float:
    """Return the z statistic of the arms' shares when all stages are thrown together."""
    sums = {track: [0.0, 0.0] for track in (Track.CANARY, Track.STABLE)}
    for (_, track), arm in tally.arms.items():
        sums[track][0] += arm.total
        sums[track][1] += arm.num_rated
    (ups, num), (stable_ups, stable_num) = sums[Track.CANARY], sums[Track.STABLE]
    share = (ups + stable_ups) / (num + stable_num)
    return float((ups / num - stable_ups / stable_num) / np.sqrt(share * (1 - share) * (1 / num + 1 / stable_num)))
