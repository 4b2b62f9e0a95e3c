"""Answers and feedback by the hour, of live traffic: what capture health is judged by."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.capture import NUM_HOURS, Capture, Numbers, watch

ANSWERS = """
SELECT floor(extract(epoch FROM created_at) / 3600)::bigint, count(*) FROM response
WHERE created_at >= :since AND created_at < :until AND track IN ('stable', 'canary') AND completed AND NOT eval_only
GROUP BY 1
"""

# What was received since then was stored since then: that bounds the scan, by an index over the order of storage.
FEEDBACK = """
SELECT kind, floor(extract(epoch FROM received_at) / 3600)::bigint, count(*) FROM feedback_event
WHERE stored_at >= :stored_since AND received_at >= :since AND received_at < :until
GROUP BY 1, 2
"""
CLOCK_SKEW = timedelta(minutes=10)


def hour_of(moment: datetime) -> int:
    """Return the number of the hour since 1970."""
    return int(moment.timestamp() // 3600)


def read_hours(session: Session, since: datetime, now: datetime) -> tuple[dict[int, int], dict[str, dict[int, int]]]:
    """Return the answers of each hour, and the events of each kind and hour, from `since` on."""
    span = {"since": since, "until": now}
    answers = {hour: number for hour, number in session.execute(text(ANSWERS), span)}
    events: dict[str, dict[int, int]] = {}
    for kind, hour, number in session.execute(text(FEEDBACK), {**span, "stored_since": since - CLOCK_SKEW}):
        events.setdefault(kind, {})[hour] = number
    return answers, events


def column(counts: Mapping[int, int], last_hour: int) -> Numbers:
    """Return the counts of the last NUM_HOURS hours in their order, `last_hour` included."""
    return np.array([counts.get(hour, 0) for hour in range(last_hour - NUM_HOURS + 1, last_hour + 1)], dtype=float)


def read_capture(session: Session, now: datetime) -> list[Capture]:
    """Judge every kind of feedback from the stored rows of the last thirty days."""
    answers, events = read_hours(session, start(now), now)
    return judge_hours(answers, events, now)


def judge_hours(answers: Mapping[int, int], events: Mapping[str, Mapping[int, int]], now: datetime) -> list[Capture]:
    """Judge every kind of feedback."""
    last = hour_of(now)
    return watch(column(answers, last), {kind: column(counts, last) for kind, counts in events.items()}, now)


def start(now: datetime) -> datetime:
    """Return the beginning of the first hour that counts."""
    whole = now.replace(minute=0, second=0, microsecond=0)
    return whole - timedelta(hours=NUM_HOURS - 1)
