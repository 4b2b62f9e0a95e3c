"""Responses and feedback for tests: only what a test names differs from a plain one."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import msgspec

from hone.ids import uuid7
from hone.records import Feedback, FeedbackKind, Message, Response, Track

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
SPACE = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


def uid(name: str) -> UUID:
    """The same id for the same name."""
    return uuid5(SPACE, name)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def response(
    name: str | None = None, *, turn: str = "turn", user: str = "ann", second: float = 0, **fields: Any
) -> Response:
    defaults: dict[str, Any] = {
        "response_id": uid(name) if name else uuid7(),
        "conversation_id": uid("conversation"),
        "turn_id": uid(turn),
        "user_id": uid(user),
        "messages": (Message("user", "How do I reset my password?"),),
        "completion": f"answer {name}",
        "model_version": "base",
        "track": Track.STABLE,
        "finish_reason": "stop",
        "created_at": at(second),
    }
    return Response(**(defaults | fields))


def feedback(kind: str, on: str | None, *, user: str = "ann", second: float = 10, **fields: Any) -> Feedback:
    defaults: dict[str, Any] = {
        "event_id": uuid7(),
        "kind": FeedbackKind(kind),
        "response_id": uid(on) if on else None,
        "user_id": uid(user),
        "occurred_at": at(second),
        "received_at": at(second),
    }
    return Feedback(**(defaults | fields))


def encode(record: Response | Feedback) -> bytes:
    return msgspec.json.encode(record)
