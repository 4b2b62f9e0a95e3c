"""Rows of requests, training runs, verdicts and thumbs for tests of the monitor."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from hone.ids import uuid7
from hone.store.tables import DatasetRow, EvaluationRow, FeedbackEventRow, RetrainRequestRow, TrainingRunRow
from tests.support.rollouts import add_answer

NOW = datetime.now(UTC)


def add_request(session: Session, status: str, *, created: timedelta, ended: timedelta | None = None) -> None:
    session.add(
        RetrainRequestRow(
            request_id=uuid7(),
            crossing=f"pairs:{uuid7()}",
            reason="r",
            method="dpo",
            spec={},
            status=status,
            created_at=NOW - created,
            finished_at=NOW - ended if ended is not None else None,
        )
    )


def add_run(
    session: Session, run_id: str, status: str, *, ended: timedelta | None = None, directory: Path = Path("/r")
) -> None:
    if session.get(DatasetRow, "d") is None:
        numbers = {"num_train": 1, "num_dev": 1, "num_test": 1}
        session.add(DatasetRow(dataset_id="d", kind="pairs", source="feedback", manifest={}, **numbers))
        session.flush()
    fields = {"method": "dpo", "base_version": "old", "spec": {}, "metrics": {}, "directory": str(directory)}
    finished_at = NOW - ended if ended is not None else None
    row = TrainingRunRow(run_id=run_id, dataset_id="d", status=status, started_at=NOW - timedelta(hours=1), **fields)
    row.finished_at = finished_at
    session.add(row)


def write_progress(directory: Path, at: datetime, **speed: float) -> Path:
    """What a run at its tenth of forty steps says of itself."""
    directory.mkdir(exist_ok=True)
    facts = {"stage": "train", "done": 10, "total": 40, "at": at.timestamp(), "loss": 0.5, "speed": speed}
    (directory / "progress.json").write_text(json.dumps(facts))
    return directory


def add_verdict(session: Session, version: str, gate: str, verdict: str, second: float) -> None:
    session.add(
        EvaluationRow(
            evaluation_id=uuid7(),
            model_version=version,
            gate=gate,
            verdict=verdict,
            reason="r",
            measurements={},
            created_at=NOW + timedelta(seconds=second),
        )
    )


def add_thumbs(
    session: Session, votes: list[float], stored_at: datetime, *, signed: bool = True, **answer: Any
) -> None:
    """One answer and one thumb each, a millisecond apart."""
    for number, vote in enumerate(votes):
        response_id = add_answer(session, None, f"user {number}", 0, **answer)
        when = stored_at + timedelta(milliseconds=number)
        session.add(
            FeedbackEventRow(
                event_id=uuid7(),
                kind="thumbs",
                response_id=response_id,
                user_id=uuid7(),
                value=vote,
                rejected=[],
                reasons=[],
                occurred_at=when,
                received_at=when,
                signed=signed,
                stored_at=when,
            )
        )
    session.flush()
