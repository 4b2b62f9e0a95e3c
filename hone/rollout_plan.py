"""How long a rollout will take, by simulating its own test: before it starts, and in tests of its error rates.

Pure: the same arguments give the same forecast. Users vote independently with fixed rates, and partners are always at
hand; a real rollout is somewhat slower.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hone.rollout import Policy
from hone.stats import LAMBDAS_BETTER, LAMBDAS_WORSE, Floats, wilson_interval


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How simulated rollouts ended; arrays with one entry for each run."""

    promoted: NDArray[np.bool_]
    rolled_back: NDArray[np.bool_]
    "For harm; runs that are neither ran into the horizon."
    num_canary_users: NDArray[np.int64]
    "Rated canary users until the end."


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect of a rollout whose canary is better by `lift`."""

    lift: float
    promoted_share: float
    promoted_low: float
    median_canary_users: float | None
    "Of the runs that promote; null where fewer than half of all runs do."
    median_days: float | None
    p80_days: float | None


def days_to_decide(
    policy: Policy, *, rated_users_per_day: float, lift: float, base_rate: float, runs: int = 400, seed: int = 0
) -> Forecast:
    """Return how often and how soon a canary that is better by `lift` is promoted at this much traffic.

    A promotion that would come after the policy's horizon in time counts as none.

    Args:
        rated_users_per_day: different users a day who give the goal's outcome, in both arms together.
        lift: canary's mean outcome minus stable's, -1 to 1.
        base_rate: stable's mean outcome, 0 to 1.

    Raises:
        ValueError: a rate is not a share, or there is no traffic.
    """
    if rated_users_per_day <= 0:
        raise ValueError(f"rated_users_per_day = {rated_users_per_day}: without votes nothing can be decided")
    outcomes = simulate(policy, lift=lift, base_rate=base_rate, runs=runs, seed=seed)
    promoted = outcomes.num_canary_users[outcomes.promoted]
    all_days = np.array([days_of(policy, int(users), rated_users_per_day) for users in promoted])
    in_time = all_days * 86_400 <= policy.horizon_s
    days, users = np.sort(all_days[in_time]), np.sort(promoted[in_time])
    share = len(days) / runs
    return Forecast(
        lift=lift,
        promoted_share=share,
        promoted_low=wilson_interval(share * runs, runs)[0],
        median_canary_users=quantile_of_all(users, runs, 0.5),
        median_days=quantile_of_all(days, runs, 0.5),
        p80_days=quantile_of_all(days, runs, 0.8),
    )


def smallest_lift(
    policy: Policy, *, rated_users_per_day: float, base_rate: float, share: float = 0.8, runs: int = 200
) -> float | None:
    """Return the smallest lift, to a quarter of a point, that this share of rollouts promotes in time, or None.

    By bisection on simulated rollouts of the same seed, whose promotions grow with the lift.
    """
    step = 0.0025
    low, high = 0, int((1.0 - base_rate) / step)

    def finds(number: int) -> bool:
        forecast = days_to_decide(
            policy, rated_users_per_day=rated_users_per_day, lift=number * step, base_rate=base_rate, runs=runs
        )
        return forecast.promoted_share >= share

    if high < 1 or not finds(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high * step


def quantile_of_all(sorted_values: NDArray[np.float64] | NDArray[np.int64], runs: int, level: float) -> float | None:
    """Return the value that a share `level` of all runs stays below, or None where too few runs have one."""
    index = int(np.ceil(level * runs)) - 1
    return float(sorted_values[index]) if index < len(sorted_values) else None


def days_of(policy: Policy, num_canary_users: int, rated_users_per_day: float) -> float:
    """Return the days that a rollout with so many rated canary users takes, dwell and outcome window included."""
    days, left = 0.0, num_canary_users
    for number, stage in enumerate(policy.stages):
        last = number + 1 == len(policy.stages)
        users = left if last else min(left, stage.min_users)
        waiting = (stage.min_dwell_s if users == stage.min_users and not last else 0.0) / 86_400
        days += max(users / (stage.weight * rated_users_per_day), waiting) + policy.outcome_window_s / 86_400
        left -= users
        if left <= 0:
            break
    return days


def simulate(policy: Policy, *, lift: float, base_rate: float, runs: int, seed: int) -> Outcomes:
    """Return how `runs` rollouts end when the test is looked at after every pair.

    Raises:
        ValueError: a rate is not a share.
    """
    if not (0 <= base_rate <= 1 and 0 <= base_rate + lift <= 1):
        raise ValueError(f"base_rate {base_rate} and base_rate + lift {base_rate + lift:.3f} must both be shares")
    stage_of_pair = stages_of_pairs(policy)
    differences = draw_differences(policy, stage_of_pair, base_rate, base_rate + lift, runs, seed)
    eligible = np.array([policy.stages[stage].weight >= policy.promote_weight for stage in stage_of_pair])
    enough = eligible & (np.cumsum(eligible) >= policy.min_canary_users)
    better = enough & (wealth_paths(differences, -policy.non_inferiority, LAMBDAS_BETTER) >= 1 / policy.alpha)
    harmful = wealth_paths(-differences, policy.non_inferiority, LAMBDAS_WORSE) >= 1 / policy.alpha_harm
    first_better, first_harmful = first_true(better), first_true(harmful)
    end = np.minimum(np.minimum(first_better, first_harmful), len(stage_of_pair) - 1)
    return Outcomes(
        promoted=first_better < first_harmful,
        rolled_back=first_harmful <= np.minimum(first_better, len(stage_of_pair) - 1),
        num_canary_users=end + 1,
    )


def stages_of_pairs(policy: Policy) -> NDArray[np.int64]:
    """Return the stage in which each pair up to the horizon is made: a stage ends with its `min_users`."""
    lengths = [stage.min_users for stage in policy.stages[:-1]]
    stages = np.repeat(np.arange(len(lengths)), lengths)[: policy.horizon_pairs]
    rest = np.full(policy.horizon_pairs - len(stages), len(policy.stages) - 1)
    return np.concatenate([stages, rest])


def draw_differences(
    policy: Policy, stage_of_pair: NDArray[np.int64], stable_rate: float, canary_rate: float, runs: int, seed: int
) -> Floats:
    """Return canary minus mean stable for each run (rows) and pair (columns)."""
    rng = np.random.default_rng(seed)
    partners = np.array([stage.stable_per_canary for stage in policy.stages])[stage_of_pair]
    shape = (runs, len(stage_of_pair))
    drawn: Floats = (rng.random(shape) < canary_rate) - rng.binomial(partners, stable_rate, shape) / partners
    return drawn


def wealth_paths(differences: Floats, null: float, sizes: Floats) -> Floats:
    """Return the wealth after each pair, for each run: the paths that `hone.stats.Bets` walks in logs."""
    total = np.zeros(differences.shape)
    with np.errstate(over="ignore", under="ignore"):  # infinite wealth refutes the null as well as any
        for size in sizes:
            total += np.cumprod(1.0 + size * (differences - null) / (1 + abs(null)), axis=1)
    wealth: Floats = total / len(sizes)
    return wealth


def first_true(hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the column of the first hit in each row, or the number of columns."""
    columns: NDArray[np.int64] = np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])
    return columns
