"""The bag-of-words judge: it learns what people like, never from those whose prompt it judges."""

import random

import pytest

from training.bootstrap import Bootstrap
from training.judge import MIN_PAIRS, BagOfWords, CrossFitted, Preference

FILLER = ["the", "page", "opens", "with", "a", "list", "and", "then", "a", "button", "for", "it"]


def preference(number: int, person: int, *, liked: str = "please", rng: random.Random) -> Preference:
    words = rng.sample(FILLER, 5)
    chosen, rejected = " ".join([*words, liked]), " ".join([*words, "never"])
    return Preference(f"person {person}", f"prompt {number}", chosen, rejected, 1.0)


@pytest.fixture
def preferences() -> list[Preference]:
    rng = random.Random(0)
    return [preference(k, k % 40, rng=rng) for k in range(200)]


def test_it_prefers_what_people_preferred(preferences: list[Preference]) -> None:
    polite, rude = BagOfWords(preferences).scores(["a button please", "a button never"])
    assert polite > rude


def test_who_asked_a_prompt_has_no_part_in_judging_it() -> None:
    """One person likes the opposite, loudly: only judges that never saw that person keep the common taste."""
    rng = random.Random(1)
    others = [preference(k, k % 40, rng=rng) for k in range(200)]
    swapped = [preference(k, k, rng=rng) for k in range(2000)]
    loud = [Preference("loud", "prompt of loud", p.rejected, p.chosen, 1.0) for p in swapped]
    judges = CrossFitted(others + loud, num_folds=5)
    own, foreign = judges.judge_for("prompt of loud"), judges.judge_for("prompt of nobody")
    assert own
    assert foreign
    polite, rude = own.scores(["a button please", "a button never"])
    assert polite > rude
    polite, rude = foreign.scores(["a button please", "a button never"])
    assert polite < rude


def test_its_own_accuracy_is_measured_on_people_it_has_not_seen(preferences: list[Preference]) -> None:
    accuracy = CrossFitted(preferences, 5).accuracy(Bootstrap(200))
    assert accuracy
    assert accuracy.low > 0.9


def test_labels_without_a_pattern_give_a_judge_that_guesses() -> None:
    rng = random.Random(2)
    coin = [
        Preference(
            f"person {k % 50}", f"prompt {k}", " ".join(rng.sample(FILLER, 6)), " ".join(rng.sample(FILLER, 6)), 1
        )
        for k in range(300)
    ]
    accuracy = CrossFitted(coin, 5).accuracy(Bootstrap(200))
    assert accuracy
    assert accuracy.low < 0.5


def test_too_few_other_people_judge_nothing() -> None:
    rng = random.Random(3)
    judges = CrossFitted([preference(k, k, rng=rng) for k in range(MIN_PAIRS - 1)], 5)
    assert judges.judge_for("prompt of nobody") is None
    assert judges.accuracy(Bootstrap(100)) is None
