"""A second opinion that differs in kind from the policy: a bag of words that learnt from other people's choices.

It sees words and length only, so that it cannot share the policy's blind spots. Whoever asked a prompt, or gave a pair
on it, has no part in judging answers to it.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from training.bootstrap import Bootstrap, Interval, ratio

Floats = npt.NDArray[np.float64]

NUM_WORD_BUCKETS = 4096
MIN_PAIRS = 50
"""Fewer pairs of other people than this judge nothing."""


@dataclass(frozen=True, slots=True)
class Preference:
    """What the judge learns from: who preferred what, on which prompt."""

    person: str
    prompt_key: str
    chosen: str
    rejected: str
    weight: float


class BagOfWords:
    """Scores answers by their words and length; one answer is preferred when its score is higher."""

    def __init__(self, preferences: Sequence[Preference]) -> None:
        """Fit a logistic regression on feature differences; each pair counts in both directions."""
        self._words = HashingVectorizer(n_features=NUM_WORD_BUCKETS, alternate_sign=False, norm=None)
        chosen, rejected = [p.chosen for p in preferences], [p.rejected for p in preferences]
        self._tfidf = TfidfTransformer(sublinear_tf=True).fit(self._words.transform(chosen + rejected))
        difference = self._features(chosen) - self._features(rejected)
        weights = np.array([p.weight for p in preferences])
        self._model = LogisticRegression(fit_intercept=False, max_iter=200).fit(
            sparse.vstack([difference, -difference]),
            np.repeat([1, 0], len(preferences)),
            sample_weight=np.tile(weights, 2),
        )

    def scores(self, answers: Sequence[str]) -> Floats:
        """Return one score an answer; only differences mean anything."""
        found: Floats = self._model.decision_function(self._features(answers))
        return found

    def _features(self, answers: Sequence[str]) -> sparse.csr_matrix:
        length = np.log1p([[len(answer)] for answer in answers])
        return sparse.hstack([self._tfidf.transform(self._words.transform(answers)), length]).tocsr()


class CrossFitted:
    """A family of judges, each ignorant of some people; the right one is fitted at first use."""

    def __init__(self, preferences: Sequence[Preference], num_folds: int) -> None:
        """Put every person in one of `num_folds` folds, by hash."""
        self._preferences = preferences
        self._num_folds = num_folds
        self._judges: dict[frozenset[int], BagOfWords | None] = {}
        self._people: dict[str, set[str]] = {}
        for preference in preferences:
            self._people.setdefault(preference.prompt_key, set()).add(preference.person)

    def judge_for(self, prompt_key: str) -> BagOfWords | None:
        """Return a judge that has seen no pair of anyone who gave one on this prompt; None: too few are left."""
        return self.without(frozenset(self.fold(person) for person in self._people.get(prompt_key, ())))

    def without(self, folds: frozenset[int]) -> BagOfWords | None:
        """Return the judge that learnt from the people outside `folds`."""
        if folds not in self._judges:
            others = [p for p in self._preferences if self.fold(p.person) not in folds]
            self._judges[folds] = BagOfWords(others) if len(others) >= MIN_PAIRS else None
        return self._judges[folds]

    def fold(self, person: str) -> int:
        """Return the fold of a person."""
        return zlib.crc32(person.encode()) % self._num_folds

    def accuracy(self, bootstrap: Bootstrap) -> Interval | None:
        """Return how often the judges agree with people that they have not seen, clustered by person."""
        hits: dict[str, list[float]] = {}
        for fold in range(self._num_folds):
            held_out = [p for p in self._preferences if self.fold(p.person) == fold]
            judge = self.without(frozenset([fold]))
            if judge is None or not held_out:
                continue
            gaps = judge.scores([p.chosen for p in held_out]) - judge.scores([p.rejected for p in held_out])
            for preference, gap in zip(held_out, gaps, strict=True):
                hits.setdefault(preference.person, []).append(wins(gap) * preference.weight)
        return clustered(hits, self._weights(), bootstrap) if hits else None

    def _weights(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for p in self._preferences:
            totals[p.person] = totals.get(p.person, 0.0) + p.weight
        return totals


def clustered(hits: Mapping[str, Sequence[float]], totals: Mapping[str, float], bootstrap: Bootstrap) -> Interval:
    """Return the ratio of hits to totals over the clusters that have hits."""
    names = sorted(hits)
    numerator = np.array([sum(hits[name]) for name in names])
    return ratio(numerator, np.array([totals[name] for name in names]), bootstrap)


def wins(gap: float) -> float:
    """Return 1 for a higher score, 0.5 for a tie, 0 for a lower one."""
    return float(np.sign(gap) / 2 + 0.5)
