import numpy as np
import pytest

from benchmarks.rollout_policy import run_rollout
from benchmarks.rollout_rules import (
    Votes,
    betting,
    boundary,
    differs_from_bets,
    fixed_horizon_pairs,
    group_sequential,
    stops_of,
    tensorzero,
    threshold_rules,
)


@pytest.mark.parametrize(("shape", "inflation"), [(0.0, 1.33), (0.5, 1.05)])
def test_group_sequential_designs_keep_their_error_rate_and_power(shape: float, inflation: float) -> None:
    design = boundary(shape)
    assert design.inflation == pytest.approx(inflation, abs=0.02)
    for lift, share in ((0.0, 0.05), (0.1, 0.80)):
        stops = group_sequential(Votes.draw(lift, 4000, 400, (8,)), design, 0.1)
        assert (stops > 0).mean() == pytest.approx(share, abs=0.02)


def test_a_rule_that_never_fires_stops_nowhere() -> None:
    assert stops_of(np.array([[False, False, True], [False, False, False]])).tolist() == [3, 0]
    assert stops_of(np.array([[False, True], [False, False]]), np.array([10, 20])).tolist() == [20, 0]


def test_the_fixed_horizon_is_the_textbook_one() -> None:
    assert fixed_horizon_pairs(0.05) == pytest.approx(1156.2, abs=0.5)


def test_a_stop_that_the_controllers_bets_would_not_make_is_found() -> None:
    votes = Votes.draw(0.1, 5, 3000, (1,))
    promote, _ = betting(votes)
    assert differs_from_bets(votes.differences, promote) == 0
    assert differs_from_bets(votes.differences, promote + 1) == 5


def test_tensorzeros_rule_picks_the_better_variant_and_no_canary_that_loses() -> None:
    assert (tensorzero(Votes.draw(0.2, 20, 2000, (2,))) > 0).all()
    assert (tensorzero(Votes.draw(-0.3, 20, 2000, (3,))) == 0).all()


def test_rules_that_compare_shares_promote_a_harmful_canary_at_little_traffic() -> None:
    shares = threshold_rules(-0.05, 4000, 1)
    assert shares["flagger_like"][20] == pytest.approx(0.19, abs=0.03)
    assert shares["argo_like_strict"][500] == 0


def test_a_whole_rollout_ends_with_the_products_own_verdict() -> None:
    harmful, good = run_rollout("-10", 1), run_rollout("+10", 1)
    assert (harmful.verdict, good.verdict) == ("harm", "better")
    assert good.canary_users >= 250 + 250
    assert run_rollout("+10", 1) == good
