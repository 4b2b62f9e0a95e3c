"""Intervals of ratios whose parts come in clusters: several answers to one prompt, several pairs of one person."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def measurements(self, name: str) -> dict[str, float]:
        """Return the three numbers under the names that gates read."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def ratio(numerator: Floats, denominator: Floats, *, num_bootstraps: int = 1000, seed: int = 0) -> Interval:
    """Return sum(numerator) / sum(denominator) with its percentile bootstrap interval over clusters.

    Args:
        numerator: one number a cluster, shape (C,), C >= 1.
        denominator: likewise; its sum must be positive.
    """
    clusters = len(numerator)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=num_bootstraps)
    bottom = draws @ denominator
    values = (draws @ numerator)[bottom > 0] / bottom[bottom > 0]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(numerator.sum() / denominator.sum()), float(low), float(high))
