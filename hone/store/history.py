"""What a backfill knows of earlier runs over the same file."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from hone.store.dead_letters import WAITING
from hone.store.tables import ConsumerOffsetRow, DeadLetterRow


def count_attempts(session: Session, group_name: str, prefix: str) -> int:
    """Return how often a file was begun from its first line: incarnations `prefix#1`, `prefix#2`, …"""
    query = select(func.count(ConsumerOffsetRow.incarnation.distinct())).where(
        ConsumerOffsetRow.consumer_group == group_name, ConsumerOffsetRow.incarnation.startswith(f"{prefix}#")
    )
    return session.scalar(query) or 0


def give_again(session: Session, prefix: str, now: datetime) -> None:
    """Note that the waiting dead letters of a file are read again: each is stored now, or refused anew."""
    of_file = DeadLetterRow.incarnation.startswith(f"{prefix}#")
    session.execute(update(DeadLetterRow).where(of_file, WAITING).values(replayed_at=now))


def letters_of(session: Session, incarnation: str) -> Iterator[DeadLetterRow]:
    """Yield the dead letters of one run in the order of their lines."""
    query = select(DeadLetterRow).where(DeadLetterRow.incarnation == incarnation).order_by(DeadLetterRow.offset)
    yield from session.scalars(query.execution_options(yield_per=1000))


def count_letters(session: Session, incarnation: str) -> int:
    """Return how many lines of one run, and of those that it went on from, are dead letters."""
    query = select(func.count()).select_from(DeadLetterRow).where(DeadLetterRow.incarnation == incarnation)
    return session.scalar(query) or 0
