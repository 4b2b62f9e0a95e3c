import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.rollout import Ledger
from hone.rollout_ledger import level, share


def test_the_shares_of_all_rollouts_together_are_the_budget() -> None:
    assert sum(share(number) for number in range(1, 10_000)) == pytest.approx(1.0, abs=1e-3)


def test_each_proven_promotion_gives_later_rollouts_of_e_lond_more_room() -> None:
    assert level(Ledger.E_LOND, 0.05, number=1, num_promoted=0) == pytest.approx(0.025)
    assert level(Ledger.E_LOND, 0.05, number=10, num_promoted=0) == pytest.approx(0.05 / 110)
    assert level(Ledger.E_LOND, 0.05, number=10, num_promoted=5) == pytest.approx(0.3 / 110)


def test_a_month_spends_its_budget_without_bonus_and_a_fixed_level_is_the_budget() -> None:
    assert level(Ledger.MONTHLY, 0.05, number=2, num_promoted=1) == pytest.approx(0.05 / 6)
    assert level(Ledger.FIXED, 0.05, number=10, num_promoted=0) == 0.05


@given(st.integers(1, 1000), st.integers(0, 1000), st.floats(0.001, 0.5))
def test_no_rollout_of_e_lond_gets_more_than_half_the_budget(number: int, promoted: int, budget: float) -> None:
    if promoted >= number:
        with pytest.raises(ValueError, match="numbers start at 1"):
            level(Ledger.E_LOND, budget, number=number, num_promoted=promoted)
    else:
        assert 0 < level(Ledger.E_LOND, budget, number=number, num_promoted=promoted) <= budget


def test_the_false_discovery_rate_of_e_lond_is_held_when_most_models_are_no_better() -> None:
    """E-values of null rollouts are as hostile as they may be: 1/alpha with chance alpha, at the level itself."""
    rng, shares = np.random.default_rng(4), []
    for _ in range(4000):
        wrong = promoted = 0
        for number in range(1, 41):
            alpha = level(Ledger.E_LOND, 0.05, number=number, num_promoted=promoted)
            is_null = rng.random() < 0.7
            proven = rng.random() < (alpha if is_null else 0.9)
            promoted += proven
            wrong += proven and is_null
        shares.append(wrong / max(promoted, 1))
    assert 0.001 < np.mean(shares) <= 0.05
