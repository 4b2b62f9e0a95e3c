"""From an answer back to the people who shaped the model that gave it."""

from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hone.store.tables import (
    DatasetItemRow,
    DatasetRow,
    EvaluationRow,
    FeedbackEventRow,
    ModelVersionRow,
    ResponseRow,
    TrainingRunRow,
)

MAX_EVENTS = 1000
MAX_GENERATIONS = 50


def lineage_of(session: Session, response_id: UUID) -> dict[str, Any] | None:
    """Return answer, model, training run, dataset and events, and the model's ancestors; None if it is not stored.

    Plain values, ready for JSON. A model that was imported ends the chain. No text of any person is in it.
    """
    row = session.get(ResponseRow, response_id)
    if row is None:
        return None
    model = session.get(ModelVersionRow, row.model_version)
    return {
        "response": {
            "response_id": row.response_id,
            "model_version": row.model_version,
            "track": row.track,
            "rollout_id": row.rollout_id,
            "created_at": row.created_at,
        },
        "model": None if model is None else describe_model(session, model),
        "ancestors": [] if model is None else ancestors(session, model),
    }


def describe_model(session: Session, model: ModelVersionRow) -> dict[str, Any]:
    """Return a version, the run and the dataset that made it, and what the gates said."""
    run = session.get(TrainingRunRow, model.run_id) if model.run_id else None
    dataset = session.get(DatasetRow, model.dataset_id) if model.dataset_id else None
    gates = session.scalars(select(EvaluationRow).where(EvaluationRow.model_version == model.model_version))
    return {
        "model_version": model.model_version,
        "digest": model.digest,
        "status": model.status,
        "parent": model.parent,
        "contains_erased": model.contains_erased,
        "run": None if run is None else describe_run(run),
        "dataset": None if dataset is None else describe_dataset(session, dataset),
        "gates": [{"gate": gate.gate, "verdict": gate.verdict, "reason": gate.reason} for gate in gates],
    }


def describe_run(run: TrainingRunRow) -> dict[str, Any]:
    """Return what is known of a training run."""
    return {
        "run_id": run.run_id,
        "request_id": run.request_id,
        "method": run.method,
        "base_version": run.base_version,
        "status": run.status,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
    }


def describe_dataset(session: Session, dataset: DatasetRow) -> dict[str, Any]:
    """Return a dataset and the events behind its training rows, at most MAX_EVENTS of them."""
    trained_on = select(func.unnest(DatasetItemRow.event_ids).label("event_id")).where(
        DatasetItemRow.dataset_id == dataset.dataset_id, DatasetItemRow.split == "train"
    )
    events = trained_on.distinct().subquery()
    number = session.scalar(select(func.count()).select_from(events)) or 0
    shown = (
        select(
            FeedbackEventRow.event_id,
            FeedbackEventRow.kind,
            FeedbackEventRow.response_id,
            FeedbackEventRow.user_id,
            FeedbackEventRow.occurred_at,
        )
        .join(events, events.c.event_id == FeedbackEventRow.event_id)
        .order_by(FeedbackEventRow.occurred_at, FeedbackEventRow.event_id)
        .limit(MAX_EVENTS)
    )
    return {
        "dataset_id": dataset.dataset_id,
        "kind": dataset.kind,
        "source": dataset.source,
        "num_train": dataset.num_train,
        "created_at": dataset.created_at,
        "num_events": number,
        "events": [dict(row._mapping) for row in session.execute(shown)],
    }


def ancestors(session: Session, model: ModelVersionRow) -> list[dict[str, Any]]:
    """Return the versions that this one was trained from, the nearest first."""
    found: list[dict[str, Any]] = []
    parent = model.parent
    while parent is not None and len(found) < MAX_GENERATIONS:
        row = session.get(ModelVersionRow, parent)
        found.append(
            {
                "model_version": parent,
                "dataset_id": row.dataset_id if row else None,
                "run_id": row.run_id if row else None,
            }
        )
        parent = row.parent if row else None
    return found
