"""Users that a duel needs to find a better canary, beside the ordinary test, on the same simulated people.

How good an answer is to a person is a normal number: a part that all answers of a turn share (the person, the
question), a part of each answer, and the canary's advantage. A person who rates says thumbs up where it is above a bar.
Who got a poor first answer asks again; in a duel the other arm answers, and who compares prefers the better of the two.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.rollout_rules import BASE_RATE
from hone.rollout_plan import first_true, wealth_paths
from hone.stats import LAMBDAS_BETTER, Floats

NORMAL = NormalDist()
RATES = 0.20
"""Share of people who rate their first answer, and share of duels whose two answers are compared."""
REGENERATES = 0.10
"""Share of people who ask again."""
USERS = 400_000
RUNS = 40


@dataclass(frozen=True)
class Crowd:
    """What one run sees: differences of the ordinary test and of the duels, and the user who completed each."""

    ordinary: Floats
    ordinary_at: NDArray[np.int64]
    duels: Floats
    duels_at: NDArray[np.int64]


def meet(rng: np.random.Generator, lift: float, shared: float, users: int) -> Crowd:
    """Return what `users` people, half of them canary users, do where the canary's thumbs are better by `lift`.

    `shared` is the share of an answer's variance that is the person's and the question's.
    """
    advantage = NORMAL.inv_cdf(BASE_RATE + lift) - NORMAL.inv_cdf(BASE_RATE)
    canary = rng.random(users) < 0.5
    common = sqrt(shared) * rng.standard_normal(users)
    own = common + sqrt(1 - shared) * rng.standard_normal(users) + advantage * canary
    liked = own > -NORMAL.inv_cdf(BASE_RATE)
    rated = np.flatnonzero(rng.random(users) < RATES)
    asked_again = own < np.quantile(own, REGENERATES)
    compared = np.flatnonzero(asked_again & (rng.random(users) < RATES))
    other = common + sqrt(1 - shared) * rng.standard_normal(users) + advantage * ~canary
    prefers_canary = np.where((other > own) == canary, -1.0, 1.0)
    ordinary, ordinary_at = pair_up(rated, canary, liked.astype(np.float64))
    # One duel of each order makes a contrast: what a second answer is liked for by itself cancels.
    halves, duels_at = pair_up(compared, canary, np.where(canary, prefers_canary, -prefers_canary) / 2)
    return Crowd(ordinary, ordinary_at, halves, duels_at)


def pair_up(units: NDArray[np.int64], canary: NDArray[np.bool_], values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the nth canary unit's value minus the nth stable one's, and the later of the two."""
    ours, theirs = units[canary[units]], units[~canary[units]]
    number = min(len(ours), len(theirs))
    differences: Floats = values[ours[:number]] - values[theirs[:number]]
    return differences, np.maximum(ours[:number], theirs[:number])


def users_until(differences: Floats, at: NDArray[np.int64]) -> float:
    """Return how many people had come when the wealth reached 20; infinite where it never did."""
    first = int(first_true(wealth_paths(differences[None], 0.0, LAMBDAS_BETTER) >= 20.0)[0])
    return float(at[first]) if first < len(at) else float("inf")


def duels_beside_the_test(lift: float, shared: float, seed: int) -> dict[str, float | None]:
    """Return the median users until each finds the canary better, over RUNS crowds, and their ratio."""
    found = []
    contrasts = []
    for run in range(RUNS):
        crowd = meet(np.random.default_rng((seed, run)), lift, shared, USERS)
        found.append((users_until(crowd.ordinary, crowd.ordinary_at), users_until(crowd.duels, crowd.duels_at)))
        contrasts.append(crowd.duels.mean())
    ordinary, duels = np.median(np.array(found), axis=0)
    return {
        "contrast": float(np.mean(contrasts)),
        "users_ordinary": finite(ordinary),
        "users_duels": finite(duels),
        "rated_users_ordinary": finite(ordinary * RATES),
        "duels_compared": finite(duels * REGENERATES * RATES),
        "users_duels_over_ordinary": finite(duels / ordinary) if np.isfinite(ordinary) else None,
        "false_alarms": None if lift else float(np.mean(np.isfinite(np.array(found)[:, 1]))),
    }


def finite(value: float) -> float | None:
    """Return the value, or None where it is not a number that JSON can hold."""
    return float(value) if np.isfinite(value) else None
