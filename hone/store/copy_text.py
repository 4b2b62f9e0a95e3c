"""Many rows by COPY, as text made by msgspec's JSON encoder, the cheapest encoding from Python; few rows by INSERT."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any
from uuid import UUID

import msgspec
from psycopg2.extras import execute_values
from sqlalchemy.orm import Session

ENCODER = msgspec.json.Encoder()

FORMAT = "(FORMAT csv, NULL 'null', ESCAPE '\\', ENCODING 'UTF8')"
"""With a backslash as its escape, CSV reads JSON's strings, but for the control characters, which JSON spells out."""

EMPTY = "{}"
"""An array without elements."""
PLAIN = re.compile(r"[\w-]+(?: [\w-]+)*")
"""Words, and uuids, that need no quotes in an array."""

JSON_ESCAPE = re.compile(rb'\\(?:u00..|[^"])')
CONTROLS = {rb"\n": b"\n", rb"\r": b"\r", rb"\t": b"\t", rb"\b": b"\b", rb"\f": b"\f"}
CONTROLS |= {b"\\u%04x" % code: bytes([code]) for code in range(1, 32)}


def control(found: re.Match[bytes]) -> bytes:
    """Return the control character that an escape stands for; a backslash stays escaped."""
    return CONTROLS.get(found[0], found[0])


def csv_lines(rows: Sequence[Sequence[object]]) -> bytes:
    """Return the rows as COPY reads them in FORMAT; fields are null, text, boolean, number, uuid or time.

    A line of JSON without its brackets is such a row: strings are quoted and null is not, as CSV has it.

    Raises:
        OverflowError: an integer has more than 64 bits.
    """
    inner = [line[1:-1] for line in ENCODER.encode_lines(rows).splitlines()]
    lines = b"\n".join([*inner, b""])
    return JSON_ESCAPE.sub(control, lines) if b"\\" in lines else lines


@lru_cache(4096)
def array(values: Sequence[object]) -> str:
    """Return a field of type array; an element is quoted where it must be, so that words with commas stay one."""
    return "{" + ",".join(map(element, map(str, values))) + "}"


def element(word: str) -> str:
    """Return one element of an array."""
    if PLAIN.fullmatch(word) and word.upper() != "NULL":
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def uuid_array(values: Iterable[UUID]) -> str:
    """Return the literal of an array of uuids."""
    return "{" + ENCODER.encode(list(values)).decode()[1:-1] + "}"


def copy_rows(session: Session, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Load the rows into the table by one COPY.

    Raises:
        psycopg2.Error: unwrapped, since COPY goes past SQLAlchemy; UniqueViolation where a row is there already.
        OverflowError: an integer has more than 64 bits.
    """
    copy_lines(session, table, columns, csv_lines(rows))


def copy_lines(session: Session, table: str, columns: Sequence[str], lines: bytes) -> None:
    """Load lines that `csv_lines` made."""
    connection: Any = session.connection().connection.driver_connection
    with connection.cursor() as cursor:
        cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN {FORMAT}", BytesIO(lines))


def insert_new_rows(session: Session, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> set[int]:
    """Insert the rows whose key, a uuid in the first column, is not there yet; return the keys of those as integers.

    Raises:
        psycopg2.Error: unwrapped, as `copy_rows`; a key that a neighbour stores at the same time is waited for.
    """
    connection: Any = session.connection().connection.driver_connection
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES %s ON CONFLICT DO NOTHING RETURNING {columns[0]}"
    with connection.cursor() as cursor:
        found = execute_values(cursor, statement, msgspec.to_builtins(rows), page_size=len(rows), fetch=True)
    return {UUID(str(key)).int for (key,) in found}
