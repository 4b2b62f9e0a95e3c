"""Every table of hone, once. Text ids are content hashes; uuids of people and conversations are keyed hashes."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Sequence,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "pk": "%(table_name)s_pkey",
}


class Base(DeclarativeBase):
    """Registry of the tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar = {
        datetime: DateTime(timezone=True),
        str: Text,
        bytes: LargeBinary,
        float: Float(53),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        list[str]: ARRAY(Text),
        list[UUID]: ARRAY(Uuid),
    }


REVISIONS = Sequence("pair_revision", metadata=Base.metadata)
"""Raises the `rev` of pairs and labels: a later change has a larger number, in all tables."""


class ResponseRow(Base):
    """One answer as served. Never updated, but for erasure."""

    __tablename__ = "response"

    response_id: Mapped[UUID] = mapped_column(primary_key=True)
    conversation_id: Mapped[UUID] = mapped_column(index=True)
    turn_id: Mapped[UUID] = mapped_column(index=True)
    user_id: Mapped[UUID] = mapped_column(index=True)
    messages: Mapped[list[Any]]
    completion: Mapped[str]
    model_version: Mapped[str]
    track: Mapped[str]
    rollout_id: Mapped[UUID | None]
    stage: Mapped[int | None]
    propensity: Mapped[float]
    fallback: Mapped[bool]
    parameters: Mapped[dict[str, Any]]
    finish_reason: Mapped[str | None]
    completed: Mapped[bool]
    idempotency_key: Mapped[UUID | None]
    latency_ms: Mapped[float]
    first_byte_ms: Mapped[float | None]
    num_prompt_tokens: Mapped[int | None]
    num_completion_tokens: Mapped[int | None]
    license: Mapped[str | None]
    eval_only: Mapped[bool]
    created_at: Mapped[datetime]
    stored_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index(None, "rollout_id", "user_id", "created_at", postgresql_where=text("rollout_id IS NOT NULL")),
        Index(None, "created_at"),
    )


THUMBS_ONLY = text("kind = 'thumbs'")


class FeedbackEventRow(Base):
    """One act of feedback, append-only."""

    __tablename__ = "feedback_event"

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    response_id: Mapped[UUID | None] = mapped_column(index=True)
    conversation_id: Mapped[UUID | None]
    turn_id: Mapped[UUID | None]
    user_id: Mapped[UUID] = mapped_column(index=True)
    value: Mapped[float | None]
    text: Mapped[str | None]
    name: Mapped[str | None]
    rejected: Mapped[list[UUID]]
    reasons: Mapped[list[str]]
    occurred_at: Mapped[datetime]
    received_at: Mapped[datetime]
    signed: Mapped[bool]
    stored_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("feedback_event_thumbs_idx", "stored_at", "event_id", postgresql_where=THUMBS_ONLY),)


class FeedbackStateRow(Base):
    """The last word of each user on each subject: the event with the greatest (occurred_at, event_id) wins.

    `subject_id` is a response, or for outcomes a conversation or user; `slot` is the kind, with the name for signals
    and outcomes (`outcome:resolved`).
    """

    __tablename__ = "feedback_state"

    subject_id: Mapped[UUID] = mapped_column(primary_key=True)
    slot: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    turn_id: Mapped[UUID | None] = mapped_column(index=True)
    value: Mapped[float | None]
    text: Mapped[str | None]
    rejected: Mapped[list[UUID]]
    reasons: Mapped[list[str]]
    occurred_at: Mapped[datetime]
    event_id: Mapped[UUID]
    signed: Mapped[bool]


class DirtyTurnRow(Base):
    """A turn whose pairs must be derived again; the hand-over from ingest to the pair worker.

    `turn_id` may name an answer instead, which stands for its turn: feedback can arrive before the answer.
    """

    __tablename__ = "dirty_turn"

    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    marked_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class PreferencePairRow(Base):
    """One preference between two answers of a turn, or between an answer and its edit. Retraction sets `active` false.

    `chosen_id` and `rejected_id` are responses; for an edit both name the edited response and
    `body_event_id` names the event that holds the text.
    """

    __tablename__ = "preference_pair"

    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    chosen_id: Mapped[UUID] = mapped_column(primary_key=True)
    rejected_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    body_event_id: Mapped[UUID | None]
    weight: Mapped[float]
    signed: Mapped[bool]
    active: Mapped[bool]
    rev: Mapped[int] = mapped_column(BigInteger, REVISIONS, server_default=REVISIONS.next_value(), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UnaryLabelRow(Base):
    """One person's good or bad on one answer, for KTO. Retraction sets `active` false."""

    __tablename__ = "unary_label"

    response_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    turn_id: Mapped[UUID] = mapped_column(index=True)
    label: Mapped[bool]
    weight: Mapped[float]
    reasons: Mapped[list[str]]
    signed: Mapped[bool]
    active: Mapped[bool]
    rev: Mapped[int] = mapped_column(BigInteger, REVISIONS, server_default=REVISIONS.next_value(), index=True)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ConsumerOffsetRow(Base):
    """Where the consumer group stands; the truth about offsets (Kafka's own are a lag hint). `epoch` fences zombies."""

    __tablename__ = "consumer_offset"

    consumer_group: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str] = mapped_column(primary_key=True)
    topic: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(primary_key=True)
    next_offset: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DeadLetterRow(Base):
    """A message that could not become a row: its bytes, its coordinates, and why."""

    __tablename__ = "dead_letter"

    dead_letter_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    incarnation: Mapped[str]
    topic: Mapped[str]
    partition: Mapped[int]
    offset: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[bytes | None]
    body: Mapped[bytes | None]
    reason: Mapped[str] = mapped_column(index=True)
    detail: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    replayed_at: Mapped[datetime | None]
    published_at: Mapped[datetime | None]
    "When the dead-letter topic got it."

    __table_args__ = (
        Index("dead_letter_coordinates_key", "incarnation", "topic", "partition", "offset", unique=True),
        Index("dead_letter_unpublished_idx", "dead_letter_id", postgresql_where=text("published_at IS NULL")),
    )


