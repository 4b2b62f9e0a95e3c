"""Training runs: one row for each (dataset, base, spec), restarted rather than doubled."""

from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.canonical import canonical_json, sha256_hex
from hone.errors import Conflict
from hone.store.tables import TrainingRunRow


def run_id_of(dataset_id: str, base_version: str, spec: dict[str, Any]) -> str:
    """Return the id of the run of this spec on this dataset from this base."""
    return f"r-{sha256_hex(canonical_json([dataset_id, base_version, spec]))[:12]}"


def start_run(
    session: Session,
    *,
    run_id: str,
    request_id: UUID | None,
    dataset_id: str,
    method: str,
    base_version: str,
    spec: dict[str, Any],
    directory: Path,
    now: datetime,
) -> TrainingRunRow:
    """Make sure that the run has a row and return it; one that failed is running again, one that is done stays done."""
    values = {
        "run_id": run_id,
        "request_id": request_id,
        "dataset_id": dataset_id,
        "method": method,
        "base_version": base_version,
        "spec": spec,
        "status": "running",
        "metrics": {},
        "directory": str(directory),
        "started_at": now,
    }
    session.execute(insert(TrainingRunRow).values(values).on_conflict_do_nothing())
    session.execute(
        update(TrainingRunRow)
        .where(TrainingRunRow.run_id == run_id, TrainingRunRow.status == "failed")
        .values(status="running", detail=None, finished_at=None)
    )
    return get_run(session, run_id)


def get_run(session: Session, run_id: str) -> TrainingRunRow:
    """Return the run's row.

    Raises:
        Conflict: there is no such run.
    """
    row = session.get(TrainingRunRow, run_id, populate_existing=True)
    if row is None:
        raise Conflict(f"training run {run_id} does not exist: see `hone status`")
    return row


def finish_run(session: Session, run_id: str, metrics: dict[str, Any], now: datetime) -> None:
    """Mark the run done, with its last metrics."""
    _end(session, run_id, now, status="done", metrics=metrics, detail=None)


def fail_run(session: Session, run_id: str, detail: str, now: datetime) -> None:
    """Mark the run failed; `detail` says why and where its log is."""
    _end(session, run_id, now, status="failed", detail=detail)


def _end(session: Session, run_id: str, now: datetime, **values: Any) -> None:
    session.execute(
        update(TrainingRunRow)
        .where(TrainingRunRow.run_id == run_id, TrainingRunRow.status == "running")
        .values(finished_at=now, **values)
    )
