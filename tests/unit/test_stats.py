import math

import numpy as np
import pytest

from hone.stats import (
    LAMBDAS,
    Bets,
    EffectBets,
    bootstrap_interval,
    log_mean_of_two,
    sample_ratio_log_e,
    wilson_interval,
)


def log_wealth(values: list[float], null: float) -> float:
    """The formula, written out by hand."""
    products = [math.prod(1 + size * (x - null) / (1 + abs(null)) for x in values) for size in LAMBDAS]
    return math.log(sum(products) / len(products))


@pytest.mark.parametrize("null", [0.0, -0.02, 0.3])
def test_the_wealth_is_the_mean_over_bet_sizes_of_the_products(null: float) -> None:
    values = [1.0, -0.5, 0.0, 1.0, 1.0, -1.0]
    assert Bets.against(null).bet(values).log_wealth()[0] == pytest.approx(log_wealth(values, null))


def test_folding_in_parts_gives_the_same_bits_as_folding_at_once() -> None:
    values = np.random.default_rng(7).uniform(-1, 1, 1000)
    whole = Bets.against([0.0, 0.1]).bet(values)
    parts = Bets.against([0.0, 0.1])
    for part in np.split(values, [1, 13, 400]):
        parts = parts.bet(part)
    assert parts.log_by_size.tobytes() == whole.log_by_size.tobytes()
    assert parts.num == whole.num == 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.01, -2.0])
def test_a_value_outside_the_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
        Bets.against(0.0).bet([0.5, value])


def test_no_values_leave_the_wealth_at_one() -> None:
    assert Bets.against(0.0).bet([]).log_wealth()[0] == 0.0


def test_peeking_after_every_pair_refutes_a_true_null_at_most_as_often_as_alpha_allows() -> None:
    rng = np.random.default_rng(1)
    differences = rng.binomial(1, 0.6, (400, 2000)) - rng.binomial(1, 0.6, (400, 2000))
    logs = np.cumsum(np.log1p(differences[:, :, None] * LAMBDAS), axis=1)
    wealth = np.exp(logs).mean(axis=2)
    assert (wealth.max(axis=1) >= 20).mean() <= 0.05


def test_the_confidence_sequence_holds_the_effect_at_all_times() -> None:
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(60):
        state, hit = EffectBets.start(), True
        for part in np.split((rng.random(1200) < 0.7) * 1.0 - (rng.random(1200) < 0.55), 12):
            state = state.bet(part)
            low, high = state.interval(0.05)
            hit &= low <= 0.15 <= high
        missed += not hit
    assert missed <= 5
    assert high - low < 0.25


def test_the_confidence_sequence_starts_with_everything_possible() -> None:
    assert EffectBets.start().interval(0.05) == (-1.0, 1.0)


def test_the_sample_ratio_test_stays_calm_at_the_intended_weights_and_fires_otherwise() -> None:
    assert sample_ratio_log_e([(0.25, 250, 750), (0.5, 500, 500)]) < 0
    assert sample_ratio_log_e([(0.25, 250, 750), (0.5, 400, 600)]) > math.log(1000)
    assert sample_ratio_log_e([]) == pytest.approx(0.0)


def test_the_sample_ratio_test_rarely_fires_wrongly_however_often_one_looks() -> None:
    drawn = np.random.default_rng(3).random((2000, 600)) < 0.25
    canary = np.cumsum(drawn, axis=1)[:, 19::20]
    looks = np.arange(20, 601, 20)
    fired = [
        any(sample_ratio_log_e([(0.25, int(c), int(n - c))]) >= math.log(20) for c, n in zip(row, looks, strict=True))
        for row in canary[:500]
    ]
    assert np.mean(fired) <= 0.05


def test_the_sample_ratio_test_refuses_a_weight_that_leaves_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="leaves nothing to draw"):
        sample_ratio_log_e([(0.0, 0, 10)])


def test_the_mean_of_two_e_values_is_taken_in_logs_without_overflow() -> None:
    assert log_mean_of_two(math.log(4), math.log(2)) == pytest.approx(math.log(3))
    assert log_mean_of_two(2000.0, 0.0) == pytest.approx(2000.0 - math.log(2))


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263 and 0/20, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_bootstrap_is_wider_when_values_of_one_cluster_agree() -> None:
    values = [float(v) for v in np.repeat(np.random.default_rng(4).integers(0, 2, 40), 10)]
    clustered = bootstrap_interval(values, [i // 10 for i in range(400)], seed=0)
    alone = bootstrap_interval(values, list(range(400)), seed=0)
    assert clustered[1] - clustered[0] > 2 * (alone[1] - alone[0])
    assert clustered == bootstrap_interval(values, [i // 10 for i in range(400)], seed=0)


def test_the_bootstrap_refuses_a_single_cluster() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_interval([1.0, 0.0], ["a", "a"], seed=0)