class DatasetRow(Base):
    """A frozen set of rows; `dataset_id` is the SHA-256 of the manifest, from which it is rebuilt byte for byte."""

    __tablename__ = "dataset"

    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    "`pairs`, `labels` or `texts`"
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


class RolloutRow(Base):
    """One rollout: intent and evidence. Every change is `WHERE epoch = :epoch`."""

    __tablename__ = "rollout"

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    canary_version: Mapped[str] = mapped_column(ForeignKey("model_version.model_version"))
    stable_version: Mapped[str] = mapped_column(ForeignKey("model_version.model_version"))
    policy: Mapped[dict[str, Any]]
    policy_hash: Mapped[str]
    alpha: Mapped[float]
    phase: Mapped[str] = mapped_column(index=True)
    stage: Mapped[int]
    weight: Mapped[float]
    epoch: Mapped[int] = mapped_column(BigInteger)
    applied_epoch: Mapped[int] = mapped_column(BigInteger)
    "The last epoch whose plan was seen in force on every router."
    evidence: Mapped[dict[str, Any]]
    "Log-wealths, counts and intervals after the last look: derived from rows, kept for display."
    reason: Mapped[str]
    started_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stage_started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class RolloutAssignmentRow(Base):
    """The arm in which a user met a rollout first; never changed."""

    __tablename__ = "rollout_assignment"

    rollout_id: Mapped[UUID] = mapped_column(ForeignKey("rollout.rollout_id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    track: Mapped[str]
    stage: Mapped[int]
    weight: Mapped[float]
    response_id: Mapped[UUID]
    assigned_at: Mapped[datetime]


class RolloutOutcomeRow(Base):
    """A closed unit, in the order `position` of the test; `value` is in [0, 1], or null where the user was silent."""

    __tablename__ = "rollout_outcome"

    rollout_id: Mapped[UUID] = mapped_column(ForeignKey("rollout.rollout_id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
    track: Mapped[str]
    stage: Mapped[int]
    value: Mapped[float | None]
    closed_at: Mapped[datetime]

    __table_args__ = (Index("rollout_outcome_rollout_id_position_key", "rollout_id", "position", unique=True),)


class RolloutTransitionRow(Base):
    """One change of one rollout, append-only; the plan is the intent, `applied_at` says when it was seen in force."""

    __tablename__ = "rollout_transition"

    rollout_id: Mapped[UUID] = mapped_column(ForeignKey("rollout.rollout_id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    from_phase: Mapped[str]
    to_phase: Mapped[str]
    stage: Mapped[int]
    weight: Mapped[float]
    reason: Mapped[str]
    actor: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    applied_at: Mapped[datetime | None]


class LeaseRow(Base):
    """Who may act under `name` until `expires_at`; `epoch` rises with each new holder and fences the old one."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]


class SwitchRow(Base):
    """A switch of the whole platform, such as `freeze`."""

    __tablename__ = "switch"

    name: Mapped[str] = mapped_column(primary_key=True)
    is_on: Mapped[bool]
    reason: Mapped[str]
    actor: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ErasureRow(Base):
    """A person who asked to be forgotten. The builder of datasets refuses their rows for ever."""

    __tablename__ = "erasure"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    completed_at: Mapped[datetime | None]
    counts: Mapped[dict[str, Any]]


class AuditRow(Base):
    """What a person or program decided, append-only; each row holds the hash of the one before."""

    __tablename__ = "audit_log"

    audit_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str]
    at: Mapped[datetime]


class ApiKeyRow(Base):
    """A key of the HTTP API: only its hash and first characters are kept."""

    __tablename__ = "api_key"

    key_hash: Mapped[str] = mapped_column(primary_key=True)
    prefix: Mapped[str]
    name: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]
