"""The e-SR detector on simulated streams with fixed seeds."""

import math

import numpy as np
import pytest

from monitoring.drift import (
    Detector,
    Stream,
    baseline_mean,
    evidence,
    feed,
    log_e,
    start_detector,
    threshold_log,
    watch,
)

MEAN, SD = 0.7, math.sqrt(0.7 * 0.3)
STEP = 50


def votes(rng: np.random.Generator, number: int, mean: float = MEAN) -> np.ndarray:
    return (rng.random(number) < mean).astype(float)


def by_definition(detector: Detector, values: np.ndarray) -> float:
    """The recursion as it stands in the paper, one event after the other."""
    stakes = np.exp(detector.log_m)
    for value in values:
        stakes = (stakes + 1) * (1 + detector.bets * (value - detector.centres))
    return math.log(stakes.mean())


def test_feeding_many_values_at_once_is_the_recursion_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    start, values = start_detector(MEAN, 0.01), rng.random(300)
    at_once = feed(start, values)
    in_parts = start
    for part in np.array_split(values, 7):
        in_parts = feed(in_parts, part)
    assert log_e(at_once) == pytest.approx(by_definition(start, values), rel=1e-9)
    assert log_e(in_parts) == pytest.approx(log_e(at_once), rel=1e-9)
    assert log_e(feed(at_once, np.empty(0))) == log_e(at_once)


def test_no_bet_can_lose_everything() -> None:
    for mean, tolerance in [(0.7, 0.01), (0.001, 0.01), (0.995, 0.05), (0.5, 0.3)]:
        detector = start_detector(mean, tolerance)
        worst = np.minimum(1 - detector.bets * detector.centres, 1 + detector.bets * (1 - detector.centres))
        assert worst.min() >= 0.5 - 1e-9


def test_the_evidence_of_a_fair_game_grows_no_faster_than_the_number_of_events() -> None:
    rng = np.random.default_rng(2)
    ends = [math.exp(log_e(feed(start_detector(MEAN, 0.0), votes(rng, 200)))) for _ in range(400)]
    assert 0.5 < np.mean(ends) / 200 < 1.5, "E[M_t] = t, and the alarm at A comes once in A events at most"


def test_no_false_alarm_in_a_million_events_of_a_stream_that_stays() -> None:
    rng = np.random.default_rng(3)
    highest = max(peak(rng, num_baseline=2000, number=20_000) for _ in range(50))
    assert highest < threshold_log(1e6, 1)


def peak(rng: np.random.Generator, num_baseline: int, number: int) -> float:
    """The largest evidence, looked at every 500 events."""
    stream = watch(Stream(num_baseline), votes(rng, num_baseline))
    found = 0.0
    for _ in range(number // 500):
        stream = watch(stream, votes(rng, 500))
        found = max(found, evidence(stream))
    return found


@pytest.mark.parametrize(
    ("num_baseline", "shift_sd", "bound"), [(20_000, 0.2, 1_100), (20_000, 0.5, 250), (2_000, 0.5, 300)]
)
def test_a_fall_is_found_soon_after_it_happens(num_baseline: int, shift_sd: float, bound: int) -> None:
    rng = np.random.default_rng(4)
    delays = [delay(rng, num_baseline, MEAN - shift_sd * SD) for _ in range(15)]
    assert np.median(delays) <= bound


def test_a_rise_is_found_too() -> None:
    rng = np.random.default_rng(5)
    assert np.median([delay(rng, 20_000, MEAN + 0.2 * SD) for _ in range(9)]) <= 1_100


def delay(rng: np.random.Generator, num_baseline: int, mean: float, limit: int = 5_000) -> int:
    """Events from the shift to the alarm, after 2,000 without one."""
    stream = watch(Stream(num_baseline), votes(rng, num_baseline))
    stream = watch(stream, votes(rng, 2_000))
    for number in range(STEP, limit + 1, STEP):
        stream = watch(stream, votes(rng, STEP, mean))
        if evidence(stream) >= threshold_log(1e6, 1):
            return number
    return limit


def test_nothing_is_said_before_the_baseline_is_complete() -> None:
    stream = watch(Stream(100), np.ones(99))
    assert (stream.detector, evidence(stream), baseline_mean(stream)) == (None, 0.0, None)
    stream = watch(stream, np.zeros(1))
    assert baseline_mean(stream) == 0.99 and evidence(stream) == 0.0, "it is there, and nothing was watched yet"


def test_one_batch_that_spans_the_end_of_the_baseline_is_split_there() -> None:
    rng = np.random.default_rng(6)
    values = votes(rng, 900)
    at_once = watch(Stream(500), values)
    in_parts = watch(watch(Stream(500), values[:333]), values[333:])
    assert evidence(at_once) == pytest.approx(evidence(in_parts)) != 0.0
    assert len(at_once.early) == 500 and len(at_once.recent) == 400


def test_a_short_baseline_is_given_more_tolerance_than_a_long_one() -> None:
    rng = np.random.default_rng(7)
    short, long = (watch(Stream(number), votes(rng, number)).detector for number in (500, 50_000))
    assert short and long
    width = [float(np.ptp(detector.centres)) / 2 for detector in (short, long)]
    assert width[0] == pytest.approx(3 * SD / math.sqrt(500), rel=0.1)
    assert width[1] == pytest.approx(0.01)


def test_rewards_of_any_scale_are_watched_by_their_rank() -> None:
    rng = np.random.default_rng(8)
    stream = watch(Stream(2_000, by_rank=True), rng.normal(-300, 40, 2_000))
    assert baseline_mean(stream) == pytest.approx(0.5)
    calm = watch(stream, rng.normal(-300, 40, 2_000))
    shifted = watch(stream, rng.normal(-320, 40, 2_000))
    assert evidence(calm) < 10 < threshold_log(1e6, 2) < evidence(shifted)


def test_more_streams_share_the_same_number_of_false_alarms() -> None:
    assert threshold_log(1e6, 2) == pytest.approx(threshold_log(1e6, 1) + math.log(2))
