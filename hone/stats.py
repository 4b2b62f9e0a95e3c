"""The statistics of gates and rollouts: intervals for one look, and tests that stay valid however often one looks.

The sequential tests bet against a hypothesis about bounded numbers (Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", arXiv:2010.09686). While the hypothesis holds the wealth is a supermartingale that
starts at 1, so by Ville's inequality the chance that it ever reaches 1/alpha is at most alpha, at any stopping time.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LAMBDAS: Floats = np.geomspace(0.01, 0.5, 13)
"""Sizes of the bets; the wealth is the mean over them, so none has to be chosen beforehand."""
LAMBDAS_BETTER: Floats = np.geomspace(0.015, 0.25, 7)
"""For a proof that a canary is better. Fewer sizes share the stake; larger ones would find lifts of 20 points sooner,
yet no promotion happens in so few users, and they are what a much worse canary gets promoted by."""
LAMBDAS_WORSE: Floats = np.geomspace(0.03, 0.5, 8)
"""For a proof of harm: large harm must be found within tens of users."""
EFFECT_GRID: Floats = np.linspace(-1.0, 1.0, 81)
"""Effects that the confidence sequence tests, 2.5 points apart."""
CHUNK = 256
"""Values that are bet on at once; it bounds the memory of a replay."""
ODDS_RATIOS: Floats = np.array([0.5, 2 / 3, 5 / 6, 10 / 11, 1.1, 1.2, 1.5, 2.0])
"""Deviations of the odds of an arm that the sample-ratio test bets on."""


@dataclass(frozen=True, slots=True, eq=False)
class Bets:
    """Log wealth against `E[X] <= null`, for each null (rows) and each bet size (columns), after `num` values."""

    nulls: Floats
    sizes: Floats
    log_by_size: Floats
    num: int = 0

    @classmethod
    def against(cls, nulls: ArrayLike, sizes: Floats = LAMBDAS) -> Self:
        """Return the state before the first value: wealth 1. `sizes` of the bets lie in (0, 1)."""
        array = np.atleast_1d(np.asarray(nulls, dtype=np.float64))
        return cls(array, sizes, np.zeros((len(array), len(sizes))))

    def bet(self, values: ArrayLike) -> "Bets":
        """Return the state after `values`, each in [-1, 1], in this order.

        Each value x multiplies the wealth by 1 + lambda (x - null) / (1 + |null|), whose mean is at most 1 under the
        null. Values are added one by one: one call with all of them and many calls with parts give equal bits.

        Raises:
            ValueError: a value is not finite or lies outside [-1, 1].
        """
        x = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if not len(x):
            return self
        if not np.all(np.abs(x) <= 1.0):
            raise ValueError(f"differences must lie in [-1, 1], got {x[~(np.abs(x) <= 1.0)][:3]}: rescale the outcomes")
        logs = self.log_by_size
        for start in range(0, len(x), CHUNK):
            part = x[start : start + CHUNK]
            edge = (part[:, None] - self.nulls) / (1.0 + np.abs(self.nulls))
            gains = np.log1p(edge[:, :, None] * self.sizes)
            logs = np.cumsum(np.concatenate([logs[None], gains]), axis=0)[-1]
        return Bets(self.nulls, self.sizes, logs, self.num + len(x))

    def log_wealth(self) -> Floats:
        """Return the log of the mean wealth over bet sizes, one for each null."""
        return log_mean_exp(self.log_by_size)


def log_mean_exp(logs: Floats) -> Floats:
    """Return log(mean(exp(logs))) over the last axis, without overflow."""
    top = logs.max(axis=-1, keepdims=True)
    result: Floats = (top + np.log(np.mean(np.exp(logs - top), axis=-1, keepdims=True)))[..., 0]
    return result


@dataclass(frozen=True, slots=True, eq=False)
class EffectBets:
    """A confidence sequence for a mean in [-1, 1]: every effect on a grid is bet against from both sides."""

    above: Bets
    below: Bets

    @classmethod
    def start(cls) -> Self:
        """Return the state before the first value: the whole range is possible."""
        return cls(Bets.against(EFFECT_GRID), Bets.against(EFFECT_GRID))

    def bet(self, values: ArrayLike) -> "EffectBets":
        """Return the state after `values`, each in [-1, 1]."""
        x = np.asarray(values, dtype=np.float64)
        return EffectBets(self.above.bet(x), self.below.bet(-x))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return an interval that holds the mean at all times at once with probability >= 1 - alpha.

        The ends are the outermost grid points that are not excluded, widened by one step: never too narrow.
        """
        return bound(self.above, alpha / 2), -bound(self.below, alpha / 2)


def bound(bets: Bets, alpha: float) -> float:
    """Return the greatest null that the wealth refutes at `alpha`, else -1."""
    refuted = bets.nulls[bets.log_wealth() >= -math.log(alpha)]
    return float(refuted.max()) if len(refuted) else -1.0


def log_mean_of_two(first: float, second: float) -> float:
    """Return the log of the mean of two e-values given as logs: an e-value again (a two-sided test)."""
    return float(np.logaddexp(first, second) - math.log(2))


def sample_ratio_log_e(counts: Iterable[tuple[float, int, int]]) -> float:
    """Return the log e-value against "each unit went to the canary with the intended probability".

    `counts` holds (intended weight, canary units, stable units) for each stage, so that the weight may change over
    time. A mixture of likelihood ratios over odds ratios: Lindon and Malek, "Anytime-valid inference for multinomial
    count data", arXiv:2011.03567, with a finite mixture in place of their Dirichlet.
    """
    logs = np.zeros(len(ODDS_RATIOS))
    for weight, canary, stable in counts:
        if not 0.0 < weight < 1.0:
            raise ValueError(f"intended weight {weight} leaves nothing to draw: count only units of a stage in (0, 1)")
        tilted = weight * ODDS_RATIOS / (weight * ODDS_RATIOS + 1.0 - weight)
        logs = logs + canary * np.log(tilted / weight) + stable * np.log((1.0 - tilted) / (1.0 - weight))
    return float(log_mean_exp(logs))


def wilson_interval(successes: float, num: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a share (JASA 22, 1927); (0, 1) without data. For one look only."""
    if num == 0:
        return 0.0, 1.0
    share, z2 = successes / num, z * z
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = z / (1 + z2 / num) * math.sqrt(max(0.0, share * (1 - share) / num + z2 / (4 * num * num)))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[object], *, seed: int, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Return the percentile interval of the mean of `values` when whole clusters are drawn anew with replacement.

    Values of one cluster (answers to one prompt, acts of one user) may depend on each other; clusters may not. For one
    look only. Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.

    Raises:
        ValueError: there are fewer than two clusters, or the lengths differ.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster names: give one name for each value")
    order = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    if len(order) < 2:
        raise ValueError(f"{len(order)} clusters cannot be drawn anew: at least 2 are needed")
    member = np.array([order[name] for name in clusters])
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))
    sizes = np.bincount(member)
    picks = np.random.default_rng(seed).integers(0, len(order), size=(draws, len(order)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
