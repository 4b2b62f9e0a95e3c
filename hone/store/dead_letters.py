"""Messages that could not become rows: kept with bytes and reason, listed, marked when replayed or dismissed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.errors import NotEnoughData
from hone.store.tables import DeadLetterRow

WAITING = DeadLetterRow.replayed_at.is_(None) & DeadLetterRow.dismissed_at.is_(None)
"""Nobody replayed or dismissed it."""


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One message that can never be processed as it is."""

    incarnation: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    body: bytes | None
    reason: str
    detail: str


def add_dead_letters(session: Session, letters: Sequence[DeadLetter]) -> int:
    """Keep the messages; one that is there already, by its coordinates, stays as it is. Return how many are new."""
    if not letters:
        return 0
    rows = [{name: getattr(letter, name) for name in DeadLetter.__dataclass_fields__} for letter in letters]
    added = session.scalars(
        insert(DeadLetterRow).on_conflict_do_nothing().returning(DeadLetterRow.dead_letter_id), rows
    )
    return len(added.all())


def list_dead_letters(
    session: Session, *, reason: str | None = None, waiting_only: bool = False, limit: int = 100
) -> list[DeadLetterRow]:
    """Return the newest dead letters first; with `waiting_only` those that nobody replayed or dismissed."""
    query = select(DeadLetterRow).order_by(DeadLetterRow.dead_letter_id.desc()).limit(limit)
    if reason is not None:
        query = query.where(DeadLetterRow.reason == reason)
    if waiting_only:
        query = query.where(WAITING)
    return list(session.scalars(query))


def count_dead_letters(session: Session, *, waiting_only: bool = False) -> dict[str, int]:
    """Return the number of dead letters by reason; with `waiting_only` of those that nobody replayed or dismissed."""
    query = select(DeadLetterRow.reason, func.count()).group_by(DeadLetterRow.reason)
    if waiting_only:
        query = query.where(WAITING)
    return {reason: number for reason, number in session.execute(query)}


def get_dead_letter(session: Session, dead_letter_id: int) -> DeadLetterRow:
    """Return one dead letter.

    Raises:
        NotEnoughData: there is none with this id.
    """
    row = session.get(DeadLetterRow, dead_letter_id)
    if row is None:
        raise NotEnoughData(f"no dead letter {dead_letter_id}: list them with `hone dead-letters list`")
    return row


def mark_replayed(session: Session, dead_letter_id: int, now: datetime) -> None:
    """Note that the message, or its repaired form, was acknowledged by the broker."""
    session.execute(update(DeadLetterRow).where(DeadLetterRow.dead_letter_id == dead_letter_id).values(replayed_at=now))


def dismiss_dead_letters(
    session: Session,
    now: datetime | None,
    *,
    ids: Sequence[int] = (),
    topic: str | None = None,
    reason: str | None = None,
) -> dict[tuple[str, str], int]:
    """Let the waiting letters that fit all of what is given wait no more; return their number by topic and reason.

    They are kept with their bytes, and may still be shown, and replayed if of a topic. Without `now` it is undone:
    those that were dismissed wait again.

    Raises:
        NotEnoughData: one of `ids` is not among them.
    """
    found_as = WAITING if now else DeadLetterRow.dismissed_at.is_not(None)
    change = update(DeadLetterRow).where(found_as).values(dismissed_at=now)
    if ids:
        change = change.where(DeadLetterRow.dead_letter_id.in_(ids))
    if topic is not None:
        change = change.where(DeadLetterRow.topic == topic)
    if reason is not None:
        change = change.where(DeadLetterRow.reason == reason)
    found = session.execute(
        change.returning(DeadLetterRow.dead_letter_id, DeadLetterRow.topic, DeadLetterRow.reason)
    ).all()
    missing = sorted(set(ids) - {number for number, _, _ in found})
    if missing:
        state = "do not wait any more" if now else "wait"
        raise NotEnoughData(
            f"dead letters {', '.join(map(str, missing))} do not exist, {state}, or are of another topic or reason: "
            "see `hone dead-letters list`"
        )
    return dict(Counter((topic, reason) for _, topic, reason in found))


# Two feeders skip each other's rows. A feeder that dies after the broker's ack sends again: at least once.
TAKE_UNPUBLISHED = """
UPDATE dead_letter SET published_at = :now WHERE dead_letter_id IN (
    SELECT dead_letter_id FROM dead_letter WHERE published_at IS NULL
    ORDER BY dead_letter_id LIMIT :limit FOR UPDATE SKIP LOCKED
) RETURNING dead_letter_id
"""


def take_unpublished(session: Session, now: datetime, limit: int = 100) -> list[DeadLetterRow]:
    """Return dead letters that the dead-letter topic lacks, marked as published if the caller commits."""
    ids = session.scalars(text(TAKE_UNPUBLISHED), {"now": now, "limit": limit}).all()
    query = select(DeadLetterRow).where(DeadLetterRow.dead_letter_id.in_(ids)).order_by(DeadLetterRow.dead_letter_id)
    return list(session.scalars(query)) if ids else []
