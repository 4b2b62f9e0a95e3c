"""Tables of datasets, requests, runs and models."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from hone.store.table_base import Base


class DatasetRow(Base):
    """A frozen set of rows; `dataset_id` is the SHA-256 of the manifest, from which it is rebuilt byte for byte."""

    __tablename__ = "dataset"

    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    "`pairs`, `labels`, `demonstrations` or `prompts`"
    source: Mapped[str]
    "`feedback`, or the name of the import"
    manifest: Mapped[dict[str, Any]]
    num_train: Mapped[int]
    num_dev: Mapped[int]
    num_test: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DatasetItemRow(Base):
    """One row of a dataset: canonical JSON, named by its own hash."""

    __tablename__ = "dataset_row"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.dataset_id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    row_id: Mapped[str]
    split: Mapped[str]
    user_id: Mapped[UUID | None] = mapped_column(index=True)
    event_ids: Mapped[list[UUID]]
    "The events that made the row: the lineage from a served answer back to the people who shaped it."
    body: Mapped[str]


class RetrainRequestRow(Base):
    """A wish to retrain. One crossing of the threshold makes one row; one DAG run claims it."""

    __tablename__ = "retrain_request"

    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    crossing: Mapped[str] = mapped_column(unique=True)
    "What made the wish, named so that the same crossing cannot make two."
    reason: Mapped[str]
    method: Mapped[str]
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.dataset_id"))
    "Set before the claim only for a request on an imported dataset."
    spec: Mapped[dict[str, Any]]
    "Overrides of the configured run."
    status: Mapped[str] = mapped_column(index=True)
    "open, claimed, done, failed or cancelled"
    watermark: Mapped[int | None] = mapped_column(BigInteger)
    "Largest pair revision that the frozen dataset may hold."
    dag_run_id: Mapped[str | None]
    detail: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    claimed_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TrainingRunRow(Base):
    """One training of one challenger."""

    __tablename__ = "training_run"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[UUID | None] = mapped_column(ForeignKey("retrain_request.request_id"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.dataset_id"))
    method: Mapped[str]
    base_version: Mapped[str]
    spec: Mapped[dict[str, Any]]
    status: Mapped[str]
    "running, done or failed"
    metrics: Mapped[dict[str, Any]]
    directory: Mapped[str]
    detail: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class ModelVersionRow(Base):
    """One set of weights, named by its content; never overwritten."""

    __tablename__ = "model_version"

    model_version: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    directory: Mapped[str]
    parent: Mapped[str | None]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("training_run.run_id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.dataset_id"))
    status: Mapped[str]
    "candidate, passed, rejected, overridden or imported"
    contains_erased: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ModelAliasRow(Base):
    """A name that points to a version (`stable`); changed by compare-and-set on `generation`."""

    __tablename__ = "model_alias"

    alias: Mapped[str] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(ForeignKey("model_version.model_version"))
    generation: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class EvaluationRow(Base):
    """What one gate said of one version, and the numbers behind it."""

    __tablename__ = "evaluation"

    evaluation_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(ForeignKey("model_version.model_version"), index=True)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("training_run.run_id"))
    gate: Mapped[str]
    verdict: Mapped[str]
    reason: Mapped[str]
    measurements: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
