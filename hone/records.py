"""The records that cross folders and topics: what was served, what people did with it, and what follows.

Topics carry them as JSON, keyed by conversation; correctness never relies on their order.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

RESPONSES_TOPIC = "hone.responses.v1"
FEEDBACK_TOPIC = "hone.feedback.v1"
RETRAIN_TOPIC = "hone.retrain.v1"
DEAD_LETTER_TOPIC = "hone.dead-letters.v1"

MAX_SIBLINGS = 8
"""Answers of one turn that may take part in pairs; more are kept, but compared with nothing."""

TRAINABLE_LICENSES = frozenset({"MIT", "Apache-2.0", "CC-BY-4.0"})
"""Imported rows under another licence are kept and shown, and never enter a training dataset."""


class FeedbackKind(StrEnum):
    """What a person did with an answer."""

    THUMBS = "thumbs"
    EDIT = "edit"
    REGENERATE = "regenerate"
    CHOICE = "choice"
    COMMENT = "comment"
    SIGNAL = "signal"
    OUTCOME = "outcome"


class Reason(StrEnum):
    """Why a thumb went up or down (list version 1)."""

    WRONG = "wrong"
    HALLUCINATED = "hallucinated"
    UNSAFE = "unsafe"
    TOO_LONG = "too long"
    EVASIVE = "evasive"
    SYCOPHANTIC = "sycophantic"
    STYLE = "style"
    OTHER = "other"


class Track(StrEnum):
    """Which arm of live traffic produced an answer; `replay` and `shadow` never count in a rollout."""

    STABLE = "stable"
    CANARY = "canary"
    SHADOW = "shadow"
    REPLAY = "replay"


class Verdict(StrEnum):
    """What a gate says. Missing data is inconclusive, never a pass."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message of a conversation, as OpenAI's API shapes it; `content` is null beside tool calls."""

    role: str
    content: str | None = None


class Response(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One answer as it was served (topic `hone.responses.v1`)."""

    schema_version: int = 1
    response_id: UUID
    conversation_id: UUID
    turn_id: UUID
    user_id: UUID
    messages: tuple[Message, ...]
    completion: str
    model_version: str
    track: Track
    rollout_id: UUID | None = None
    stage: int | None = None
    "Stage of the rollout in which the user was assigned; null outside rollouts."
    propensity: float = 1.0
    "Probability, 0 to 1, with which this track was chosen for this user; of a duel, for this regenerate of theirs."
    duel: bool = False
    "A regenerate that was given, by lot, to the arm that is not the user's own. Never the first answer of a turn."
    fallback: bool = False
    "The canary failed before its first byte and stable answered: outside the comparison, but a canary error."
    parameters: dict[str, Any] = {}
    finish_reason: str | None = None
    completed: bool = True
    "False when the client left or the upstream broke: such an answer never counts as a first one."
    idempotency_key: UUID | None = None
    latency_ms: float = 0.0
    first_byte_ms: float | None = None
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    license: str | None = None
    eval_only: bool = False
    created_at: datetime


class Feedback(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One act of feedback (topic `hone.feedback.v1`). Exactly the fields of its kind are set.

    thumbs: value -1, 0 (retracts) or +1, reasons · edit: text · regenerate: value = fraction rendered, 0 to 1 ·
    choice: rejected · comment: text · signal: name, value · outcome: name, value; on a response, conversation or user.
    """

    schema_version: int = 1
    event_id: UUID
    kind: FeedbackKind
    response_id: UUID | None = None
    conversation_id: UUID | None = None
    turn_id: UUID | None = None
    user_id: UUID
    value: float | None = None
    text: str | None = None
    name: str | None = None
    rejected: tuple[UUID, ...] = ()
    reasons: tuple[Reason, ...] = ()
    occurred_at: datetime
    received_at: datetime
    signed: bool = True


class RetrainLook(msgspec.Struct, frozen=True, kw_only=True):
    """A coarse message (topic `hone.retrain.v1`): "look at the database". It carries no data to act on."""

    schema_version: int = 1
    reason: str
    sent_at: datetime


class TrafficPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What every router shall do until `expires_at`; after that the canary's weight is 0 by itself."""

    fence: int
    "Monotone: a router refuses a plan with a smaller fence than the last one that it took."
    stable: str
    canary: str | None = None
    canary_weight: float = 0.0
    "Share of users, 0 to 1, that the canary answers."
    shadow: bool = False
    "The canary answers copies of stable's requests; nobody sees these answers."
    rollout_id: UUID | None = None
    stage: int | None = None
    duel_share: float = 0.0
    "Chance, 0 to 1, that the first regenerate of a turn is a duel; nothing below a canary weight of a quarter."
    reverse: bool = False
    "The canary is the former stable model, kept for some users to watch a promotion: break-glass goes back to it."
    expires_at: datetime


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One gate's verdict on one challenger, with the numbers it rests on."""

    gate: str
    verdict: Verdict
    reason: str
    measurements: dict[str, float] = {}
