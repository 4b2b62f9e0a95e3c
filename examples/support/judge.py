"""The hidden evaluation, for the report only: what users really think of two models' answers to held-out questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.support.corpus import fact_of
from examples.support.taste import Taste, is_correct, score

Floats = npt.NDArray[np.float64]
NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Model B against model A by the hidden taste."""

    num_prompts: int
    num_answers: int
    """Answers of each model."""
    reward_a: Interval
    reward_b: Interval
    correct_a: Interval
    correct_b: Interval
    win_rate: Interval
    """Share of answer pairs in which B's scores higher; a tie counts half."""


def compare(
    questions: Sequence[str], answers_a: Sequence[str], answers_b: Sequence[str], taste: Taste, *, seed: int = 0
) -> Comparison:
    """Compare answers to the same questions, in the same order; a question may occur several times.

    Intervals come from a bootstrap over distinct questions, since answers to one question resemble each other.
    """
    facts = [fact_of(question) for question in questions]
    reward_a, reward_b = (
        np.array([score(taste, fact, text) for fact, text in zip(facts, answers, strict=True)])
        for answers in (answers_a, answers_b)
    )
    correct_a, correct_b = (
        np.array([float(is_correct(fact, text)) for fact, text in zip(facts, answers, strict=True)])
        for answers in (answers_a, answers_b)
    )
    wins = (reward_b > reward_a) + 0.5 * (reward_b == reward_a)
    columns = np.stack([reward_a, reward_b, correct_a, correct_b, wins])
    num_prompts = len(set(questions))
    return Comparison(num_prompts, len(questions), *clustered_means(columns, questions, seed))


def clustered_means(columns: Floats, clusters: Sequence[str], seed: int) -> list[Interval]:
    """Mean of each row of `columns` [measures, answers] with a percentile bootstrap that draws whole clusters."""
    members = np.unique(np.array(clusters), return_inverse=True)[1]
    num_clusters = int(members.max()) + 1
    sums = np.stack([np.bincount(members, weights=row, minlength=num_clusters) for row in columns])
    sizes = np.bincount(members, minlength=num_clusters)
    drawn = np.random.default_rng(seed).integers(num_clusters, size=(NUM_RESAMPLES, num_clusters))
    means = sums[:, drawn].sum(axis=2) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    estimates = columns.mean(axis=1)
    return [Interval(float(e), float(a), float(b)) for e, a, b in zip(estimates, low, high, strict=True)]
