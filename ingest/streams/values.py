"""Values out of foreign documents: found by path, translated by a map, read as times. Pure."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hone.errors import InvalidEvent
from ingest.streams.config import Field, unset

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds of one unit; nanoseconds are divided."""

Find = Callable[[Any], Any]


def finder(path: str | Sequence[str]) -> Find:
    """Return what looks a path up in a document; None where there is nothing.

    A column may carry the whole path as its name (`user.id` in a CSV file): that wins.
    """
    whole = path if isinstance(path, str) else None
    names = path.split(".") if isinstance(path, str) else list(path)
    if len(names) == 1:
        return lambda document: step(document, names[0])

    def find(document: Any) -> Any:
        if whole is not None and isinstance(document, dict) and whole in document:
            return document[whole]
        for name in names:
            document = step(document, name)
        return document

    return find


def step(value: Any, name: str) -> Any:
    """Return what `name` names in a mapping, or in a list if it is a number."""
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, list | tuple) and name.isdecimal() and int(name) < len(value):
        return value[int(name)]
    return None


def as_text(value: Any) -> str:
    """Return a value as JSON would write it, texts bare: true, 1 (also for 1.0), null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if (isinstance(value, float) and value.is_integer()) or (isinstance(value, Decimal) and value == round(value)):
        return str(int(value))
    if value is None:
        return "null"
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def translated(field: Field, value: Any) -> Any:
    """Return what the field's map says of a value; a list is translated item by item.

    Raises:
        InvalidEvent: `unmapped`.
    """
    if field.map is None or (value is None and "null" not in field.map):
        return value
    if isinstance(value, list | tuple):
        return [translated(field, item) for item in value]
    text = as_text(value)
    if text in field.map:
        return field.map[text]
    if "*" in field.map:
        return field.map["*"]
    raise InvalidEvent("unmapped", f"{text[:80]!r} at {field.place} is not in its map ({', '.join(field.map)})")


def defaulted(field: Field, value: Any) -> Any:
    """Return the value, or the field's default where there is none."""
    if value is None and not unset(field.default):
        return field.default
    return value


def read_time(field: Field, value: Any) -> datetime:
    """Return the moment that a value names.

    Raises:
        InvalidEvent: `bad_timestamp`: not of the format that the field names, without a zone, or out of range.
    """
    if isinstance(value, datetime):
        return in_zone(field, value)
    text = as_text(value).strip()
    try:
        if field.time == "iso":
            return in_zone(field, datetime.fromisoformat(text))
        number = Decimal(text)
        micros = number / 1000 if field.time == "ns" else number * UNITS[field.time]
        return EPOCH + timedelta(microseconds=int(micros))
    except (ValueError, ArithmeticError):
        raise InvalidEvent(
            "bad_timestamp", f"{text[:80]!r} at {field.place} is no time of format {field.time}"
        ) from None


def in_zone(field: Field, moment: datetime) -> datetime:
    """Return the moment with a zone."""
    if moment.tzinfo is not None:
        return moment
    if field.zone is None:
        raise InvalidEvent(
            "bad_timestamp", f"{moment.isoformat()} at {field.place} has no offset from UTC: set zone in the mapping"
        )
    return moment.replace(tzinfo=ZoneInfo(field.zone))
