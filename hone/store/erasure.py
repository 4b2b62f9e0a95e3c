"""Forgetting a person: their texts, what they said of answers, and every mark of it in pairs and datasets."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Delete, LargeBinary, Update, delete, exists, func, literal, select, text, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session, aliased

from hone.store.audit import append_audit
from hone.store.locks import EXCLUDE_WRITERS
from hone.store.tables import (
    REVISIONS,
    DatasetItemRow,
    DeadLetterRow,
    ErasureRow,
    FeedbackEventRow,
    FeedbackStateRow,
    ModelVersionRow,
    PreferencePairRow,
    ResponseRow,
    UnaryLabelRow,
)

ERASED = "[erased]"


SINCE = text("SELECT erasure_no, user_id FROM erasure WHERE erasure_no > :last")


@dataclass
class Forgotten:
    """The people who were forgotten, as far as `refresh` has read; kept between batches, so that reading is cheap."""

    last: int = 0
    users: set[int] = field(default_factory=set)
    "Their ids as integers, which hash ten times faster than uuids."

    def refresh(self, session: Session) -> None:
        """Read who came since. Under the lock that erasures exclude, nobody is missed until the transaction ends."""
        for number, user in session.execute(SINCE, {"last": self.last}):
            self.last = max(self.last, number)
            self.users.add(user.int)


# What the person said may have stood in the way of others' pairs: those turns are derived again without it.
MARK_JUDGED = text("""
INSERT INTO dirty_turn (turn_id) SELECT DISTINCT subject_id FROM feedback_state
WHERE user_id = :user_id AND slot <> 'comment' AND slot NOT LIKE 'outcome:%' ORDER BY subject_id
ON CONFLICT (turn_id) DO UPDATE SET marked_at = dirty_turn.marked_at
""")


def erase_user(session: Session, user_id: UUID, *, actor: str, now: datetime) -> dict[str, int]:
    """Forget `user_id`; return how many rows of each kind were reached. Idempotent; the caller owns the transaction.

    Answers stay as facts (model, arm, times) without any text; feedback is deleted; pairs and labels are switched
    off; dataset rows are deleted, so that such a dataset cannot be made again; models trained on them, and models
    trained from those, carry `contains_erased`. The tombstone keeps the person out of every later dataset.
    Kafka keeps its copies until their retention ends; ingest, which waits for us, then leaves out what they hold.
    """
    session.execute(text(EXCLUDE_WRITERS))
    session.execute(MARK_JUDGED, {"user_id": user_id})
    counts = {
        "responses": blank_responses(session, user_id),
        "feedback_events": run(session, delete(FeedbackEventRow).where(FeedbackEventRow.user_id == user_id)),
        "feedback_states": run(session, delete(FeedbackStateRow).where(FeedbackStateRow.user_id == user_id)),
        "dead_letters": delete_dead_letters(session, user_id),
        "pairs": switch_off(session, PreferencePairRow, user_id, now),
        "labels": switch_off(session, UnaryLabelRow, user_id, now),
        "models": mark_models(session, user_id),
        "dataset_rows": run(session, delete(DatasetItemRow).where(DatasetItemRow.user_id == user_id)),
    }
    write_tombstone(session, user_id, counts, now)
    append_audit(session, actor, "user.erase", f"user:{user_id}", "the person asked for it", counts, now)
    return counts


def blank_responses(session: Session, user_id: UUID) -> int:
    """Take the texts out of the person's answers."""
    theirs = (ResponseRow.user_id == user_id) & (ResponseRow.completion != ERASED)
    return run(session, update(ResponseRow).where(theirs).values(messages=[], completion=ERASED, parameters={}))


def delete_dead_letters(session: Session, user_id: UUID) -> int:
    """Delete refused messages that name the person."""
    named = func.position(sql_cast(literal(str(user_id).encode()), LargeBinary).op("IN")(DeadLetterRow.body)) > 0
    return run(session, delete(DeadLetterRow).where(named))


def switch_off(
    session: Session, table: type[PreferencePairRow] | type[UnaryLabelRow], user_id: UUID, now: datetime
) -> int:
    """Make the person's pairs or labels inactive, as a retraction would."""
    active = table.active & (table.user_id == user_id)
    return run(session, update(table).where(active).values(active=False, rev=REVISIONS.next_value(), updated_at=now))


def mark_models(session: Session, user_id: UUID) -> int:
    """Mark the models whose dataset holds rows of the person, and all that were trained from them."""
    theirs = select(DatasetItemRow.dataset_id).where(DatasetItemRow.user_id == user_id)
    tainted = select(ModelVersionRow.model_version).where(ModelVersionRow.dataset_id.in_(theirs)).cte(recursive=True)
    child = aliased(ModelVersionRow)
    tainted = tainted.union(select(child.model_version).where(child.parent == tainted.c.model_version))
    named = exists().where(tainted.c.model_version == ModelVersionRow.model_version)
    return run(session, update(ModelVersionRow).where(named).values(contains_erased=True))


def write_tombstone(session: Session, user_id: UUID, counts: dict[str, int], now: datetime) -> None:
    """Remember whom to keep out; the first request's time stays, and the counts of repeated ones add up."""
    row = session.get(ErasureRow, user_id, with_for_update=True)
    if row is None:
        session.add(ErasureRow(user_id=user_id, requested_at=now, completed_at=now, counts=counts))
    else:
        row.completed_at = now
        row.counts = {name: number + row.counts.get(name, 0) for name, number in counts.items()}
    session.flush()


def run(session: Session, statement: Update | Delete) -> int:
    """Execute and return the number of rows reached."""
    statement = statement.execution_options(synchronize_session=False)
    return cast("CursorResult[Any]", session.execute(statement)).rowcount
