"""The loop: poll, decode, one transaction, go on. Every stored event is stored once, whatever is killed when.

Offsets live in Postgres, in the transaction of the rows, fenced by an epoch for each partition. A fault of any kind
ends in the same way: drop the batch, and read again from the stored offset.
"""

import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event

from sqlalchemy.orm import Session, sessionmaker

from hone import metrics
from hone.errors import Conflict, Fenced, InvalidEvent, Retryable
from hone.health import Pulse
from hone.store.erasure import Forgotten
from hone.store.faults import DATABASE_ERRORS, Fault, fault_of
from hone.store.offsets import Claim, Group, Partition, claim_partitions
from ingest.batch import Batch, Decode, Outcome, RawMessage, decode_native, sort_messages, store_batch
from ingest.breaker import Breaker
from ingest.reading import Reading
from ingest.source import PositionLost

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 5.0
FIRST_BACKOFF_S = 0.1
SLICE_S = 0.5
"""Longest wait inside librdkafka while nothing is read: signals are served between the slices."""

COLLECT_AFTER = 100_000
"""Objects, more than are in a batch, that must be new before the garbage collector looks at them."""


@dataclass
class Ingest:
    """A running ingest: what it needs, and what it holds."""

    source: Reading
    sessions: sessionmaker[Session]
    group: Group
    owner: str
    max_rows: int
    poll_timeout_s: float
    on_retention_gap: str
    breaker: Breaker
    pulse: Pulse
    decode: Decode = decode_native
    crash: Callable[[str], None] = lambda point: None
    "Called with the name of each point at which a test may kill the process."
    claims: dict[Partition, Claim] = field(default_factory=dict)
    unread: set[Partition] = field(default_factory=set)
    "Claimed, and no message stored since."
    jumps: dict[Partition, int] = field(default_factory=dict)
    "Where the first message after a claim came with a gap before it, seen once."
    forgotten: Forgotten = field(default_factory=Forgotten)
    measured: set[Partition] = field(default_factory=set)
    "Partitions whose lag is shown."
    backoff_s: float = FIRST_BACKOFF_S


