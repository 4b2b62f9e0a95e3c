"""What a sweep has shown: each trial, and of each factor what a level does, the others being held. Pure.

The trials' values are fitted by a sum of one effect for each level of each factor (least squares). A level's mean is
the fit's at that level, averaged over all levels of the other factors: the marginal mean of Searle, Speed and
Milliken (The American Statistician 34, 1980), which is the plain mean in a full grid and corrects for levels that met
other company where the grid is not full. Its interval is Student's, from what the fit leaves unexplained. Effects that
two factors only have together are part of that rest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from training.sweep.table import Level, Params

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
NUM_BINS = 3
"""Parts into which a range's trials are cut, as many in each."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial; `value` is None where it failed, and a pruned one's is not compared."""

    number: int
    params: Params
    state: str
    "done, pruned, failed or running."
    value: float | None = None
    values: tuple[float, ...] = ()
    "Of each repeat."
    seconds: float | None = None
    runs: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LevelEffect:
    """What one level does."""

    level: str
    num_trials: int
    mean: float
    half_width: float | None
    "Of the interval; None: no trials are left to estimate it from."
    centre: float | None = None
    "Of a numeric level: where it stands on an axis."


@dataclass(frozen=True, slots=True)
class FactorEffect:
    """What one factor does."""

    name: str
    importance: float | None
    levels: tuple[LevelEffect, ...] = field(default=())


def effects(done: Sequence[Trial], space: Mapping[str, bool], importance: Mapping[str, float]) -> list[FactorEffect]:
    """Return what each factor does, the most important first.

    Args:
        done: trials with a value.
        space: factor -> whether it is a range, whose trials are put into bins.
        importance: factor -> its share of the variance, where it is known.
    """
    if not done:
        return []
    labels = {name: binned(name, done) if is_range else listed(name, done) for name, is_range in space.items()}
    values = np.array([trial.value for trial in done], dtype=float)
    fit = Fit.of([names for names, _ in labels.values()], values)
    found = []
    for number, (name, (members, centres)) in enumerate(labels.items()):
        levels = []
        for level in sorted(set(members), key=lambda level: (centres[level] is None, centres[level] or 0.0, level)):
            mean, half = fit.marginal(number, level)
            levels.append(LevelEffect(level, members.count(level), mean, half, centres[level]))
        found.append(FactorEffect(name, importance.get(name), tuple(levels)))
    return sorted(found, key=lambda factor: -(factor.importance or 0.0))


def listed(name: str, done: Sequence[Trial]) -> tuple[list[str], dict[str, float | None]]:
    """Return each trial's level of a factor, and where numeric ones stand."""
    levels = [trial.params[name] for trial in done]
    return [text(level) for level in levels], {text(level): number_of(level) for level in levels}


def binned(name: str, done: Sequence[Trial]) -> tuple[list[str], dict[str, float | None]]:
    """Return the part of its range that each trial's level lies in, and the middle of each part."""
    levels = [float(trial.params[name]) for trial in done]
    order = sorted(set(levels))
    num = min(NUM_BINS, len(order))
    parts = [order[len(order) * k // num : len(order) * (k + 1) // num] for k in range(num)]
    names = {
        level: f"{part[0]:.3g} to {part[-1]:.3g}" if len(part) > 1 else text(part[0])
        for part in parts
        for level in part
    }
    centres: dict[str, float | None] = {names[part[0]]: float(np.median(part)) for part in parts}
    return [names[level] for level in levels], centres


def text(level: Level) -> str:
    """Return a level as a name."""
    return f"{level:.3g}" if isinstance(level, float) else str(level)


def number_of(level: Level) -> float | None:
    """Return a level as a number, or None: it is none."""
    return None if isinstance(level, bool | str) else float(level)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A least-squares fit of one effect a level; columns of one factor add up to zero."""

    names: list[list[str]]
    "Of each factor, its levels in the columns' order."
    beta: Floats
    covariance: Floats
    "Of beta, for a residual variance of 1."
    sigma: float
    freedom: int

    @classmethod
    def of(cls, factors: Sequence[Sequence[str]], values: Floats) -> "Fit":
        """Fit the values of n trials, whose levels `factors` gives factor by factor."""
        names = [sorted(set(members)) for members in factors]
        design = np.array([row(names, [members[k] for members in factors]) for k in range(len(values))])
        inverse = np.linalg.pinv(design)
        beta = inverse @ values
        freedom = len(values) - int(np.linalg.matrix_rank(design))
        rest = float(((values - design @ beta) ** 2).sum())
        sigma = math.sqrt(rest / freedom) if freedom else math.nan
        return cls(names, beta, inverse @ inverse.T, sigma, freedom)

    def marginal(self, factor: int, level: str) -> tuple[float, float | None]:
        """Return a level's marginal mean, and half the width of its interval, or None without degrees of freedom."""
        at = row(self.names, [level if k == factor else None for k in range(len(self.names))])
        mean = float(at @ self.beta)
        if not self.freedom:
            return mean, None
        wide = float(student.ppf(0.5 + CONFIDENCE / 2, self.freedom))
        return mean, wide * self.sigma * math.sqrt(max(0.0, float(at @ self.covariance @ at)))


def row(names: Sequence[Sequence[str]], levels: Sequence[str | None]) -> Floats:
    """Return one row of the design: 1, and for each factor its level against the last one; None averages them all."""
    cells = [1.0]
    for known, level in zip(names, levels, strict=True):
        cells += [0.0 if level is None else float(level == name) - float(level == known[-1]) for name in known[:-1]]
    return np.array(cells)
