"""Is feedback still captured? Each kind's rate in the last two days against its past at the same hours of the week.

Pure. A broken thumbs button looks like a silent model: nothing is wrong but what is missing. So the number of events of
each hour is compared with what the hour's answers have usually brought. The evidence that less comes in than usual is
a Shiryaev-Roberts sum of Poisson likelihood ratios against the null "at least TOLERANCE of the usual": under it each
ratio's mean is at most one, so that an alarm at A comes by chance once in A hours or less often, if the usual is known
and counts are Poisson (see `monitoring.drift` for the source). Neither is so: the usual is estimated, which the
tolerance is for, and people come in bursts, which the evidence is divided for. `benchmarks/capture.py` measures what
is left.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

WEEK_H = 168
PAST_H = 4 * WEEK_H
WATCHED_H = 48
"""The newest hours, the present one included; they are not part of the past that they are compared with."""
NUM_HOURS = PAST_H + WATCHED_H
TOLERANCE = 0.7
"""Share of the usual rate that counts as usual: a week of holidays is no broken button."""
DROPS = (0.5, 0.2, 0.05)
"""Alternatives, as shares of what the null allows: half of it, a fifth, next to nothing."""
PRIOR_EVENTS = 20.0
"""An hour of the week with fewer events than that borrows from all hours."""
MAX_GROWTH = 1.25
"""Answers beyond this many times the usual may be of another sort, such as a batch job: they are no reason to expect
more feedback."""
MIN_EVENTS, MIN_HOURS = 100, WEEK_H
FALSE_ALARM_H = 10_000.0


@dataclass(frozen=True)
class Capture:
    """How one kind of feedback comes in."""

    kind: str
    baseline: float
    "How much of the past is there that a judgement needs, 0 to 1."
    seen: float
    "Events of the last 24 hours."
    usual: float
    "What the answers of these hours have usually brought."
    log_e: float
    "Log evidence that less than TOLERANCE of it comes in now; 0 while the baseline is not complete."

    def is_broken(self, threshold: float) -> bool:
        """Say whether the evidence is over the threshold."""
        return self.log_e >= threshold


def threshold_log(num_kinds: int, false_alarm_h: float = FALSE_ALARM_H) -> float:
    """Return the log evidence at which all kinds together give a false alarm once in `false_alarm_h` hours or less."""
    return math.log(false_alarm_h * max(1, num_kinds))


def watch(answers: Numbers, events: Mapping[str, Numbers], now: datetime) -> list[Capture]:
    """Judge each kind by its hourly counts, NUM_HOURS of them, the last one the present hour so far.

    `answers` are those of live traffic. A kind that the past does not know has no baseline, and is not judged.
    """
    part = (now.minute * 60 + now.second) / 3600
    return [judge(kind, answers, counts, part) for kind, counts in sorted(events.items())]


def judge(kind: str, answers: Numbers, events: Numbers, part: float) -> Capture:
    """Judge one kind. `part` is how much of the present hour is over."""
    usual, dispersion = expected(answers, events, part)
    past = slice(0, PAST_H)
    num_hours = np.count_nonzero(np.cumsum(answers[past]))
    baseline = min(1.0, float(events[past].sum()) / MIN_EVENTS, num_hours / MIN_HOURS)
    day = slice(-24, None)
    seen, typical = float(events[day].sum()), float(usual[day].sum())
    log_e = evidence(events[-WATCHED_H:], usual[-WATCHED_H:], dispersion) if baseline >= 1 else 0.0
    return Capture(kind, baseline, seen, typical, log_e)


def expected(answers: Numbers, events: Numbers, part: float) -> tuple[Numbers, float]:
    """Return the usual number of events in each hour given its answers, and how much more than Poisson counts vary."""
    slots = np.arange(NUM_HOURS) % WEEK_H
    past = slice(0, PAST_H)
    n, k = (np.bincount(slots[past], values[past], WEEK_H) for values in (answers, events))
    rate = k.sum() / max(n.sum(), 1.0)
    prior_n = PRIOR_EVENTS / rate if rate else 1.0
    rates = (k + prior_n * rate) / (n + prior_n)
    first = int(np.argmax(answers > 0))
    weeks = np.bincount(slots[first:PAST_H], minlength=WEEK_H).clip(min=1)
    most = MAX_GROWTH * (k + PRIOR_EVENTS * (n / max(n.sum(), 1.0))) / weeks
    most_now = most[slots]
    most_now[-1] *= part
    usual = np.minimum(answers * rates[slots], most_now)
    fit = answers[past] * rates[slots[past]]
    # The rates were fitted to the same hours: of w weeks a slot's own spread keeps (w - 1) / w.
    freedom = max(1 - 1 / max(float(weeks.mean()), 1.5), 1 / 3)
    dispersion = float(((events[past] - fit) ** 2).sum() / max(fit.sum(), 1.0)) / freedom
    return usual, max(1.0, dispersion)


def evidence(events: Numbers, usual: Numbers, dispersion: float) -> float:
    """Return the log of the mean, over the alternatives, of the likelihood ratios since each beginning, summed."""
    seen, null = events / dispersion, TOLERANCE * usual / dispersion
    sums = []
    for drop in DROPS:
        log_r = -math.inf
        for gain in seen * math.log(drop) + (1 - drop) * null:
            log_r = float(np.logaddexp(log_r, 0.0)) + gain
        sums.append(log_r)
    return float(np.logaddexp.reduce(sums)) - math.log(len(DROPS))