def spare_collector() -> None:
    """Let the garbage collector pass over all that is loaded, and come seldom. For the whole process.

    A batch makes ten thousand ids and times, in no cycle: looking for one among them after every 700 took a twentieth
    of the process's CPU, and several times that where all loaded modules were looked through with them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def run(ingest: Ingest, stop: Event) -> None:
    """Store events until `stop` is set; the batch in hand is finished first.

    Raises:
        HoneError: the retention gap, re-created topic, or share of invalid messages that the settings say to stop at.
    """
    while not stop.is_set():
        ingest.pulse.beat()
        try:
            turn(ingest)
        except Fenced as error:
            logger.warning("fenced: %s", error)
            metrics.INGEST_FENCED.inc()
            ingest.source.rejoin()
        except Retryable as error:
            back_off(ingest, stop, error)
        except DATABASE_ERRORS as error:
            if fault_of(error) is not Fault.TRANSIENT:
                raise
            back_off(ingest, stop, error)


def turn(ingest: Ingest) -> None:
    """Claim what is new, read one batch, store it."""
    if ingest.source.unclaimed:
        claim(ingest)
    with metrics.INGEST_STAGE_SECONDS.labels("consume").time():
        messages = ingest.source.poll(ingest.max_rows, ingest.poll_timeout_s)
    forget_lost(ingest)
    if not messages:
        return
    ingest.crash("consumed")
    with metrics.INGEST_STAGE_SECONDS.labels("decode").time():
        claims = {p: ingest.claims[p] for p in ingest.source.positions}
        batch = sort_messages(messages, claims, ingest.decode, ingest.breaker.runs)
    if not batch.steps:
        return
    if ingest.source.may_hold_old and jumped(ingest, batch):
        ingest.source.release()
        return
    outcome = commit(ingest, batch)
    ingest.crash("committed")
    ingest.breaker.count(batch.num_messages, len(outcome.refused), batch.runs)
    moved = {partition: step.next_offset for partition, step in batch.steps.items()}
    for partition, next_offset in moved.items():
        ingest.claims[partition] = Claim(ingest.claims[partition].epoch, next_offset)
    ingest.source.positions.update(moved)
    ingest.unread.difference_update(moved)
    ingest.source.hint(moved)
    ingest.backoff_s = FIRST_BACKOFF_S
    report(ingest, batch, outcome)


def jumped(ingest: Ingest, batch: Batch) -> bool:
    """Say whether a partition, right after its claim, began later than asked, for the first time.

    A gap in a log is legal (compaction, transactions), but a message left over from before the claim would look the
    same and cost the messages between. Reading once more tells them apart.
    """
    found = {
        partition: step.first_offset
        for partition, step in batch.steps.items()
        if partition in ingest.unread and step.first_offset > ingest.claims[partition].next_offset
    }
    news = {p: offset for p, offset in found.items() if ingest.jumps.get(p) != offset}
    ingest.jumps.update(news)
    for p, offset in news.items():
        logger.warning("%s/%s begins at %s, not %s: reading again", *p, offset, ingest.claims[p].next_offset)
    return bool(news)


def commit(ingest: Ingest, batch: Batch) -> Outcome:
    """Store the batch in one transaction, or nothing of it."""
    with metrics.INGEST_STAGE_SECONDS.labels("store").time(), ingest.sessions.begin() as session:
        outcome = store_batch(session, ingest.group, batch, ingest.forgotten, ingest.crash)
        if len(outcome.refused) > len(batch.bad):
            batch.count_runs(outcome.refused, ingest.breaker.runs)
        example = told(*outcome.refused[-1]) if outcome.refused else ""
        ingest.breaker.check(batch.num_messages, len(outcome.refused), batch.longest_run, example)
        ingest.crash("stored")
    return outcome


def told(message: RawMessage, error: InvalidEvent) -> str:
    """Return where a refused message lies, and why it is refused."""
    return f"{message.partition.topic}/{message.partition.number}@{message.offset}: {error}"


def claim(ingest: Ingest) -> None:
    """Take over the partitions that the group gave us, and read on where their last owner committed."""
    wanted = sorted(ingest.source.unclaimed)
    marks = {partition: ingest.source.watermarks(partition) for partition in wanted}
    topic_ids = ingest.source.topic_ids(p.topic for p in wanted)
    with ingest.sessions.begin() as session:
        claims = claim_partitions(session, ingest.group, ingest.owner, {p: marks[p][0] for p in wanted}, topic_ids)
    starts = {p: start_offset(p, claims[p].next_offset, *marks[p], ingest.on_retention_gap) for p in wanted}
    # A gap that the settings accept is jumped here; the offset itself moves with the first batch.
    ingest.claims = {**ingest.claims, **{p: Claim(claims[p].epoch, starts[p]) for p in wanted}}
    ingest.unread.update(wanted)
    ingest.source.read_from(starts)
    # Who scales by Kafka's own offsets must see one for each partition, also for those in which nothing moves.
    ingest.source.hint(starts)
    logger.info("reading %s", ", ".join(f"{p.topic}/{p.number}@{starts[p]}" for p in wanted))


def start_offset(partition: Partition, stored: int, low: int, high: int, on_gap: str) -> int:
    """Return where to read on, between the watermarks.

    Raises:
        Conflict: messages are gone and `on_gap` says stop, or the topic is another one than that of the stored offset.
    """
    name = f"{partition.topic}/{partition.number}"
    if stored > high:
        raise Conflict(
            f"{name} ends at offset {high}, but {stored} is stored: the topic was created again. Nothing was skipped. "
            "Set HONE_KAFKA_INCARNATION to a new name to read it from its beginning"
        )
    if stored >= low:
        return stored
    metrics.INGEST_RETENTION_GAPS.labels(partition.topic).inc()
    gap = f"{name}: offsets {stored} to {low - 1} are gone from the broker before they were read (retention)"
    if on_gap == "stop":
        raise Conflict(f"{gap}: accept the loss with ingest.on_retention_gap = 'continue', and lengthen the retention")
    logger.error("%s: going on, as ingest.on_retention_gap says", gap)
    return low


def back_off(ingest: Ingest, stop: Event, error: Exception) -> None:
    """Keep the membership, read nothing, and wait a little longer each time; then claim again."""
    logger.warning("waiting %.1f s: %s", ingest.backoff_s, str(error).split("\n", 1)[0])
    metrics.INGEST_RETRIES.inc()
    ingest.source.release()
    until = time.monotonic() + ingest.backoff_s
    while not stop.is_set() and (left := until - time.monotonic()) > 0:
        ingest.pulse.beat()
        with suppress(PositionLost):
            ingest.source.poll(1, min(left, SLICE_S))
    ingest.backoff_s = min(MAX_BACKOFF_S, ingest.backoff_s * 2)


def forget_lost(ingest: Ingest) -> None:
    """Show no lag of partitions that another member reads by now: the sum over all members counts each once."""
    lost = ingest.measured - ingest.source.positions.keys() - ingest.source.unclaimed
    for partition in lost:
        metrics.INGEST_LAG_MESSAGES.remove(partition.topic, str(partition.number))
    ingest.measured -= lost


def report(ingest: Ingest, batch: Batch, outcome: Outcome) -> None:
    """Count what the batch did."""
    for part in outcome.stored:
        for kind, number in part.by_kind.items():
            metrics.INGEST_EVENTS.labels(kind).inc(number)
    metrics.INGEST_DUPLICATES.inc(batch.num_messages - len(outcome.refused) - outcome.num_new)
    for _, error in outcome.refused:
        metrics.INGEST_DEAD_LETTERS.labels(error.reason).inc()
    for topic, number in batch.skipped.items():
        metrics.INGEST_SKIPPED.labels(topic).inc(number)
    num_behind = 0
    for partition, step in batch.steps.items():
        behind = ingest.source.num_behind(partition, step.next_offset) or 0
        metrics.INGEST_LAG_MESSAGES.labels(partition.topic, str(partition.number)).set(behind)
        ingest.measured.add(partition)
        num_behind += behind
    if batch.newest_ms > 0:
        metrics.INGEST_LAG_SECONDS.set(max(0.0, time.time() - batch.newest_ms / 1000) if num_behind else 0.0)
