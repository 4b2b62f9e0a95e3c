"""Intervals over clusters."""

import numpy as np

from training.bootstrap import Bootstrap, ratio


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Clusters of five that agree with each other: an interval over single answers would cover far less often."""
    rng = np.random.default_rng(0)
    hits = 0
    for run in range(200):
        rates = rng.beta(2, 2, size=60)
        wins = rng.binomial(5, rates).astype(float)
        interval = ratio(wins, np.full(60, 5.0), Bootstrap(num_draws=300, seed=run))
        hits += interval.low <= 0.5 <= interval.high
    assert 0.90 <= hits / 200 <= 0.99


def test_clusters_count_by_their_size() -> None:
    assert ratio(np.array([9.0, 0.0]), np.array([9.0, 1.0]), Bootstrap()).value == 0.9


def test_equal_seeds_give_equal_intervals() -> None:
    numbers = np.arange(10.0)
    assert ratio(numbers, np.ones(10), Bootstrap(seed=3)) == ratio(numbers, np.ones(10), Bootstrap(seed=3))


def test_less_confidence_makes_a_narrower_interval() -> None:
    numbers = np.arange(30.0)
    wide, narrow = (ratio(numbers, np.ones(30), Bootstrap(confidence=c)) for c in (0.95, 0.8))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
