"""Acts of feedback as clients send them, read and checked; a fault names its field, its value and what to send."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from hone.records import FeedbackKind, Reason
from serving.http import FieldError, Problem

MAX_CLOCK_SKEW = timedelta(minutes=5)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
MAX_NAME_CHARACTERS = 128
MAX_REJECTED = 16
MAX_NUMBER = 1e15
"""JSON carries integers of thousands of digits: comparing them is safe, making a float of them is not."""
PATH = re.compile(r"`\$\.?([^`]*)`")
REMEDIES = {
    "kind": f"send one of {', '.join(FeedbackKind)}",
    "reasons": f"send a list out of {', '.join(Reason)}",
    "response_id": "send the `id` of the answer",
    "event_id": "send a uuid (version 7 if you can), or leave it out",
    "occurred_at": "send RFC 3339 with a zone, such as 2026-01-31T12:00:00Z, or leave it out",
    "conversation_id": "send the conversation's name as a text",
    "user": "send the user's name as a text",
    "name": f"send a name of 1 to {MAX_NAME_CHARACTERS} characters",
}


class ActBody(msgspec.Struct, forbid_unknown_fields=True):
    """One act as sent."""

    kind: FeedbackKind
    response_id: str | None = None
    event_id: UUID | None = None
    value: Any = None
    name: str | None = None
    reasons: list[Reason] = []
    occurred_at: datetime | None = None
    conversation_id: str | None = None
    user: str | None = None


@dataclass(frozen=True)
class Document:
    """The acts of a request; `batch` if they came as a list."""

    items: list[Any]
    batch: bool

    def path(self, position: int) -> str:
        """Return what goes before the names of an act's fields in errors."""
        return f"events[{position}]." if self.batch else ""


class Act(msgspec.Struct, frozen=True):
    """One act, checked."""

    path: str
    kind: FeedbackKind
    response_id: str | None
    event_id: UUID | None
    occurred_at: datetime | None
    conversation_id: str | None = None
    user: str | None = None
    reasons: tuple[Reason, ...] = ()
    value: float | None = None
    text: str | None = None
    name: str | None = None
    rejected: tuple[str, ...] = ()

    def content(self, now: datetime) -> dict[str, Any]:
        """Return the fields that an event takes from the act as they are."""
        return {
            "kind": self.kind,
            "value": self.value,
            "text": self.text,
            "name": self.name,
            "reasons": self.reasons,
            "occurred_at": self.occurred_at or now,
        }


def wrong(path: str, value: Any, remedy: str) -> Problem:
    """Return the 422 of one field."""
    is_plain = value is None or (isinstance(value, int | float) and abs(value) <= MAX_NUMBER)
    shown = value if is_plain else str(value)[:200]
    detail = f"{path} = {shown!r}: {remedy}"
    return Problem(422, "invalid feedback", detail, errors=(FieldError(path, shown, remedy),))


