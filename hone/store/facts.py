"""What the monitor reads every few seconds: small tables, and of the large ones only rows behind an index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, case, func, select, text
from sqlalchemy.orm import Session

from hone.rollout import Phase
from hone.store.dead_letters import WAITING
from hone.store.models import STABLE
from hone.store.rollouts import live_rollout
from hone.store.switches import FREEZE
from hone.store.tables import (
    DeadLetterRow,
    EvaluationRow,
    ModelAliasRow,
    ResponseRow,
    RetrainRequestRow,
    RolloutRow,
    SwitchRow,
    TrainingRunRow,
)


@dataclass(frozen=True)
class Group:
    """How many rows have one status, when the first of them began, and when the last of them ended."""

    num: int
    began_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The state of the loop that no program's memory holds."""

    requests: Mapping[str, Group]
    runs: Mapping[str, Group]
    running: str | None
    "Directory of the run that began last of those that train now."
    rollouts: Mapping[str, Group]
    verdicts: Mapping[tuple[str, str], int]
    "Number of verdicts so far by (gate, verdict)."
    newest_verdicts: Mapping[str, str]
    "What each gate said of the version judged last."
    judged_at: datetime | None
    stable: tuple[str, datetime] | None
    "The version that `stable` names, and since when."
    unready_since: datetime | None
    frozen_since: datetime | None
    num_dead_letters: int
    "Those that nobody replayed or dismissed."


# A watch that brings the former model back rolls a promotion back; one that ends otherwise is no news.
OUTCOME = case(
    (RolloutRow.watches.is_(None), RolloutRow.phase),
    (RolloutRow.phase == Phase.PROMOTED, Phase.ROLLED_BACK.value),
    else_="watch",
)


def read_facts(session: Session) -> Facts:
    """Return the present state."""
    newest = session.execute(
        select(EvaluationRow.model_version, EvaluationRow.created_at).order_by(EvaluationRow.created_at.desc()).limit(1)
    ).first()
    stable = session.get(ModelAliasRow, STABLE, populate_existing=True)
    switch = session.get(SwitchRow, FREEZE, populate_existing=True)
    request, run, rollout = RetrainRequestRow, TrainingRunRow, RolloutRow
    return Facts(
        requests=groups(session, request.status, request.created_at, request.finished_at),
        runs=groups(session, run.status, run.started_at, run.finished_at),
        running=session.scalar(
            select(run.directory).where(run.status == "running").order_by(run.started_at.desc()).limit(1)
        ),
        rollouts=groups(session, OUTCOME, rollout.created_at, rollout.ended_at),
        verdicts=count_verdicts(session),
        newest_verdicts=verdicts_of(session, newest.model_version) if newest else {},
        judged_at=newest.created_at if newest else None,
        stable=(stable.model_version, stable.updated_at) if stable else None,
        unready_since=unready_since(live_rollout(session)),
        frozen_since=switch.updated_at if switch and switch.is_on else None,
        num_dead_letters=session.scalar(select(func.count()).select_from(DeadLetterRow).where(WAITING)) or 0,
    )


def groups(session: Session, status: Any, began_at: Any, ended_at: Any) -> dict[str, Group]:
    """Return the rows of one small table by status."""
    query = select(status, func.count(), func.min(began_at), func.max(ended_at)).group_by(status)
    return {name: Group(num, began, ended) for name, num, began, ended in session.execute(query)}


def count_verdicts(session: Session) -> dict[tuple[str, str], int]:
    """Return the number of verdicts by gate and verdict."""
    row = EvaluationRow
    query = select(row.gate, row.verdict, func.count()).group_by(row.gate, row.verdict)
    return {(gate, verdict): num for gate, verdict, num in session.execute(query)}


def verdicts_of(session: Session, model_version: str) -> dict[str, str]:
    """Return what each gate said last of one version."""
    row = EvaluationRow
    query = select(row.gate, row.verdict).where(row.model_version == model_version).order_by(row.created_at)
    return {gate: verdict for gate, verdict in session.execute(query)}


def unready_since(rollout: RolloutRow | None) -> datetime | None:
    """Return since when the live canary is not loaded, as the controller noted it; None where it is."""
    since = rollout.evidence.get("unready_since") if rollout else None
    return datetime.fromisoformat(since) if since else None


BEFORE_ALL = UUID(int=0)
"""Sorts before every event of the same time."""


@dataclass(frozen=True)
class Position:
    """How far a stream of events was read."""

    stored_at: datetime
    event_id: UUID = BEFORE_ALL


# A transaction of ingest that takes longer than `settle_s` hides its thumbs from the monitor, and from nothing else.
THUMBS = """
SELECT event.stored_at, event.event_id, event.value, response.track, response.model_version
FROM feedback_event AS event LEFT JOIN response USING (response_id)
WHERE event.kind = 'thumbs' AND event.signed AND event.value <> 0
  AND (event.stored_at, event.event_id) > (:stored_at, :event_id)
  AND event.stored_at < now() - make_interval(secs => :settle_s)
ORDER BY event.stored_at, event.event_id LIMIT :limit
"""


def read_thumbs(session: Session, after: Position, *, settle_s: float, limit: int) -> Sequence[Row[Any]]:
    """Return the next signed thumbs in the order of their storage; one whose answer is not there has no track."""
    values = {"stored_at": after.stored_at, "event_id": after.event_id, "settle_s": settle_s, "limit": limit}
    return session.execute(text(THUMBS), values).all()


def newest_answers(session: Session, after: datetime, limit: int) -> Sequence[ResponseRow]:
    """Return the newest completed answers of live traffic that were created after `after`, the oldest first."""
    row = ResponseRow
    query = (
        select(row)
        .where(row.created_at > after, row.track.in_(("stable", "canary")), row.completed)
        .order_by(row.created_at.desc())
        .limit(limit)
    )
    return list(reversed(session.scalars(query).all()))
