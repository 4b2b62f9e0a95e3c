"""The rules that people use to judge a canary, on equal simulated users; each returns the pair at which it promotes.

Ours is the product's own test. The others are coded from what their documentation and source say they do; thresholds
and windows of the rules that compare shares have the shape of their documentation's examples.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hone.rollout_plan import first_true, wealth_paths
from hone.stats import LAMBDAS_BETTER, LAMBDAS_WORSE, Bets, Floats

ALPHA = 0.05
POWER = 0.8
BASE_RATE = 0.60
Z_ALPHA, Z_POWER = 1.6449, 0.8416
NUM_LOOKS = 10
TENSORZERO_CAP = 10_000
"""Its default limit of answers for each variant."""

Stops = NDArray[np.int64]
"""Pairs until a rule promotes, one for each run; 0 where it never does."""


def fixed_horizon_pairs(lift: float) -> float:
    """Return the users in each arm that a one-sided test with one look needs for 80 % power."""
    stable, canary = BASE_RATE, BASE_RATE + lift
    variance = stable * (1 - stable) + canary * (1 - canary)
    return (Z_ALPHA + Z_POWER) ** 2 * variance / lift**2


@dataclass(frozen=True)
class Votes:
    """Votes of canary and stable users in the order in which they are paired; rows are runs."""

    canary: NDArray[np.bool_]
    stable: NDArray[np.bool_]

    @classmethod
    def draw(cls, lift: float, runs: int, pairs: int, seed: tuple[int, ...]) -> "Votes":
        rng = np.random.default_rng(seed)
        shape = (runs, pairs)
        return cls(rng.random(shape) < BASE_RATE + lift, rng.random(shape) < BASE_RATE)

    @property
    def differences(self) -> Floats:
        return self.canary.astype(np.float64) - self.stable


def stops_of(hits: NDArray[np.bool_], pairs: NDArray[np.int64] | None = None) -> Stops:
    """Return the number of pairs at the first hit of each row; columns are looks after 1, 2, … or `pairs` pairs."""
    first = first_true(hits)
    at = np.append(np.arange(1, hits.shape[1] + 1) if pairs is None else pairs, 0)
    stops: Stops = at[first]
    return stops


def betting(votes: Votes) -> tuple[Stops, Stops]:
    """Return where hone's test promotes and where it rolls back for harm, looked at after every pair."""
    differences = votes.differences
    return (
        stops_of(wealth_paths(differences, 0.0, LAMBDAS_BETTER) >= 1 / ALPHA),
        stops_of(wealth_paths(-differences, 0.0, LAMBDAS_WORSE) >= 1 / ALPHA),
    )


def differs_from_bets(differences: Floats, stops: Stops) -> int:
    """Return how many rows `hone.stats.Bets`, which the controller runs, would not have stopped at that very pair."""
    wrong = 0
    for row, stop in zip(differences, stops, strict=True):
        last = stop or len(row)
        before = Bets.against(0.0, LAMBDAS_BETTER).bet(row[: last - 1])
        after = before.bet(row[last - 1 : last])
        crossed = [float(bets.log_wealth()[0]) >= -np.log(ALPHA) for bets in (before, after)]
        wrong += crossed != [False, bool(stop)]
    return wrong


