"""Requests to retrain: one row for one crossing of the threshold, claimed by one DAG run."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Subquery, and_, func, or_, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from hone.errors import Conflict
from hone.ids import uuid7
from hone.records import TRAINABLE_LICENSES, Track
from hone.settings import Trigger
from hone.store.candidates import WHOLE
from hone.store.locks import REVISIONS_LOCK
from hone.store.models import family_of
from hone.store.switches import FREEZE, is_on
from hone.store.tables import ErasureRow, PreferencePairRow, ResponseRow, RetrainRequestRow, UnaryLabelRow
from hone.trigger import Counts

MANUAL = "manual:"
"""Prefix of the crossing of a request that a person made."""

RECENT = timedelta(hours=1)
FINAL = frozenset({"done", "failed", "cancelled"})


def last_watermark(session: Session) -> int:
    """Return the largest pair revision that a retraining has had its chance to use, a failed one included; else 0."""
    return int(session.scalar(select(func.max(RetrainRequestRow.watermark))) or 0)


def counting_since(session: Session) -> datetime | None:
    """Return when the last watermark was drawn: pairs are counted anew from there; None: from the first one on."""
    row = RetrainRequestRow
    drawn_at = func.coalesce(row.claimed_at, row.finished_at)
    return session.scalar(select(func.max(drawn_at)).where(row.watermark.is_not(None)))


def crossing_name(watermark: int) -> str:
    """Name the crossing that follows a watermark: every look between two retrainings names the same one."""
    return f"pairs:{watermark}"


def count_new_pairs(
    session: Session, now: datetime, max_user_pairs: int | None = None, versions: Sequence[str] | None = None
) -> Counts:
    """Count the trainable active pairs above the last watermark, at most `max_user_pairs` of each person.

    Args:
        versions: only pairs count whose answers are of these; None: of any.
    """
    return count(session, new_pairs(last_watermark(session), versions), now, max_user_pairs)


def count_new_labels(
    session: Session, now: datetime, max_user_pairs: int | None = None, versions: Sequence[str] | None = None
) -> Counts:
    """Count the trainable active labels above the last watermark, for methods that learn from labels; see above."""
    return count(session, new_labels(last_watermark(session), versions), now, max_user_pairs)


def on_policy_versions(session: Session, trigger: Trigger) -> list[str] | None:
    """Return the versions whose answers are trained on; None: those of every version are."""
    family = family_of(session) if trigger.off_policy == "exclude" else None
    if family is None:
        return None
    return sorted(v for v in family.parents if family.reason(frozenset([v]), trigger.max_generations) is None)


def new_pairs(watermark: int, versions: Sequence[str] | None = None) -> Subquery:
    """Select person and time of each trainable active pair with a revision above `watermark`."""
    chosen, rejected = aliased(ResponseRow), aliased(ResponseRow)
    pair = PreferencePairRow
    return (
        select(pair.user_id, pair.updated_at)
        .join(chosen, chosen.response_id == pair.chosen_id)
        .join(rejected, rejected.response_id == pair.rejected_id)
        .where(pair.active, pair.rev > watermark, trainable(chosen), trainable(rejected), remembered(pair))
        .where(answered_by(rejected, versions), or_(pair.body_event_id.is_not(None), answered_by(chosen, versions)))
        .subquery()
    )


def new_labels(watermark: int, versions: Sequence[str] | None = None) -> Subquery:
    """Select person and time of each trainable active label with a revision above `watermark`."""
    label = UnaryLabelRow
    return (
        select(label.user_id, label.updated_at)
        .join(ResponseRow, ResponseRow.response_id == label.response_id)
        .where(label.active, label.rev > watermark, trainable(ResponseRow), remembered(label))
        .where(answered_by(ResponseRow, versions))
        .subquery()
    )


def trainable(response: type[ResponseRow]) -> ColumnElement[bool]:
    """Say that an answer may enter a training dataset."""
    return and_(
        or_(response.license.is_(None), response.license.in_(TRAINABLE_LICENSES)),
        ~response.eval_only,
        response.track != Track.SHADOW,
        response.finish_reason == WHOLE,
    )


def answered_by(response: type[ResponseRow], versions: Sequence[str] | None) -> ColumnElement[bool]:
    """Say that an answer is of one of the versions; None: of any."""
    return true() if versions is None else response.model_version.in_(versions)


def remembered(row: type[PreferencePairRow] | type[UnaryLabelRow]) -> ColumnElement[bool]:
    """Say that the person did not ask to be forgotten."""
    return ~select(ErasureRow.user_id).where(ErasureRow.user_id == row.user_id).exists()


def count(session: Session, new: Subquery, now: datetime, max_user_pairs: int | None) -> Counts:
    """Return how many of the `new` rows count, and how many of all of them are recent."""
    of_user = func.count().label("number")
    users = (
        select(
            func.least(of_user, max_user_pairs).label("capped"),
            func.count().filter(new.c.updated_at > now - RECENT).label("recent"),
            func.min(new.c.updated_at).label("oldest"),
        )
        .group_by(new.c.user_id)
        .subquery()
    )
    query = select(func.sum(users.c.capped), func.sum(users.c.recent), func.min(users.c.oldest))
    number, recent, oldest = session.execute(query).one()
    span_s = min(RECENT, max(now - oldest, timedelta(0))).total_seconds() if oldest else 0.0
    return Counts(int(number or 0), int(recent or 0), span_s)


def open_request(
    session: Session,
    *,
    crossing: str,
    reason: str,
    method: str,
    dataset_id: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> tuple[RetrainRequestRow, bool]:
    """Return the request of this crossing, and whether it was made by this call."""
    made = session.scalar(
        insert(RetrainRequestRow)
        .values(
            request_id=uuid7(),
            crossing=crossing,
            reason=reason,
            method=method,
            dataset_id=dataset_id,
            spec=dict(spec or {}),
            status="open",
        )
        .on_conflict_do_nothing(index_elements=["crossing"])
        .returning(RetrainRequestRow.request_id)
    )
    return session.scalars(select(RetrainRequestRow).where(RetrainRequestRow.crossing == crossing)).one(), bool(made)


def claim_request(session: Session, dag_run_id: str, now: datetime, *, mode: str) -> RetrainRequestRow | None:
    """Give the oldest open request to this DAG run, or return None where there is none to start now.

    The same run gets the same request again. A frozen platform starts nothing; in observe mode only requests that a
    person made are given. One on collected feedback gets its watermark here: every pair up to it is committed.
    """
    if is_on(session, FREEZE):
        return None
    held = session.scalars(
        select(RetrainRequestRow).where(
            RetrainRequestRow.dag_run_id == dag_run_id, RetrainRequestRow.status == "claimed"
        )
    ).first()
    if held:
        return held
    allowed = true() if mode == "active" else RetrainRequestRow.crossing.startswith(MANUAL)
    request = session.scalars(
        select(RetrainRequestRow)
        .where(RetrainRequestRow.status == "open", allowed)
        .order_by(RetrainRequestRow.created_at, RetrainRequestRow.request_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()
    if request is None:
        return None
    if request.dataset_id is None:
        request.watermark = draw_watermark(session)
    request.status, request.dag_run_id, request.claimed_at = "claimed", dag_run_id, now
    session.flush()
    return request


def draw_watermark(session: Session) -> int:
    """Return the largest revision so far, such that none below it can still appear: waits for pairs being written."""
    session.execute(select(func.pg_advisory_xact_lock(REVISIONS_LOCK)))
    largest = (select(func.max(row.rev)).scalar_subquery() for row in (PreferencePairRow, UnaryLabelRow))
    return int(session.scalar(select(func.coalesce(func.greatest(*largest), 0))) or 0)


def finish_request(session: Session, request_id: UUID, status: str, detail: str | None, now: datetime) -> None:
    """End a request as done, failed or cancelled. Repeating the same end changes nothing.

    The pairs of a request that was cancelled before its claim count as used, or it would open again at once.

    Raises:
        ValueError: the status is not an end.
        Conflict: there is no such request, or it ended otherwise.
    """
    if status not in FINAL:
        raise ValueError(f"status {status!r}: use one of {', '.join(sorted(FINAL))}")
    request = session.get(RetrainRequestRow, request_id, with_for_update=True, populate_existing=True)
    if request is None:
        raise Conflict(f"there is no retrain request {request_id}")
    if request.status == status:
        return
    if request.status in FINAL:
        raise Conflict(f"retrain request {request_id} is {request.status} already: it cannot become {status}")
    if request.status == "open" and request.dataset_id is None:
        request.watermark = draw_watermark(session)
    request.status, request.detail, request.finished_at = status, detail, now
    session.flush()


def list_requests(session: Session, *, status: str | None = None, limit: int = 50) -> list[RetrainRequestRow]:
    """Return the newest requests first."""
    query = select(RetrainRequestRow).order_by(RetrainRequestRow.created_at.desc()).limit(limit)
    if status is not None:
        query = query.where(RetrainRequestRow.status == status)
    return list(session.scalars(query))
