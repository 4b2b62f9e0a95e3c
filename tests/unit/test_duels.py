import numpy as np
import pytest

from hone.store.rollout_duels import Duel
from serving.duels import contrasts, describe_duels


def test_being_the_second_answer_cancels_between_the_two_orders() -> None:
    always_second = [Duel(canary_second=n % 2 == 0, second_preferred=1) for n in range(20)]
    assert contrasts(always_second) == [0.0] * 10


def test_a_canary_that_is_preferred_in_either_order_has_a_contrast_of_one() -> None:
    assert contrasts([Duel(True, 1), Duel(False, -1)]) == [1.0]
    assert contrasts([Duel(True, -1), Duel(False, 1)]) == [-1.0]
    assert contrasts([Duel(True, 1), Duel(True, 1)]) == [], "one order alone says nothing"


def test_models_that_are_alike_have_no_contrast_however_much_a_second_answer_is_liked() -> None:
    rng = np.random.default_rng(3)
    duels = [Duel(bool(rng.random() < 0.5), 1 if rng.random() < 0.8 else -1) for _ in range(3000)]
    found = describe_duels(duels, 0.05)
    assert found["low"] <= 0.0 <= found["high"]
    assert found["contrast"] == pytest.approx(0.0, abs=0.06)


def test_a_canary_that_people_prefer_is_seen_through_the_order() -> None:
    rng = np.random.default_rng(4)
    duels = []
    for _ in range(2000):
        canary_second = bool(rng.random() < 0.5)
        likes_second = 0.8 if canary_second else 0.5
        duels.append(Duel(canary_second, 1 if rng.random() < likes_second else -1))
    found = describe_duels(duels, 0.05)
    assert found["low"] > 0
    assert found["contrast"] == pytest.approx(0.3, abs=0.06)


def test_without_duels_everything_is_possible() -> None:
    found = describe_duels([], 0.05)
    assert (found["contrast"], found["low"], found["high"]) == (None, -1.0, 1.0)
