"""When a split that the cluster accepted counts as without effect, and how far the cure goes."""

import math

import pytest

from serving.traffic.effect import CURE_PAUSE_S, Effect, contradicts

SPLIT = {"old": 0.75, "new": 0.25}


@pytest.mark.parametrize(
    ("wanted", "counts", "found"),
    [
        pytest.param(SPLIT, {"old": 0, "new": 0}, False, id="no requests"),
        pytest.param(SPLIT, {"old": 750, "new": 250}, False, id="as intended"),
        pytest.param(SPLIT, {"old": 500, "new": 500}, True, id="the split before"),
        pytest.param(SPLIT, {"old": 100, "new": 0}, True, id="a canary that never gets any"),
        pytest.param(SPLIT, {"old": 8, "new": 1}, False, id="too few to say"),
        pytest.param({"old": 1.0}, {"old": 900, "new": 2}, False, id="two leftovers"),
        pytest.param({"old": 1.0}, {"old": 900, "new": 3}, True, id="an arm that has no share"),
        pytest.param({"old": 1.0}, {"old": 900}, False, id="stable alone"),
    ],
)
def test_counts_contradict_a_split_only_where_chance_does_not_explain_them(
    wanted: dict[str, float], counts: dict[str, int], found: bool
) -> None:
    assert contradicts(wanted, counts) is found


def test_what_is_read_back_contradicts_at_once() -> None:
    assert Effect(SPLIT).is_contradicted({"old": 1.0}, None, settled=False)


def test_requests_before_the_split_was_settled_do_not_count() -> None:
    effect = Effect({"old": 1.0})
    assert not effect.is_contradicted({"old": 1.0}, {"new": 500}, settled=False)
    assert not effect.is_contradicted({"old": 1.0}, {"new": 900}, settled=True)
    assert not effect.is_contradicted({"old": 1.0}, {"new": 902}, settled=True)
    assert effect.is_contradicted({"old": 1.0}, {"new": 903}, settled=True)


def test_an_arm_that_starts_anew_counts_from_there() -> None:
    effect = Effect({"old": 1.0})
    effect.is_contradicted({"old": 1.0}, {"old": 50, "new": 900}, settled=True)
    assert not effect.is_contradicted({"old": 1.0}, {"old": 50, "new": 4}, settled=True)
    assert effect.is_contradicted({"old": 1.0}, {"old": 50, "new": 7}, settled=True)


def test_nobody_who_counts_is_no_contradiction() -> None:
    effect = Effect({"old": 1.0})
    assert not any(effect.is_contradicted({"old": 1.0}, None, settled=True) for _ in range(3))


def test_a_cure_gets_its_time_before_the_next_and_there_are_three() -> None:
    effect = Effect(SPLIT)
    assert [effect.cure(now) for now in (0.0, 1.0, CURE_PAUSE_S, 2 * CURE_PAUSE_S, 9 * CURE_PAUSE_S)] == [1, 1, 2, 3, 3]
    assert math.isfinite(effect.cured_at)
