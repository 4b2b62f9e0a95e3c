"""One batch of messages: what is in it, and its one transaction."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.orm import Session

from hone.errors import InvalidEvent
from hone.records import Feedback, Response
from hone.store.dead_letters import DeadLetter, add_dead_letters
from hone.store.events import Stored, mark_dirty, store_events
from hone.store.faults import DATABASE_ERRORS, Fault, fault_of
from hone.store.offsets import Claim, Group, Partition, Step, advance
from ingest.decode import decode

logger = logging.getLogger(__name__)

MAX_DETAIL_CHARACTERS = 500


class RawMessage(NamedTuple):
    """A message as the broker gave it."""

    partition: Partition
    offset: int
    key: bytes | None
    body: bytes | None
    timestamp_ms: int


Decode = Callable[[RawMessage], Sequence[Response | Feedback]]
"""What is in a message: one record of a topic of ours, none or several of another's. Raises InvalidEvent."""


def decode_native(message: RawMessage) -> tuple[Response | Feedback]:
    """Return the one record in a message of hone's own topics."""
    return (decode(message.partition.topic, message.body),)


class Decoded(NamedTuple):
    """A message and a record in it."""

    message: RawMessage
    record: Response | Feedback


@dataclass
class Batch:
    """Messages of partitions that are ours, sorted into records and refusals."""

    steps: dict[Partition, Step] = field(default_factory=dict)
    good: list[Decoded] = field(default_factory=list)
    bad: list[tuple[RawMessage, InvalidEvent]] = field(default_factory=list)
    runs: dict[Partition, int] = field(default_factory=dict)
    "Invalid messages with which a partition ends, where it does."
    longest_run: int = 0

    @property
    def num_messages(self) -> int:
        """Return the number of records and refused messages."""
        return len(self.good) + len(self.bad)


@dataclass
class Outcome:
    """What the transaction did."""

    stored: list[Stored] = field(default_factory=list)
    refused: list[tuple[RawMessage, InvalidEvent]] = field(default_factory=list)
    "Every message that became a dead letter, those that only the database refused included."

    @property
    def num_new(self) -> int:
        """Return the number of new rows."""
        return sum(part.num_rows for part in self.stored)


def sort_messages(
    messages: Iterable[RawMessage],
    claims: Mapping[Partition, Claim],
    decode: Decode = decode_native,
    runs: Mapping[Partition, int] | None = None,
) -> Batch:
    """Decode the messages of claimed partitions; others, and offsets that are stored already, are left out.

    `runs` are those that the batch before ended with.
    """
    batch = Batch(runs=dict(runs or {}))
    for message in messages:
        claim = claims.get(message.partition)
        if claim is None:
            continue
        step = batch.steps.get(message.partition)
        expected = step.next_offset if step else claim.next_offset
        if message.offset < expected:
            continue
        first = step.first_offset if step else message.offset
        batch.steps[message.partition] = Step(claim.epoch, first, message.offset + 1)
        try:
            for record in decode(message):
                batch.good.append(Decoded(message, record))
            batch.runs.pop(message.partition, None)
        except InvalidEvent as error:
            batch.bad.append((message, error))
            batch.runs[message.partition] = batch.runs.get(message.partition, 0) + 1
            batch.longest_run = max(batch.longest_run, batch.runs[message.partition])
    return batch


def store_batch(
    session: Session, group: Group, batch: Batch, at: Callable[[str], None] = lambda point: None
) -> Outcome:
    """Write offsets, rows, states, dead letters and dirty marks. The caller commits all of it, or nothing.

    `at` is told when the rows have been copied and merged; dead letters and marks follow.

    Raises:
        Fenced: a partition has a newer owner.
        psycopg2.Error, sqlalchemy.exc.DBAPIError: any fault that is not one row's.
    """
    advance(session, group, batch.steps)
    outcome = Outcome(refused=list(batch.bad))
    store_rows(session, batch.good, outcome)
    at("copied")
    add_dead_letters(session, [dead_letter(group, message, error) for message, error in outcome.refused])
    mark_dirty(session, (touched for part in outcome.stored for touched in part.touched))
    return outcome


def store_rows(session: Session, items: Sequence[Decoded], outcome: Outcome) -> None:
    """Store the records; where the database refuses one, halve until it stands alone: log2(n) steps for each."""
    if not items:
        return
    try:
        with session.begin_nested():
            outcome.stored.append(store_records(session, items))
    except DATABASE_ERRORS as error:
        if fault_of(error) is not Fault.DATA:
            raise
        if len(items) == 1:
            outcome.refused.append((items[0].message, InvalidEvent("database", first_line(error))))
            return
        middle = len(items) // 2
        store_rows(session, items[:middle], outcome)
        store_rows(session, items[middle:], outcome)


def store_records(session: Session, items: Sequence[Decoded]) -> Stored:
    """Store the records by their kind."""
    responses = [item.record for item in items if isinstance(item.record, Response)]
    feedback = [item.record for item in items if isinstance(item.record, Feedback)]
    return store_events(session, responses, feedback)


def first_line(error: BaseException) -> str:
    """Return what the database says, without the statement and its data."""
    return str(getattr(error, "orig", None) or error).split("\n", 1)[0]


def dead_letter(group: Group, message: RawMessage, error: InvalidEvent) -> DeadLetter:
    """Return the row for a message that was refused."""
    return DeadLetter(
        incarnation=group.incarnation,
        topic=message.partition.topic,
        partition=message.partition.number,
        offset=message.offset,
        key=message.key,
        body=message.body,
        reason=error.reason,
        detail=error.detail[:MAX_DETAIL_CHARACTERS].replace("\0", "�"),
    )
