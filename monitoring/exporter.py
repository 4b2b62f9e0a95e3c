"""The monitor: a look at the database every few seconds, shown as gauges. All it writes are scores of answers."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from hone import metrics
from hone.errors import Retryable
from hone.records import Track
from hone.settings import Settings
from hone.store.facts import Facts, Position, read_facts, read_thumbs
from hone.store.faults import Fault, fault_of
from hone.store.scores import store_scores
from monitoring import drift
from monitoring.capture import CaptureWatch, show_capture
from monitoring.gauges import show_drift, show_facts, show_settings
from monitoring.rewards import Rewards
from monitoring.training import read_progress, show_training

logger = logging.getLogger(__name__)

SETTLE_S = 10.0
CHUNK = 5000


@contextmanager
def reading(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Give a session in which Postgres refuses every write."""
    with sessions.begin() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        yield session


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is watched, and how strictly."""

    num_baseline: int = 2000
    "First values after a model became stable; they are the baseline of its drift."
    false_alarm_events: float = 1e6
    "Events between two false alarms of all streams together."
    settle_s: float = SETTLE_S


@dataclass
class Monitor:
    """The exporter's memory. It is a function of stored rows: a new process comes to the same drift."""

    sessions: sessionmaker[Session]
    settings: Settings
    watch: Watch
    started_at: datetime
    rewards: Rewards | None = None
    beat: Callable[[], None] = lambda: None
    model_version: str | None = None
    position: Position | None = None
    streams: dict[str, drift.Stream] = field(default_factory=dict)
    capture: CaptureWatch = field(default_factory=CaptureWatch)

    def look(self, now: datetime) -> None:
        """Read once and set every gauge.

        Raises:
            DBAPIError: Postgres does not answer. Retryable: the runtime does not score.
        """
        with reading(self.sessions) as session:
            facts = read_facts(session)
            captures = self.capture.look(session, now)
        show_facts(facts, now)
        show_training(read_progress(facts.running, now))
        show_capture(captures)
        show_settings(self.settings)
        self.follow_stable(facts)
        self.read_thumbs()
        threshold_log = drift.threshold_log(self.watch.false_alarm_events, len(self.streams))
        show_drift(self.streams, threshold_log)
        metrics.MONITOR_SUCCEEDED_AT.set(now.timestamp())
        if self.rewards is not None:
            self.read_rewards(self.rewards)
            show_drift(self.streams, threshold_log)

    def follow_stable(self, facts: Facts) -> None:
        """Start all streams anew when another version became stable, from the moment at which it did."""
        version, since = facts.stable or (None, self.started_at)
        if self.position is None:
            self.position = Position(min(since, self.started_at))
        if self.streams and version == self.model_version:
            return
        self.model_version = version
        self.streams = {"thumbs": drift.Stream(self.watch.num_baseline)}
        if self.rewards is not None:
            self.streams["reward"] = drift.Stream(self.watch.num_baseline, by_rank=True)

    def read_thumbs(self) -> None:
        """Read all thumbs that are new: those stored since the start are counted, stable's feed its stream."""
        rows: Any = None
        while rows is None or len(rows) == CHUNK:
            assert self.position is not None
            with reading(self.sessions) as session:
                rows = read_thumbs(session, self.position, settle_s=self.watch.settle_s, limit=CHUNK)
            if rows:
                self.position = Position(rows[-1].stored_at, rows[-1].event_id)
            for row in rows:
                if row.stored_at >= self.started_at:
                    value = "up" if row.value > 0 else "down"
                    metrics.THUMBS.labels(row.track or "unknown", row.model_version or "unknown", value).inc()
            ours = [r.value for r in rows if r.track == Track.STABLE and r.model_version == self.model_version]
            self.streams["thumbs"] = drift.watch(self.streams["thumbs"], (np.array(ours, dtype=float) + 1) / 2)
            self.beat()

    def read_rewards(self, rewards: Rewards) -> None:
        """Score the newest answers and keep the scores, which rollouts may read; stable's feed their stream."""
        with reading(self.sessions) as session:
            answers = rewards.newest(session)
        scored = rewards.score(answers)
        with self.sessions.begin() as session:
            store_scores(session, {answer.response_id: score for answer, score in scored}, rewards.model)
        ours = [s for a, s in scored if a.track == Track.STABLE and a.model_version == self.model_version]
        self.streams["reward"] = drift.watch(self.streams["reward"], np.array(ours, dtype=float))


def keep_looking(monitor: Monitor, stop: Event, interval_s: float) -> None:
    """Look until `stop` is set. What may pass by itself is counted and tried again; a defect ends the program."""
    while not stop.is_set():
        started = time.monotonic()
        try:
            with metrics.MONITOR_SECONDS.time():
                monitor.look(datetime.now(UTC))
        except Retryable as error:
            count_failure("runtime", error)
        except DBAPIError as error:
            if fault_of(error) is not Fault.TRANSIENT:
                raise
            count_failure("database", error)
        monitor.beat()
        stop.wait(max(0.0, interval_s - (time.monotonic() - started)))


def count_failure(reason: str, error: Exception) -> None:
    """Count and log a look that the next one will repeat."""
    metrics.MONITOR_FAILURES.labels(reason).inc()
    logger.warning("this look failed, the next one tries again: %s", error)
