"""Rows as lines of Postgres's COPY text format: the cheapest encoding from Python (a join of strings)."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from io import StringIO
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

NULL = "\\N"


def escaped(value: str) -> str:
    """Return `value` with the four characters escaped that COPY text gives a meaning."""
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def encoded(value: Any) -> str:
    """Return one field: null, text, boolean, number, uuid, time, a tuple of uuids or words, or a JSON value."""
    if value is None:
        return NULL
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, UUID | int | float):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return escaped(msgspec.json.encode(value).decode())


def joined(fields: Iterable[object]) -> str:
    """Return a line of fields without a character to escape: null, boolean, number, text of a uuid or time, encoded."""
    return "\t".join([NULL if field is None else str(field) for field in fields])


def array(values: Sequence[object]) -> str:
    """Return a field of type array; elements are quoted, so that words with blanks and commas stay one."""
    if not values:
        return "{}"
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return escaped("{" + ",".join(f'"{value}"' for value in quoted) + "}")


def copy_rows(session: Session, table: str, columns: tuple[str, ...], lines: Iterable[str]) -> None:
    """Load lines without their newlines into an empty staging copy of `table`, which lives for one transaction.

    Raises:
        psycopg2.Error: unwrapped, since COPY goes past SQLAlchemy.
    """
    stage = f"stage_{table}"
    session.execute(
        text(f"CREATE TEMP TABLE IF NOT EXISTS {stage} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS")
    )
    session.execute(text(f"TRUNCATE {stage}"))
    connection: Any = session.connection().connection.driver_connection
    with connection.cursor() as cursor:
        cursor.copy_expert(f"COPY {stage} ({', '.join(columns)}) FROM STDIN", StringIO("\n".join(lines) + "\n"))
