"""Tables of rollouts, and of who may do and did what."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from hone.store.table_base import Base


class RolloutRow(Base):
    """One rollout: intent and evidence. Every change is `WHERE epoch = :epoch`."""

    __tablename__ = "rollout"

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    canary_version: Mapped[str] = mapped_column(ForeignKey("model_version.model_version"))
    stable_version: Mapped[str] = mapped_column(ForeignKey("model_version.model_version"))
    policy: Mapped[dict[str, Any]]
    policy_hash: Mapped[str]
    alpha: Mapped[float]
    "Its own level: what the ledger gave it when it started."
    watches: Mapped[UUID | None] = mapped_column(ForeignKey("rollout.rollout_id"))
    "The promotion that this rollout watches in reverse: its canary is the former stable model."
    approved_by: Mapped[str | None]
    approved_at: Mapped[datetime | None]
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


class RolloutLedgerRow(Base):
    """A rollout's place in the ledger of false promotions; never changed."""

    __tablename__ = "rollout_ledger"

    rollout_id: Mapped[UUID] = mapped_column(ForeignKey("rollout.rollout_id"), primary_key=True)
    ledger: Mapped[str]
    number: Mapped[int]
    "From 1; in a monthly ledger anew each month."
    num_promoted: Mapped[int]
    "Of those before it, proven by the test."
    budget: Mapped[float]
    alpha: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ResponseScoreRow(Base):
    """What a reward model says of an answer."""

    __tablename__ = "response_score"

    response_id: Mapped[UUID] = mapped_column(primary_key=True)
    scorer: Mapped[str]
    score: Mapped[float]
    scored_at: Mapped[datetime] = mapped_column(server_default=func.now())


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
    measures: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    "What guardrails watch of the first answer, each in [0, 1]."
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
    erasure_no: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    "Rises from person to person in the order of the commits: readers ask for what came since."


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
    requests_per_minute: Mapped[int | None]
    "In each gateway; 0: any number; null: what the gateway's settings say."
