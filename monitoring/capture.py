"""Capture health as gauges. The past is read once an hour, and the last hours at each look."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from hone import metrics
from hone.capture import FALSE_ALARM_H, Capture, threshold_log
from hone.store.capture import hour_of, judge_hours, read_hours, start


@dataclass
class CaptureWatch:
    """Hourly counts of the last thirty days; a new process reads the same ones."""

    answers: dict[int, int] = field(default_factory=dict)
    events: dict[str, dict[int, int]] = field(default_factory=dict)
    hour: int | None = None
    "The hour in which the past was read."

    def look(self, session: Session, now: datetime) -> list[Capture]:
        """Bring the counts to `now` and judge every kind."""
        hour = hour_of(now)
        is_new_hour, self.hour = hour != self.hour, hour
        if is_new_hour:
            self.answers, self.events = read_hours(session, start(now), now)
        else:
            recent = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
            answers, events = read_hours(session, recent, now)
            self.answers.update(answers)
            for kind, counts in events.items():
                self.events.setdefault(kind, {}).update(counts)
        return judge_hours(self.answers, self.events, now)


def show_capture(captures: Sequence[Capture], false_alarm_h: float = FALSE_ALARM_H) -> None:
    """Set the gauges of each kind."""
    metrics.CAPTURE_THRESHOLD_LOG.set(threshold_log(len(captures), false_alarm_h))
    for found in captures:
        metrics.CAPTURE_BASELINE_RATIO.labels(found.kind).set(found.baseline)
        metrics.CAPTURE_LOG_E.labels(found.kind).set(found.log_e)
        metrics.CAPTURE_EVENTS.labels(found.kind, "seen").set(found.seen)
        metrics.CAPTURE_EVENTS.labels(found.kind, "usual").set(found.usual)
