"""Error rates of the shipped policies, by simulation with fixed seeds."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from hone.rollout import Policy, parse_policy
from hone.rollout_plan import (
    days_to_decide,
    draw_differences,
    simulate,
    smallest_lift,
    stages_of_pairs,
    wealth_paths,
)
from hone.stats import LAMBDAS_BETTER, LAMBDAS_WORSE, Bets, wilson_interval

CONFIGS = Path(__file__).parents[2] / "configs"


def policy(name: str) -> Policy:
    return parse_policy(tomllib.loads((CONFIGS / name).read_text()))


@pytest.mark.parametrize("base_rate", [0.35, 0.55])
def test_the_demo_promotes_a_lift_of_fifteen_points_in_99_of_100_runs(base_rate: float) -> None:
    outcomes = simulate(policy("rollout.demo.toml"), lift=0.15, base_rate=base_rate, runs=1000, seed=11)
    assert outcomes.promoted.mean() >= 0.99
    assert np.quantile(outcomes.num_canary_users, 0.99) < 1500


def test_the_demo_promotes_a_model_that_is_no_better_in_at_most_5_of_100_runs() -> None:
    outcomes = simulate(policy("rollout.demo.toml"), lift=0.0, base_rate=0.6, runs=1000, seed=12)
    assert wilson_interval(outcomes.promoted.sum(), 1000)[1] <= 0.05
    assert outcomes.promoted.any(), "a test that never errs has not been simulated"


def test_the_demo_rolls_back_a_harmful_model_and_never_promotes_it() -> None:
    outcomes = simulate(policy("rollout.demo.toml"), lift=-0.3, base_rate=0.6, runs=1000, seed=13)
    assert outcomes.rolled_back.all()
    assert np.median(outcomes.num_canary_users) <= 60


def test_the_default_policy_holds_its_error_rate_and_finds_five_points() -> None:
    shipped = policy("rollout.toml")
    null = simulate(shipped, lift=0.0, base_rate=0.6, runs=250, seed=14)
    assert wilson_interval(null.promoted.sum(), 250)[0] <= 0.05
    assert null.promoted.mean() <= 0.05
    assert simulate(shipped, lift=0.05, base_rate=0.6, runs=150, seed=15).promoted.mean() >= 0.97


def test_the_simulated_paths_are_those_of_the_test_itself() -> None:
    demo = policy("rollout.demo.toml")
    stages = stages_of_pairs(demo)[:150]
    differences = draw_differences(demo, stages, 0.5, 0.6, 2, seed=16)
    for null, sizes in ((0.0, LAMBDAS_BETTER), (-0.02, LAMBDAS_WORSE)):
        bets = [Bets.against(null, sizes).bet(row).log_wealth()[0] for row in differences]
        assert np.log(wealth_paths(differences, null, sizes)[:, -1]) == pytest.approx(bets)


def test_more_traffic_decides_sooner_and_too_small_a_lift_has_no_median() -> None:
    shipped = policy("rollout.toml")
    slow = days_to_decide(shipped, rated_users_per_day=1_000, lift=0.10, base_rate=0.6, runs=100)
    fast = days_to_decide(shipped, rated_users_per_day=10_000, lift=0.10, base_rate=0.6, runs=100)
    assert slow.median_days is not None
    assert fast.median_days is not None
    assert slow.p80_days is not None
    assert fast.median_days < slow.median_days <= slow.p80_days
    # 250 canary users before the stage of 25 %, 5,000 + 4,000 users of both arms, then 250 at 25 %.
    assert slow.median_days == pytest.approx(10.0, abs=1.0)
    small = days_to_decide(shipped, rated_users_per_day=1_000, lift=0.005, base_rate=0.6, runs=100)
    assert small.median_days is None
    assert small.promoted_share < 0.3


def test_a_promotion_after_the_horizon_in_time_counts_as_none() -> None:
    late = days_to_decide(policy("rollout.toml"), rated_users_per_day=500, lift=0.1, base_rate=0.6, runs=50)
    assert (late.promoted_share, late.median_days, late.median_canary_users) == (0.0, None, None)


def test_the_smallest_lift_that_is_found_shrinks_with_traffic() -> None:
    quick = policy("rollout.demo.toml").model_copy(update={"horizon_s": 86_400.0})
    little, much = (smallest_lift(quick, rated_users_per_day=users, base_rate=0.6, runs=60) for users in (500, 4_000))
    assert little is not None
    assert much is not None
    assert 0.02 < much < little < 0.35
    assert smallest_lift(quick, rated_users_per_day=5, base_rate=0.6, runs=60) is None


def test_wrong_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="without votes"):
        days_to_decide(policy("rollout.toml"), rated_users_per_day=0, lift=0.1, base_rate=0.5)
    with pytest.raises(ValueError, match="must both be shares"):
        simulate(policy("rollout.toml"), lift=0.5, base_rate=0.6, runs=2, seed=0)
