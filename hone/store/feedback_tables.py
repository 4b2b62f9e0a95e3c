"""Tables of what was served, what people did with it, and what follows for learning."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Identity,
    Index,
    false,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from hone.store.table_base import REVISIONS, Base


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
    duel: Mapped[bool] = mapped_column(server_default=false())
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
        Index("response_duel_idx", "rollout_id", "created_at", postgresql_where=text("duel")),
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

    __table_args__ = (
        Index("feedback_event_thumbs_idx", "stored_at", "event_id", postgresql_where=THUMBS_ONLY),
        # Rows lie in the order of their storage: a few bytes for each 128 pages are enough to find a range of time.
        Index(
            "feedback_event_stored_at_idx",
            "stored_at",
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        ),
    )


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
    topic_id: Mapped[str | None]
    "The broker's own id of the topic: another one when the topic was deleted and created again."
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
    dismissed_at: Mapped[datetime | None]
    "When somebody decided that nothing is to be done about it."
    published_at: Mapped[datetime | None]
    "When the dead-letter topic got it."

    __table_args__ = (
        Index("dead_letter_coordinates_key", "incarnation", "topic", "partition", "offset", unique=True),
        Index("dead_letter_unpublished_idx", "dead_letter_id", postgresql_where=text("published_at IS NULL")),
    )
