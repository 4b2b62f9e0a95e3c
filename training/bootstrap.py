"""Intervals of ratios whose parts come in clusters: several answers to one prompt, several pairs of one person."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made."""

    num_draws: int = 1000
    confidence: float = 0.95
    "Probability that a two-sided interval covers the truth."
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float

    def measurements(self, name: str) -> dict[str, float]:
        """Return the three numbers under the names that gates read."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def ratio(numerator: Floats, denominator: Floats, bootstrap: Bootstrap) -> Interval:
    """Return sum(numerator) / sum(denominator) with its percentile bootstrap interval over clusters.

    Args:
        numerator: one number a cluster, shape (C,), C >= 1.
        denominator: likewise; its sum must be positive.
    """
    clusters = len(numerator)
    rng = np.random.default_rng(bootstrap.seed)
    draws = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=bootstrap.num_draws)
    bottom = draws @ denominator
    values = (draws @ numerator)[bottom > 0] / bottom[bottom > 0]
    outside = (1 - bootstrap.confidence) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(numerator.sum() / denominator.sum()), float(low), float(high))