def z_scores(votes: Votes, pairs: NDArray[np.int64]) -> Floats:
    """Return the pooled z statistic of two shares after these numbers of pairs."""
    canary = np.cumsum(votes.canary, axis=1)[:, pairs - 1]
    stable = np.cumsum(votes.stable, axis=1)[:, pairs - 1]
    pooled = (canary + stable) / (2 * pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: Floats = np.nan_to_num((canary - stable) / np.sqrt(2 * pairs * pooled * (1 - pooled)))
    return scores


def peeked_z(votes: Votes, every: int) -> Stops:
    """One-sided p < .05 at each of many looks: what a dashboard invites to."""
    pairs = np.arange(every, votes.canary.shape[1] + 1, every)
    return stops_of(z_scores(votes, pairs) >= Z_ALPHA, pairs)


def tensorzero(votes: Votes) -> Stops:
    """Track-and-stop: a generalised likelihood ratio above ln((1 + ln t) / delta), from 10 answers of each variant."""
    cap = min(TENSORZERO_CAP, votes.canary.shape[1])
    pairs = np.arange(1, cap + 1)
    canary = np.cumsum(votes.canary[:, :cap], axis=1) / pairs
    stable = np.cumsum(votes.stable[:, :cap], axis=1) / pairs
    variances = np.maximum(canary * (1 - canary), 1e-12) + np.maximum(stable * (1 - stable), 1e-12)
    ratio = pairs * (canary - stable) ** 2 / (2 * variances)
    stopped = (ratio > np.log((1 + np.log(2 * pairs)) / ALPHA)) & (pairs >= 10)
    first = np.minimum(first_true(stopped), cap - 1)
    rows = np.arange(len(canary))
    promotes = stopped[rows, first] & (canary[rows, first] > stable[rows, first])
    return np.where(promotes, first + 1, 0)


@dataclass(frozen=True)
class Boundary:
    """A one-sided group sequential design with equally spaced looks."""

    critical: Floats
    inflation: float
    "Largest number of pairs over that of the fixed horizon."


@cache
def boundary(shape: float) -> Boundary:
    """Return the design with critical values C (looks / k)^shape: 0.5 O'Brien-Fleming, 0 Pocock; both by simulation."""
    rng = np.random.default_rng(7)
    looks = np.arange(1, NUM_LOOKS + 1)
    walks = np.cumsum(rng.standard_normal((200_000, NUM_LOOKS)), axis=1) / np.sqrt(looks)
    form = (NUM_LOOKS / looks) ** shape
    critical = float(np.quantile((walks / form).max(axis=1), 1 - ALPHA)) * form
    low, high = 1.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        drift = (Z_ALPHA + Z_POWER) * np.sqrt(middle * looks / NUM_LOOKS)
        power = ((walks + drift) >= critical).any(axis=1).mean()
        low, high = (low, middle) if power >= POWER else (middle, high)
    return Boundary(critical, high)


def group_sequential(votes: Votes, design: Boundary, planned_lift: float) -> Stops:
    """Ten planned looks at a known largest number of users."""
    largest = design.inflation * fixed_horizon_pairs(planned_lift)
    pairs = np.ceil(largest * np.arange(1, NUM_LOOKS + 1) / NUM_LOOKS).astype(np.int64)
    return stops_of(z_scores(votes, pairs) >= design.critical, pairs)


def flagger_like(lift: float, votes_per_window: int, runs: int, seed: int) -> float:
    """Share that promotes: six windows with a share of at least 0.58 before five without."""
    rng = np.random.default_rng(seed)
    passed = rng.binomial(votes_per_window, BASE_RATE + lift, (runs, 10)) >= 0.58 * votes_per_window - 1e-9
    return float((passed.sum(axis=1) >= 6).mean())  # of ten windows, six passes come before five failures or never


def argo_like(lift: float, votes_per_window: int, runs: int, seed: int, *, strict: bool) -> float:
    """Share that promotes: at most three failed windows, of ten with canary above stable, or of five with tolerance."""
    rng = np.random.default_rng(seed)
    shape = (runs, 10 if strict else 5)
    canary = rng.binomial(votes_per_window, BASE_RATE + lift, shape)
    stable = rng.binomial(votes_per_window, BASE_RATE, shape)
    passed = canary > stable if strict else canary >= stable - 0.02 * votes_per_window - 1e-9
    return float(((~passed).sum(axis=1) <= 3).mean())


def threshold_rules(lift: float, runs: int, seed: int) -> dict[str, Any]:
    """Return the share of promotions of the rules that compare shares, by votes in a window."""
    sizes = (20, 100, 500)
    return {
        "flagger_like": {m: flagger_like(lift, m, runs, seed) for m in sizes},
        "argo_like_tolerance": {m: argo_like(lift, m, runs, seed, strict=False) for m in sizes},
        "argo_like_strict": {m: argo_like(lift, m, runs, seed, strict=True) for m in sizes},
    }
