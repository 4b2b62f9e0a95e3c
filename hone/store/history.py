"""What a backfill knows of earlier runs over the same file, and the dead letters of its lines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.store.dead_letters import WAITING, DeadLetter
from hone.store.offsets import Group, Partition, Step
from hone.store.tables import ConsumerOffsetRow, DeadLetterRow

COORDINATES = ("incarnation", "topic", "partition", "offset")
REFUSED = DeadLetterRow.replayed_at.is_(None)
"""The last reading of the line refused it, whether somebody has dismissed its letter or not."""


def count_attempts(session: Session, group_name: str, prefix: str) -> int:
    """Return how often a file was begun from its first line: incarnations `prefix#1`, `prefix#2`, …"""
    query = select(func.count(ConsumerOffsetRow.incarnation.distinct())).where(
        ConsumerOffsetRow.consumer_group == group_name, ConsumerOffsetRow.incarnation.startswith(f"{prefix}#")
    )
    return session.scalar(query) or 0


# A row of this name already: the content was read under both names before, each from its first line.
RENAME_OFFSETS = """
UPDATE consumer_offset AS held SET topic = :topic
WHERE consumer_group = :name AND incarnation = :incarnation AND topic <> :topic
  AND NOT EXISTS (SELECT FROM consumer_offset AS other WHERE other.consumer_group = held.consumer_group
                  AND other.incarnation = held.incarnation AND other.topic = :topic)
"""
RENAME_LETTERS = """
UPDATE dead_letter AS held SET topic = :topic
WHERE incarnation = :letters AND topic <> :topic
  AND NOT EXISTS (SELECT FROM dead_letter AS other WHERE other.incarnation = held.incarnation
                  AND other.topic = :topic AND other."offset" = held."offset")
"""


def follow_name(session: Session, group: Group, topic: str) -> None:
    """Let a content that is read under another name than last time keep its place and its letters."""
    names = {**asdict(group), "topic": topic}
    session.execute(text(RENAME_OFFSETS), names)
    session.execute(text(RENAME_LETTERS), names)


def supersede_letters(session: Session, name: str) -> None:
    """Let letters wait no more whose lines are read in another way now: why that one refused them is of no interest."""
    session.execute(
        update(DeadLetterRow).where(DeadLetterRow.incarnation == name, WAITING).values(replayed_at=func.now())
    )


def renew_dead_letters(
    session: Session, name: str, steps: Mapping[Partition, Step], letters: Sequence[DeadLetter]
) -> None:
    """Bring the letters kept under `name` to what became of the lines of a batch, perhaps not for the first time.

    A line that is refused again keeps its letter, with the new reason; a dismissed letter stays dismissed. The letter
    of a line that is no longer refused counts as replayed. The caller owns the transaction.
    """
    refused = {letter.offset: letter for letter in letters}
    for partition, step in steps.items():
        read = DeadLetterRow.offset.between(step.first_offset, step.next_offset - 1)
        of_lines = (DeadLetterRow.incarnation == name) & (DeadLetterRow.topic == partition.topic) & read
        settled = update(DeadLetterRow).where(of_lines, REFUSED, DeadLetterRow.offset.not_in(list(refused)))
        session.execute(settled.values(replayed_at=func.now()))
    if not refused:
        return
    rows = [{field: getattr(letter, field) for field in DeadLetter.__dataclass_fields__} for letter in refused.values()]
    statement = insert(DeadLetterRow)
    again = {"reason": statement.excluded.reason, "detail": statement.excluded.detail, "replayed_at": None}
    session.execute(statement.on_conflict_do_update(index_elements=COORDINATES, set_=again), rows)


def letters_of(session: Session, name: str) -> Iterator[DeadLetterRow]:
    """Yield the letters of a file whose lines are still refused, in the order of these, dismissed ones too."""
    query = select(DeadLetterRow).where(DeadLetterRow.incarnation == name, REFUSED).order_by(DeadLetterRow.offset)
    yield from session.scalars(query.execution_options(yield_per=1000))


def count_letters(session: Session, name: str) -> int:
    """Return how many lines of a file are still refused."""
    query = select(func.count()).select_from(DeadLetterRow).where(DeadLetterRow.incarnation == name, REFUSED)
    return session.scalar(query) or 0