def read_document(body: bytes) -> Document:
    """Return the acts in a body.

    Raises:
        Problem: 400, no JSON; 422, neither an act nor a batch of them.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "bad JSON", f"the body is not JSON ({error}): send an object") from None
    if not isinstance(document, dict):
        raise wrong("(body)", document, 'send an object, or {"events": [...]}')
    if "events" not in document:
        return Document([document], batch=False)
    if not isinstance(document["events"], list) or not document["events"] or len(document) > 1:
        raise wrong("events", document["events"], "send a list of one or more acts, and no field beside it")
    return Document(document["events"], batch=True)


def read_act(item: Any, path: str, now: datetime) -> Act:
    """Return one act.

    Raises:
        Problem: 422 with field, value and remedy.
    """
    try:
        body = msgspec.convert(item, ActBody)
    except msgspec.ValidationError as error:
        raise from_validation(error, item, path) from None
    return check_act(body, path, now)


def check_act(body: ActBody, path: str, now: datetime) -> Act:
    """Return the act, if its fields agree with each other.

    Raises:
        Problem: 422 with field, value and remedy.
    """
    check_time(body.occurred_at, path, now)
    check_subject(body, path)
    act = Act(
        path=path,
        kind=body.kind,
        response_id=body.response_id,
        event_id=body.event_id,
        occurred_at=body.occurred_at,
        conversation_id=body.conversation_id,
        user=body.user,
        reasons=tuple(dict.fromkeys(body.reasons)) if body.reasons else (),
        **READERS[body.kind](body, path),
    )
    if (act.text and "\x00" in act.text) or (act.name and "\x00" in act.name):
        raise wrong(f"{path}value", "a text with U+0000", "leave that character out")
    return act


def check_time(occurred_at: datetime | None, path: str, now: datetime) -> None:
    """Refuse times without a zone, from before the year 2000, and from the future."""
    if occurred_at is None:
        return
    if occurred_at.tzinfo is None or occurred_at < EARLIEST:
        raise wrong(f"{path}occurred_at", occurred_at.isoformat(), REMEDIES["occurred_at"])
    if occurred_at > now + MAX_CLOCK_SKEW:
        remedy = f"it lies in the future: set the clock (here it is {now.isoformat(timespec='seconds')})"
        raise wrong(f"{path}occurred_at", occurred_at.isoformat(), remedy)


def check_subject(body: ActBody, path: str) -> None:
    """Only outcomes may speak of a conversation or user instead of an answer."""
    others = body.conversation_id or body.user
    if body.response_id is None and body.kind is not FeedbackKind.OUTCOME:
        raise wrong(f"{path}response_id", None, REMEDIES["response_id"])
    if others and (body.response_id is not None or body.kind is not FeedbackKind.OUTCOME):
        remedy = "leave conversation_id and user out: the answer's id says both; only outcomes without it name them"
        raise wrong(f"{path}conversation_id", others, remedy)
    if body.reasons and body.kind is not FeedbackKind.THUMBS:
        raise wrong(f"{path}reasons", ", ".join(body.reasons), "send reasons with thumbs only")


def from_validation(error: msgspec.ValidationError, item: Any, path: str) -> Problem:
    """Return the 422 for a field of the wrong type, or one that is missing or unknown."""
    message = str(error)
    found = PATH.search(message)
    missing = re.search(r"field `(\w+)`", message)
    name = (found.group(1) if found else "") or (missing.group(1) if missing else "(body)")
    top = re.split(r"[.\[]", name)[0]
    value: Any = item.get(top) if isinstance(item, dict) else item
    for index in re.findall(r"\[(\d+)\]", name):
        value = value[int(index)]
    known = ", ".join(ActBody.__struct_fields__)
    return wrong(path + name, value, REMEDIES.get(top, f"{message}; known fields: {known}"))


def read_number(body: ActBody, path: str, low: float, high: float, remedy: str) -> float:
    """Return `value` as a finite number within bounds."""
    value = body.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(f"{path}value", value, remedy)
    return float(value)


def read_thumbs(body: ActBody, path: str) -> dict[str, Any]:
    """-1, 0 or 1."""
    remedy = "send -1 (down), 0 (taken back) or 1 (up)"
    value = read_number(body, path, -1, 1, remedy)
    if value not in (-1, 0, 1):
        raise wrong(f"{path}value", body.value, remedy)
    return {"value": value}


def read_text(body: ActBody, path: str) -> dict[str, Any]:
    """Return the text of an edit or comment."""
    if not isinstance(body.value, str) or not body.value.strip():
        raise wrong(f"{path}value", body.value, "send the text")
    return {"text": body.value}


def read_regenerate(body: ActBody, path: str) -> dict[str, Any]:
    """Return which share of the replaced answer had been shown; unknown is all of it."""
    if body.value is None:
        return {"value": 1.0}
    return {"value": read_number(body, path, 0, 1, "send the share of the answer that was shown, 0 to 1")}


def read_choice(body: ActBody, path: str) -> dict[str, Any]:
    """Return the ids of the answers that lost."""
    rejected = body.value.get("rejected") if isinstance(body.value, dict) else None
    if not isinstance(rejected, list) or not 0 < len(rejected) <= MAX_REJECTED or len(body.value) > 1:
        remedy = f'send {{"rejected": [ids of the 1 to {MAX_REJECTED} answers that lost]}}'
        raise wrong(f"{path}value", body.value, remedy)
    if not all(isinstance(token, str) for token in rejected):
        raise wrong(f"{path}value.rejected", rejected, "send ids of answers")
    return {"rejected": tuple(dict.fromkeys(rejected))}


def read_signal(body: ActBody, path: str) -> dict[str, Any]:
    """Return name, and value if there is one."""
    name, value = named_value(body, path)
    if value is None:
        return {"name": name}
    return {"name": name, "value": number(value, path)}


def read_outcome(body: ActBody, path: str) -> dict[str, Any]:
    """Return name and value."""
    name, value = named_value(body, path)
    return {"name": name, "value": number(value, path)}


def named_value(body: ActBody, path: str) -> tuple[str, Any]:
    """Return the name and value that stand in `value`, or in `name` and `value`."""
    if isinstance(body.value, dict) and body.name is None and body.value.keys() <= {"name", "value"}:
        name, value = body.value.get("name"), body.value.get("value")
    else:
        name, value = body.name, body.value
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise wrong(f"{path}name", name, REMEDIES["name"])
    return name, value


def number(value: Any, path: str) -> float:
    """Return a finite number; true is 1 and false 0."""
    if not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        raise wrong(f"{path}value", value, "send a number, such as 1 for yes and 0 for no")
    return float(value)


READERS: dict[FeedbackKind, Callable[[ActBody, str], dict[str, Any]]] = {
    FeedbackKind.THUMBS: read_thumbs,
    FeedbackKind.EDIT: read_text,
    FeedbackKind.REGENERATE: read_regenerate,
    FeedbackKind.CHOICE: read_choice,
    FeedbackKind.COMMENT: read_text,
    FeedbackKind.SIGNAL: read_signal,
    FeedbackKind.OUTCOME: read_outcome,
}
"""What `value` and `name` mean for each kind."""
