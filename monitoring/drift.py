"""Has a stream of numbers in [0, 1] left its baseline? The Shiryaev–Roberts e-detector, with a knob for false alarms.

Pure. Each bet multiplies its stake by 1 + bet × (value − centre), a fair or losing game while the stream's mean stays
within `tolerance` of the baseline, and starts anew at every event: M ← (M + 1)(1 + bet × (value − centre)). The mean of
such M over bets is an e-detector: an alarm at M ≥ A comes by chance once in A events or less often, whatever the
distribution and without independence (Shin, Ramdas, Rinaldo, "E-detectors", New England Journal of Statistics in Data
Science 2023). The baseline is estimated, so the tolerance is at least three of its standard errors.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Bets, as shares of the largest one that cannot lose everything: from shifts of 0.1 sd to ones of 1 sd."""
MIN_TOLERANCE = 0.01
STANDARD_ERRORS = 3
NUM_RECENT = 500


@dataclass(frozen=True, eq=False)
class Detector:
    """Stakes against one baseline, upwards and downwards."""

    bets: Numbers
    centres: Numbers
    log_m: Numbers


@dataclass(frozen=True, eq=False)
class Stream:
    """One stream: its first `num_baseline` values are the baseline, the rest are watched.

    With `by_rank` values may be any numbers: each counts as its rank among the baseline's.
    """

    num_baseline: int
    by_rank: bool = False
    early: Numbers = field(default_factory=lambda: np.empty(0))
    "The baseline's values, sorted once they are all there."
    recent: Numbers = field(default_factory=lambda: np.empty(0))
    detector: Detector | None = None


def start_detector(mean: float, tolerance: float) -> Detector:
    """Return a detector for a stream whose mean lies within `tolerance` of `mean`, inside (0, 1)."""
    high, low = min(mean + tolerance, 1 - 1e-6), max(mean - tolerance, 1e-6)
    upward = [(share / high, high) for share in SHARES]
    downward = [(-share / (1 - low), low) for share in SHARES]
    bets, centres = np.array(upward + downward).T
    return Detector(bets, centres, np.full(len(bets), -np.inf))


def feed(detector: Detector, values: Numbers) -> Detector:
    """Return the detector after `values` in [0, 1], in their order; at once or one by one is the same."""
    if not len(values):
        return detector
    gains = np.cumsum(np.log1p(detector.bets * (values[:, None] - detector.centres)), axis=0)
    # M_t = S_t (M_0 + Σ_{j=1..t} 1 / S_{j-1}), with S the product of the factors so far.
    starts = np.vstack([np.zeros((1, len(detector.bets))), -gains[:-1]])
    log_sum = np.logaddexp(detector.log_m, np.logaddexp.reduce(starts, axis=0))
    return replace(detector, log_m=gains[-1] + log_sum)


def log_e(detector: Detector) -> float:
    """Return the log of the mean stake: the evidence that the stream has left its baseline."""
    return float(np.logaddexp.reduce(detector.log_m) - math.log(len(detector.log_m)))


def threshold_log(events_between_false_alarms: float, num_streams: int) -> float:
    """Return the log evidence at which all streams together give a false alarm at most that often."""
    return math.log(events_between_false_alarms * num_streams)


def watch(stream: Stream, values: Numbers) -> Stream:
    """Return the stream after more values."""
    if stream.detector is None:
        missing = stream.num_baseline - len(stream.early)
        stream, values = collect(stream, values[:missing]), values[missing:]
    if stream.detector is None or not len(values):
        return stream
    scaled = scale(stream, values)
    recent = np.concatenate([stream.recent, scaled])[-NUM_RECENT:]
    return replace(stream, recent=recent, detector=feed(stream.detector, scaled))


def collect(stream: Stream, values: Numbers) -> Stream:
    """Return the stream with more of its baseline, and with a detector once it is complete."""
    stream = replace(stream, early=np.concatenate([stream.early, values]))
    if len(stream.early) < stream.num_baseline:
        return stream
    stream = replace(stream, early=np.sort(stream.early))
    scaled = scale(stream, stream.early)
    error = float(scaled.std(ddof=1)) / math.sqrt(len(scaled))
    tolerance = max(MIN_TOLERANCE, STANDARD_ERRORS * error)
    return replace(stream, detector=start_detector(float(scaled.mean()), tolerance))


def scale(stream: Stream, values: Numbers) -> Numbers:
    """Return values in [0, 1]: as they are, or by their rank among the baseline's, ties in the middle."""
    if not stream.by_rank:
        return values
    left, right = np.searchsorted(stream.early, values, "left"), np.searchsorted(stream.early, values, "right")
    ranks: Numbers = (left + right) / (2 * len(stream.early))
    return ranks


def evidence(stream: Stream) -> float:
    """Return the log evidence so far; 0 before anything was watched."""
    return log_e(stream.detector) if stream.detector is not None and len(stream.recent) else 0.0


def baseline_mean(stream: Stream) -> float | None:
    """Return the baseline's mean on the scale that is watched; None while it is not complete."""
    return None if stream.detector is None else float(scale(stream, stream.early).mean())
