"""One batch of messages: what is in it, and its one transaction."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter

import msgspec
from sqlalchemy.orm import Session

from hone.errors import InvalidEvent, Retryable
from hone.records import Feedback, Response
from hone.store.dead_letters import DeadLetter, add_dead_letters
from hone.store.erasure import Forgotten
from hone.store.events import Stored, mark_dirty, store_events
from hone.store.faults import DATABASE_ERRORS, Fault, fault_of, is_taken
from hone.store.history import renew_dead_letters
from hone.store.offsets import Claim, Group, Partition, Step, advance
from ingest.decode import decode

logger = logging.getLogger(__name__)

MAX_DETAIL_CHARACTERS = 500
MAX_LOOKS = 5
"""How often a batch is tried again because a neighbour stored one of its events between our look and our COPY."""


class RawMessage(msgspec.Struct, frozen=True, gc=False):
    """A message as the broker gave it. No object of it points back, so that the collector may pass it over."""

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


class Decoded(msgspec.Struct, frozen=True, gc=False):
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
    newest_ms: int = 0
    "Time of the newest message, by the broker."
    skipped: Counter[str] = field(default_factory=Counter)
    "Messages that no stream reads, by topic."

    def refuse(self, message: RawMessage, error: InvalidEvent) -> None:
        """Add a message that cannot be read."""
        self.bad.append((message, error))
        self.runs[message.partition] = self.runs.get(message.partition, 0) + 1
        self.longest_run = max(self.longest_run, self.runs[message.partition])

    def count_runs(self, refused: Sequence[tuple[RawMessage, InvalidEvent]], before: Mapping[Partition, int]) -> None:
        """Count the runs again, where the database has refused messages that could be read."""
        bad = {(message.partition, message.offset) for message, _ in refused}
        self.runs, self.longest_run = dict(before), 0
        for partition, offset in sorted(bad | {(item.message.partition, item.message.offset) for item in self.good}):
            if (partition, offset) in bad:
                self.runs[partition] = self.runs.get(partition, 0) + 1
                self.longest_run = max(self.longest_run, self.runs[partition])
            else:
                self.runs.pop(partition, None)

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
    # Neighbours are mostly of one partition: what is looked up for each costs as much as a tenth of decoding.
    for partition, neighbours in groupby(messages, attrgetter("partition")):
        if partition in claims:
            sort_neighbours(batch, partition, claims[partition], neighbours, decode)
    return batch


def sort_neighbours(
    batch: Batch, partition: Partition, claim: Claim, messages: Iterable[RawMessage], decode: Decode
) -> None:
    """Add messages of one partition to the batch."""
    _, first, expected = batch.steps.get(partition) or Step(claim.epoch, -1, claim.next_offset)
    add = batch.good.append
    for message in messages:
        if message.offset < expected:
            continue
        if first < 0:
            first = message.offset
        expected = message.offset + 1
        try:
            records = decode(message)
            if not records:
                batch.skipped[partition.topic] += 1
            for record in records:
                add(Decoded(message, record))
            if batch.runs:
                batch.runs.pop(partition, None)
        except InvalidEvent as error:
            batch.refuse(message, error)
    if first >= 0:
        batch.steps[partition] = Step(claim.epoch, first, expected)
        batch.newest_ms = max(batch.newest_ms, message.timestamp_ms)


def store_batch(
    session: Session,
    group: Group,
    batch: Batch,
    forgotten: Forgotten | None = None,
    at: Callable[[str], None] = lambda point: None,
) -> Outcome:
    """Write offsets, rows, states, dead letters and dirty marks. The caller commits all of it, or nothing.

    `at` is told when the rows have been copied and merged; dead letters and marks follow.

    Raises:
        Fenced: a partition has a newer owner.
        psycopg2.Error, sqlalchemy.exc.DBAPIError: any fault that is not one row's.
    """
    advance(session, group, batch.steps)
    outcome = Outcome(refused=list(batch.bad))
    store_rows(session, batch.good, outcome, forgotten or Forgotten())
    at("copied")
    letters = [dead_letter(group, message, error) for message, error in outcome.refused]
    if group.letters is None:
        add_dead_letters(session, letters)
    else:
        renew_dead_letters(session, group.letters, batch.steps, letters)
    mark_dirty(session, chain.from_iterable(part.touched for part in outcome.stored))
    return outcome


def store_rows(
    session: Session, items: Sequence[Decoded], outcome: Outcome, forgotten: Forgotten, looks: int = 1
) -> None:
    """Store the records; where the database refuses one, halve until it stands alone: log2(n) steps for each.

    Where somebody else stored one of them since we looked, look again.
    """
    if not items:
        return
    try:
        with session.begin_nested():
            outcome.stored.append(store_records(session, items, forgotten))
    except (*DATABASE_ERRORS, OverflowError) as error:
        if is_taken(error) and looks < MAX_LOOKS:
            store_rows(session, items, outcome, forgotten, looks + 1)
        elif is_taken(error):
            raise Retryable(f"others store the same events at the same time, {looks} times in a row") from error
        elif isinstance(error, DATABASE_ERRORS) and fault_of(error) is not Fault.DATA:
            raise
        elif len(items) == 1:
            outcome.refused.append((items[0].message, InvalidEvent("database", first_line(error))))
        else:
            middle = len(items) // 2
            store_rows(session, items[:middle], outcome, forgotten)
            store_rows(session, items[middle:], outcome, forgotten)


def store_records(session: Session, items: Sequence[Decoded], forgotten: Forgotten) -> Stored:
    """Store the records by their kind."""
    responses = [item.record for item in items if isinstance(item.record, Response)]
    feedback = [item.record for item in items if isinstance(item.record, Feedback)]
    return store_events(session, responses, feedback, forgotten)


def first_line(error: BaseException) -> str:
    """Return what the database says, without the statement and its data."""
    return str(getattr(error, "orig", None) or error).split("\n", 1)[0]


def dead_letter(group: Group, message: RawMessage, error: InvalidEvent) -> DeadLetter:
    """Return the row for a message that was refused."""
    return DeadLetter(
        incarnation=group.letters_name,
        topic=message.partition.topic,
        partition=message.partition.number,
        offset=message.offset,
        key=message.key,
        body=message.body,
        reason=error.reason,
        detail=error.detail[:MAX_DETAIL_CHARACTERS].replace("\0", "�"),
    )
