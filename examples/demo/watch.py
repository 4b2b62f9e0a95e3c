"""What the demo sees of the platform: rows in its database, read and waited for, never written."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import HoneError
from hone.rollout import FINAL
from hone.store.tables import (
    DeadLetterRow,
    EvaluationRow,
    FeedbackEventRow,
    ModelVersionRow,
    PreferencePairRow,
    ResponseRow,
    RetrainRequestRow,
    RolloutRow,
    TrainingRunRow,
)

T = TypeVar("T")
POLL_S = 0.2


class DemoFailed(HoneError):
    """The loop did not do what it promises; the message names the part, its log and the remedy."""


@dataclass(frozen=True)
class Watcher:
    """Reads the database, and notices at every look when a program has died."""

    sessions: sessionmaker[Session]
    check: Callable[[], None]
    logs: str

    def wait(self, what: str, probe: Callable[[Session], T | None], timeout_s: float, log: str) -> T:
        """Return the probe's first result that is not None.

        Raises:
            DemoFailed: none came within `timeout_s`. ProgramFailed: a program ended meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            with self.sessions() as session:
                found = probe(session)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise DemoFailed(f"{what} did not happen within {timeout_s:g} s: read {self.logs}/{log}.log")
            time.sleep(POLL_S)

    def read(self, probe: Callable[[Session], T]) -> T:
        """Return what the probe sees now."""
        with self.sessions() as session:
            return probe(session)


def num_events(session: Session) -> int:
    """Count the events that are stored or dead."""
    stored = session.scalar(select(func.count()).select_from(FeedbackEventRow)) or 0
    return stored + num_dead(session)


def num_stored(session: Session) -> int:
    """Count the stored events."""
    return session.scalar(select(func.count()).select_from(FeedbackEventRow)) or 0


def num_failed(session: Session) -> int:
    """Count the answers that people did not get whole."""
    return session.scalar(select(func.count()).select_from(ResponseRow).where(~ResponseRow.completed)) or 0


def num_dead(session: Session) -> int:
    """Count the dead letters."""
    return session.scalar(select(func.count()).select_from(DeadLetterRow)) or 0


def num_pairs(session: Session) -> int:
    """Count the active pairs."""
    return session.scalar(select(func.count()).select_from(PreferencePairRow).where(PreferencePairRow.active)) or 0


def request_of(crossing: str) -> Callable[[Session], RetrainRequestRow | None]:
    """Return a probe for the request whose crossing starts so."""
    query = select(RetrainRequestRow).where(RetrainRequestRow.crossing.startswith(crossing))
    return lambda session: session.scalars(query.order_by(RetrainRequestRow.created_at)).first()


def feedback_request(session: Session) -> RetrainRequestRow | None:
    """Return the request that the threshold made."""
    query = select(RetrainRequestRow).where(~RetrainRequestRow.crossing.startswith("manual:"))
    return session.scalars(query.order_by(RetrainRequestRow.created_at)).first()


def ended_request(request_id: UUID) -> Callable[[Session], RetrainRequestRow | None]:
    """Return a probe for the request once its DAG run is over; a failed one raises DemoFailed."""

    def probe(session: Session) -> RetrainRequestRow | None:
        row = session.get_one(RetrainRequestRow, request_id)
        if row.status in ("failed", "cancelled"):
            raise DemoFailed(f"the retraining ended as {row.status} ({row.detail}): read the log retrain.log")
        return row if row.status == "done" else None

    return probe


def run_of(session: Session, request_id: UUID) -> TrainingRunRow | None:
    """Return the newest training run of a request."""
    query = select(TrainingRunRow).where(TrainingRunRow.request_id == request_id)
    return session.scalars(query.order_by(TrainingRunRow.started_at.desc())).first()


def model_of(session: Session, run_id: str) -> ModelVersionRow:
    """Return the version that a run made."""
    return session.scalars(select(ModelVersionRow).where(ModelVersionRow.run_id == run_id)).one()


def gate_results(session: Session, model_version: str) -> list[dict[str, Any]]:
    """Return gate, verdict and reason of every evaluation of a version."""
    query = select(EvaluationRow).where(EvaluationRow.model_version == model_version).order_by(EvaluationRow.created_at)
    return [{"gate": row.gate, "verdict": row.verdict, "reason": row.reason} for row in session.scalars(query)]


def rollout_of(model_version: str) -> Callable[[Session], RolloutRow | None]:
    """Return a probe for the rollout of a version."""
    return lambda session: session.scalars(select(RolloutRow).where(RolloutRow.canary_version == model_version)).first()


def ended_rollout(rollout_id: UUID) -> Callable[[Session], RolloutRow | None]:
    """Return a probe for the rollout once it is final and its last plan is in force."""

    def probe(session: Session) -> RolloutRow | None:
        row = session.get_one(RolloutRow, rollout_id)
        return row if row.phase in FINAL and row.applied_epoch >= row.epoch else None

    return probe
