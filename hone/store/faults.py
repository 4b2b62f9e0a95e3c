"""What a database error means for the work at hand: wait, blame one row, or stop."""

from enum import StrEnum

import psycopg2
from sqlalchemy.exc import DBAPIError

DATA = ("22", "23", "54")
"""SQLSTATE classes: bad value, broken constraint, and a limit such as a key too long for its index."""

TRANSIENT = ("08", "25P03", "40", "53", "55P03", "57")
"""SQLSTATE classes: connection, idle timeout, serialization or deadlock, resources, lock timeout, operator."""

DATABASE_ERRORS = (DBAPIError, psycopg2.Error)


UNIQUE_VIOLATION = "23505"


class Fault(StrEnum):
    """What to do about an error of the database."""

    TRANSIENT = "transient"
    "The same transaction may succeed later."
    DATA = "data"
    "One of the rows can never be stored."
    OTHER = "other"
    "A defect, or a schema of another version: stop."


def fault_of(error: BaseException) -> Fault:
    """Return what an error of SQLAlchemy or psycopg2 means; a lost connection has no SQLSTATE and is transient."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "pgcode", None) or ""
    if code.startswith(DATA):
        return Fault.DATA
    if code.startswith(TRANSIENT):
        return Fault.TRANSIENT
    if not code and isinstance(original, psycopg2.OperationalError | psycopg2.InterfaceError):
        return Fault.TRANSIENT
    # psycopg2 raises the bare class, without a code, when the server vanishes in the middle of COPY.
    return Fault.TRANSIENT if not code and type(original) is psycopg2.DatabaseError else Fault.OTHER


def is_taken(error: BaseException) -> bool:
    """Say whether a row with the same key was there already."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "pgcode", None) == UNIQUE_VIOLATION
