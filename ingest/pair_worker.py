"""The pair worker: dirty turns in, pairs and labels out; then a look at the trigger.

The pairs are a pure function of the stored events, whatever the order in which these arrived.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event
from uuid import UUID

import msgspec
from sqlalchemy.orm import Session, sessionmaker

from hone import metrics
from hone.errors import Retryable
from hone.health import Pulse
from hone.records import DEAD_LETTER_TOPIC, RETRAIN_TOPIC, RetrainLook
from hone.settings import Pairs, Settings
from hone.store import requests
from hone.store.dead_letters import take_unpublished
from hone.store.faults import DATABASE_ERRORS, Fault, fault_of
from hone.store.overview import trigger_view
from hone.store.pairs import (
    Change,
    backlog,
    begin_pair_transaction,
    count_orphans,
    read_answers,
    read_signals,
    take_dirty_turns,
    write_labels,
    write_pairs,
)
from hone.store.tables import DeadLetterRow
from hone.store.unpaired import ARRIVAL
from hone.trigger import Look
from ingest.pairing import derive
from ingest.publish import Outgoing, Publisher

logger = logging.getLogger(__name__)

POLL_S = 0.1
BACKOFF_S = 1.0
REMINDER_S = 60.0
"""A request that stays open is announced again: a message may be lost, a level is not."""
MAX_COPY_BYTES = 900_000
"""Brokers take messages of 1 MB by default, key and headers included."""


@dataclass
class Chore:
    """Something to do now and then: every `every_s`, and at most `share` of the time."""

    do: Callable[["Worker"], None]
    every_s: float
    share: float
    next_at: float = 0.0

    def run_if_due(self, worker: "Worker") -> None:
        """Do it if its time has come."""
        started = time.monotonic()
        if started < self.next_at:
            return
        try:
            self.do(worker)
        finally:
            took_s = time.monotonic() - started
            self.next_at = started + max(self.every_s, took_s / self.share)


@dataclass
class Worker:
    """A running pair worker."""

    sessions: sessionmaker[Session]
    settings: Settings
    publisher: Publisher
    pulse: Pulse
    announced: dict[UUID, float] = field(default_factory=dict)
    chores: list[Chore] = field(
        default_factory=lambda: [
            Chore(watch_trigger, 1.0, 0.05),
            Chore(watch_backlog, 1.0, 0.02),
            Chore(watch_orphans, 60.0, 0.01),
            Chore(feed_dead_letters, 1.0, 0.1),
        ]
    )


def run(worker: Worker, stop: Event) -> None:
    """Derive pairs until `stop` is set; the batch in hand is finished first."""
    while not stop.is_set():
        worker.pulse.beat()
        try:
            num_turns = turn(worker)
        except Retryable as error:
            wait(stop, error)
        except DATABASE_ERRORS as error:
            if fault_of(error) is not Fault.TRANSIENT:
                raise
            wait(stop, error)
        else:
            if num_turns == 0:
                stop.wait(POLL_S)


def turn(worker: Worker) -> int:
    """Do one batch and the chores that are due; return the number of turns that were derived."""
    with metrics.PAIRS_SECONDS.time(), worker.sessions.begin() as session:
        num_turns, changes = derive_batch(session, worker.settings.pairs)
    count_changes(changes)
    for chore in worker.chores:
        chore.run_if_due(worker)
    return num_turns


def derive_batch(session: Session, policy: Pairs) -> tuple[int, list[Change]]:
    """Take dirty turns and make their pairs and labels what the policy wants. The caller owns the transaction."""
    begin_pair_transaction(session)
    turns = take_dirty_turns(session, policy.batch_turns)
    if not turns:
        return 0, []
    answers = read_answers(session, turns)
    pairs, labels = derive(answers, read_signals(session, answers), policy)
    return len(turns), [*write_pairs(session, turns, pairs), *write_labels(session, turns, labels)]


def count_changes(changes: list[Change]) -> None:
    """Count what a committed batch did."""
    for change in changes:
        if change.source == "label":
            metrics.LABELS_CHANGED.labels(change.change).inc()
        else:
            metrics.PAIRS_CHANGED.labels(change.source, change.change).inc()


def wait(stop: Event, error: Exception) -> None:
    """Pause before the next try."""
    logger.warning("waiting %.1f s: %s", BACKOFF_S, str(error).split("\n", 1)[0])
    stop.wait(BACKOFF_S)


def watch_trigger(worker: Worker) -> None:
    """Look; open a request where the threshold is crossed; announce requests that wait."""
    with worker.sessions.begin() as session:
        seen = trigger_view(session, worker.settings, datetime.now(UTC))
        if seen.opens:
            open_at_threshold(session, worker.settings.trigger.method, seen)
    metrics.NEW_PAIRS.set(seen.num_pairs)
    metrics.MIN_PAIRS.set(seen.min_pairs)
    announce(worker)


def open_at_threshold(session: Session, method: str, seen: Look) -> None:
    """Open the request of this crossing; it may be there already."""
    crossing = requests.crossing_name(requests.last_watermark(session))
    request, is_new = requests.open_request(session, crossing=crossing, reason=seen.reason, method=method)
    if is_new:
        metrics.RETRAIN_REQUESTS.inc()
        logger.info("retrain request %s opened: %s", request.request_id, seen.reason)


def announce(worker: Worker) -> None:
    """Send a look for each open request that was not announced of late. It carries no data to act on."""
    with worker.sessions() as session:
        waiting = {request.request_id: request.reason for request in requests.list_requests(session, status="open")}
    now_s = time.monotonic()
    due = [i for i in waiting if now_s - worker.announced.get(i, -REMINDER_S) >= REMINDER_S]
    if due:
        body = msgspec.json.encode(RetrainLook(reason=waiting[due[0]], sent_at=datetime.now(UTC)))
        worker.publisher.send([Outgoing(RETRAIN_TOPIC, None, body, {})])
    worker.announced = {i: now_s if i in due else worker.announced[i] for i in waiting}


def watch_backlog(worker: Worker) -> None:
    """Show how many turns wait, and how long."""
    with worker.sessions() as session:
        number, age_s = backlog(session, datetime.now(UTC))
    metrics.DIRTY_TURNS.set(number)
    metrics.DIRTY_TURN_AGE_SECONDS.set(age_s)


def watch_orphans(worker: Worker) -> None:
    """Show how many answers got feedback and never arrived."""
    with worker.sessions() as session:
        metrics.ORPHAN_FEEDBACK.set(count_orphans(session, datetime.now(UTC) - ARRIVAL))


def feed_dead_letters(worker: Worker) -> None:
    """Copy new dead letters to their topic, at least once each; the table stays the truth."""
    with worker.sessions.begin() as session:
        letters = take_unpublished(session, datetime.now(UTC))
        if letters:
            worker.publisher.send([copy_of(letter) for letter in letters])


def copy_of(letter: DeadLetterRow) -> Outgoing:
    """Return the letter for its topic; a body that no broker would take with these headers stays in the table only."""
    headers = {
        "reason": letter.reason,
        "dead_letter_id": str(letter.dead_letter_id),
        "origin": f"{letter.topic}/{letter.partition}/{letter.offset}",
    }
    if letter.body is not None and len(letter.body) > MAX_COPY_BYTES:
        return Outgoing(DEAD_LETTER_TOPIC, letter.key, None, {**headers, "body_bytes": str(len(letter.body))})
    return Outgoing(DEAD_LETTER_TOPIC, letter.key, letter.body, headers)
