"""Feedback that stops is noticed, and feedback that varies is left alone."""

from datetime import UTC, datetime

import numpy as np
import pytest

from hone.capture import (
    NUM_HOURS,
    PAST_H,
    WATCHED_H,
    WEEK_H,
    Capture,
    Numbers,
    evidence,
    expected,
    threshold_log,
    watch,
)

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
THRESHOLD = threshold_log(1)


def a_month(rate: float = 0.1, per_hour: float = 80, seed: int = 1) -> tuple[Numbers, Numbers]:
    """Answers and thumbs of thirty days: quiet nights and weekends."""
    rng = np.random.default_rng(seed)
    hours = np.arange(NUM_HOURS)
    mean = per_hour * (1 + 0.9 * np.sin(2 * np.pi * hours / 24)) * np.where(hours % WEEK_H >= 120, 0.4, 1)
    answers = rng.poisson(mean).astype(float)
    return answers, rng.binomial(answers.astype(int), rate).astype(float)


def judged(answers: Numbers, events: Numbers, now: datetime = NOW) -> Capture:
    return watch(answers, {"thumbs": events}, now)[0]


def test_a_button_that_works_is_left_alone() -> None:
    for seed in range(20):
        assert not judged(*a_month(seed=seed)).is_broken(THRESHOLD)


def test_a_button_that_broke_yesterday_is_noticed_with_what_is_missing() -> None:
    answers, events = a_month()
    events[-24:] = 0
    found = judged(answers, events)
    assert found.is_broken(THRESHOLD)
    assert found.seen == 0
    assert found.usual == pytest.approx(0.1 * answers[-24:].sum(), rel=0.2)


def test_one_kind_that_broke_does_not_hide_behind_another() -> None:
    answers, events = a_month()
    broken = events.copy()
    broken[-24:] = 0
    both = watch(answers, {"edit": events, "thumbs": broken}, NOW)
    assert [(found.kind, found.is_broken(threshold_log(2))) for found in both] == [("edit", False), ("thumbs", True)]


def test_a_quiet_night_is_no_silence() -> None:
    answers, events = a_month()
    answers[-8:], events[-8:] = 0, 0
    assert judged(answers, events).log_e < 3


def test_a_week_with_three_quarters_of_the_usual_is_left_alone() -> None:
    answers, events = a_month()
    events[-WATCHED_H:] = np.floor(0.75 * events[-WATCHED_H:])
    assert not judged(answers, events).is_broken(THRESHOLD)


def test_a_batch_job_that_asks_much_and_never_votes_is_left_alone() -> None:
    answers, events = a_month()
    answers[-24:] *= 20
    assert not judged(answers, events).is_broken(THRESHOLD)


def test_people_in_bursts_need_more_evidence() -> None:
    answers, events = a_month()
    rng = np.random.default_rng(2)
    bursts = rng.poisson(events / 5) * 5.0
    plain, bursty = expected(answers, events, 1.0)[1], expected(answers, bursts, 1.0)[1]
    assert plain == pytest.approx(1, abs=0.3)
    assert bursty == pytest.approx(5, rel=0.3)


def test_a_new_app_is_not_judged() -> None:
    answers, events = a_month()
    answers[: -100 - WATCHED_H], events[: -100 - WATCHED_H], events[-24:] = 0, 0, 0
    found = judged(answers, events)
    assert 0 < found.baseline < 1
    assert found.log_e == 0


def test_a_kind_that_hardly_ever_comes_is_not_judged() -> None:
    answers, events = a_month(rate=0.0005)
    events[-24:] = 0
    assert judged(answers, events).log_e == 0


def test_an_hour_that_has_just_begun_is_not_expected_to_be_full() -> None:
    answers, events = a_month()
    answers[-1], events[-1] = 0, 0
    assert judged(answers, events, NOW.replace(second=5)).log_e < 1
    answers[-1] = 1e6  # and its limit on growth is a part of an hour's, too
    assert judged(answers, events, NOW.replace(second=36)).log_e < 3


def test_evidence_is_that_of_the_published_recursion() -> None:
    seen, usual = np.array([3.0, 0.0, 0.0]), np.array([4.0, 5.0, 6.0])
    total = 0.0
    for drop in (0.5, 0.2, 0.05):
        r = 0.0
        for k, mean in zip(seen, 0.7 * usual / 2, strict=True):
            r = (r + 1) * drop ** (k / 2) * np.exp((1 - drop) * mean)
        total += r / 3
    assert evidence(seen, usual, 2.0) == pytest.approx(np.log(total))


def test_the_watched_hours_are_no_part_of_what_they_are_compared_with() -> None:
    answers, events = a_month()
    other = events.copy()
    other[PAST_H:] = 0
    usual, dispersion = expected(answers, events, 1.0)
    again, same = expected(answers, other, 1.0)
    assert np.array_equal(usual, again)
    assert dispersion == same
