"""Old acts of feedback on their way out of the database, into files that `hone backfill` reads."""

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from hone.ids import NOBODY
from hone.records import Feedback, FeedbackKind
from hone.store.tables import FeedbackEventRow

FIELDS = [name for name in Feedback.__struct_fields__ if name != "schema_version"]


def is_old(before: datetime) -> ColumnElement[bool]:
    """Say which events may go: an edit stays, since pairs and datasets read its text."""
    return (FeedbackEventRow.stored_at < before) & (FeedbackEventRow.kind != FeedbackKind.EDIT)


def count_old(session: Session, before: datetime) -> dict[str, int]:
    """Return how many events may go, by kind."""
    query = select(FeedbackEventRow.kind, func.count()).where(is_old(before)).group_by(FeedbackEventRow.kind)
    return {kind: number for kind, number in session.execute(query)}


def take_old(session: Session, before: datetime, limit: int) -> Iterator[list[Feedback]]:
    """Yield up to `limit` events at a time, deleted if the caller commits before it asks for the next ones.

    `feedback_state` keeps everybody's last word, so that no pair and no label changes.
    """
    last = NOBODY
    while events := delete_page(session, before, last, limit):
        last = events[-1].event_id
        yield events


def delete_page(session: Session, before: datetime, after: UUID, limit: int) -> list[Feedback]:
    """Delete the next events in the order of their ids, and return them as they were sent."""
    page = (
        select(FeedbackEventRow.event_id)
        .where(is_old(before), FeedbackEventRow.event_id > after)
        .order_by(FeedbackEventRow.event_id)
        .limit(limit)
        .with_for_update()
        .cte("page")
    )
    columns = [getattr(FeedbackEventRow, name) for name in FIELDS]
    gone = delete(FeedbackEventRow).where(FeedbackEventRow.event_id.in_(select(page.c.event_id))).returning(*columns)
    rows = session.execute(gone.execution_options(synchronize_session=False))
    return sorted(map(to_record, (row._asdict() for row in rows)), key=lambda event: event.event_id)


def to_record(fields: dict[str, object]) -> Feedback:
    """Return the row as the record that it was."""
    return msgspec.convert(fields, Feedback)
