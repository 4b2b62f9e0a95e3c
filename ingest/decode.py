"""Bytes of a topic to records. What cannot become a row is refused here, with a short stable reason."""

from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import Any

import msgspec

from hone.errors import InvalidEvent
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, FeedbackKind, Response

SCHEMA_VERSION = 1
MAX_BODY_BYTES = 1 << 20
MAX_NAME_CHARACTERS = 128
MIN_YEAR, MAX_YEAR = 2000, 2100
EARLIEST, LATEST = datetime(MIN_YEAR, 1, 2, tzinfo=UTC), datetime(MAX_YEAR, 12, 31, tzinfo=UTC)
"""Between them a time has a year in the bounds, whatever its offset."""


class Version(msgspec.Struct):
    """The one field that is read before a message's shape is known."""

    schema_version: int = SCHEMA_VERSION


VERSION = msgspec.json.Decoder(Version)
RECORDS: dict[str, msgspec.json.Decoder[Any]] = {
    RESPONSES_TOPIC: msgspec.json.Decoder(Response),
    FEEDBACK_TOPIC: msgspec.json.Decoder(Feedback),
}


def decode(topic: str, body: bytes | None) -> Response | Feedback:
    """Return the record in one message.

    Raises:
        InvalidEvent: with reason empty, too_large, not_json, wrong_shape, schema_version, nul_character,
            bad_timestamp or bad_value.
    """
    if not body:
        raise InvalidEvent("empty", "the message has no body")
    if len(body) > MAX_BODY_BYTES:
        raise InvalidEvent("too_large", f"{len(body)} bytes, at most {MAX_BODY_BYTES} are read")
    try:
        record: Response | Feedback = RECORDS[topic].decode(body)
    except msgspec.ValidationError as error:
        check_version(body)
        raise InvalidEvent("wrong_shape", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent("not_json", str(error)) from None
    if record.schema_version != SCHEMA_VERSION:
        raise InvalidEvent("schema_version", f"version {record.schema_version}, this ingest reads {SCHEMA_VERSION}")
    if b"\\" in body and b"\\u0000" in body:
        reject_nul(record)
    check(record)
    return record


def check(record: Response | Feedback) -> None:
    """Refuse what types alone do not rule out: times and values that mean nothing.

    Raises:
        InvalidEvent: bad_timestamp or bad_value.
    """
    if isinstance(record, Feedback):
        first, last = record.occurred_at, record.received_at
        check_feedback(record)
    else:
        first = last = record.created_at
    # Asked here, and not by a call for each: this runs for every message.
    try:
        is_usual = EARLIEST <= first <= last < LATEST
    except TypeError:  # one has no offset from UTC
        is_usual = False
    if not is_usual:
        check_time(first)
        check_time(last)


def check_version(body: bytes) -> None:
    """Blame the version, if it is another one, rather than the fields that it brought."""
    try:
        version = VERSION.decode(body).schema_version
    except msgspec.ValidationError:
        return
    if version != SCHEMA_VERSION:
        raise InvalidEvent("schema_version", f"version {version}, this ingest reads {SCHEMA_VERSION}")


def reject_nul(record: Response | Feedback) -> None:
    """Refuse U+0000 in any text: Postgres stores it neither as text nor as JSON."""
    if b"\\u0000" in msgspec.json.encode(record).replace(b"\\\\", b""):
        raise InvalidEvent("nul_character", "a text holds U+0000, which Postgres cannot store")


def reject_not_finite(record: Response | Feedback) -> None:
    """Refuse NaN and infinities, which Avro, Protobuf and texts can hold: as JSON they would silently be null."""
    numbers = {"value": record.value} if isinstance(record, Feedback) else numbers_of(record)
    for name, number in numbers.items():
        if isinstance(number, float) and not isfinite(number):
            raise InvalidEvent("bad_value", f"{name} is {number}, not a finite number")


def numbers_of(answer: Response) -> dict[str, Any]:
    """Return what may be a number in an answer, by its place."""
    found = {name: getattr(answer, name) for name in ("propensity", "latency_ms", "first_byte_ms")}
    waiting: list[tuple[str, Any]] = [("parameters", answer.parameters)]
    while waiting:
        place, value = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [(f"{place}.{name}", item) for name, item in items]
        found[place] = value
    return found


def check_time(time: datetime) -> None:
    """Refuse a time without an offset from UTC, or in a year that no clock shows."""
    if time.tzinfo is None:
        raise InvalidEvent("bad_timestamp", f"{time.isoformat()} has no offset from UTC, such as Z")
    if not MIN_YEAR <= time.year <= MAX_YEAR:
        raise InvalidEvent("bad_timestamp", f"year {time.year} is outside {MIN_YEAR} to {MAX_YEAR}")


def check_feedback(event: Feedback) -> None:
    """Refuse feedback that lacks what its kind means."""
    if event.response_id is None and event.kind != FeedbackKind.OUTCOME:
        raise InvalidEvent("bad_value", f"{event.kind} without a response_id")
    if event.name is not None and not 0 < len(event.name) <= MAX_NAME_CHARACTERS:
        raise InvalidEvent(
            "bad_value", f"a name of {len(event.name)} characters, 1 to {MAX_NAME_CHARACTERS} are stored"
        )
    if not IS_COMPLETE[event.kind](event):
        raise InvalidEvent("bad_value", f"{event.kind} does not hold what that kind needs, see docs/ingest.md")


IS_COMPLETE: dict[FeedbackKind, Callable[[Feedback], bool]] = {
    FeedbackKind.THUMBS: lambda event: event.value in (-1, 0, 1),
    FeedbackKind.EDIT: lambda event: event.text is not None,
    FeedbackKind.REGENERATE: lambda event: event.value is None or 0 <= event.value <= 1,
    FeedbackKind.CHOICE: lambda event: len(event.rejected) > 0 and event.response_id not in event.rejected,
    FeedbackKind.COMMENT: lambda event: event.text is not None,
    FeedbackKind.SIGNAL: lambda event: event.name is not None,
    FeedbackKind.OUTCOME: lambda event: event.name is not None and event.value is not None,
}
"""Whether an event of the kind holds its fields; others that it may hold are stored and mean nothing."""
