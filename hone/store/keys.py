"""API keys: made once, shown once, stored as hashes."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hone.errors import Conflict
from hone.store.tables import ApiKeyRow

PREFIX_CHARS = 12


class Scope(StrEnum):
    """What a key may do."""

    CHAT = "chat"
    FEEDBACK = "feedback"
    FEEDBACK_UNSIGNED = "feedback:unsigned"
    REVIEW = "review"
    ROLLOUT_WRITE = "rollout:write"
    ADMIN = "admin"


EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """Who holds a key: the name that the audit log gets, the scopes, and the pace."""

    name: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    "0: any number; None: what the gateway's settings say."


def new_key() -> str:
    """Return a fresh key: 256 random bits behind a prefix that secret scanners can find."""
    return f"hone_{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """Return what is stored of a key. Keys are random, so that a plain hash cannot be searched."""
    return hashlib.blake2b(key.encode(), digest_size=32, person=b"hone-api-key").hexdigest()


def create_key(session: Session, name: str, scopes: frozenset[Scope], requests_per_minute: int | None = None) -> str:
    """Store a new key and return it; nobody can read it again. The caller owns the transaction.

    Raises:
        ValueError: no scope is given, or a negative pace.
    """
    if not scopes:
        raise ValueError(f"key {name!r} has no scope: give at least one of {', '.join(Scope)}")
    if requests_per_minute is not None and requests_per_minute < 0:
        raise ValueError(f"key {name!r} may make {requests_per_minute} requests a minute: give 0 (any number) or more")
    key = new_key()
    row = ApiKeyRow(key_hash=hash_key(key), prefix=key[:PREFIX_CHARS], name=name, scopes=sorted(scopes))
    row.requests_per_minute = requests_per_minute
    session.add(row)
    session.flush()
    return key


def revoke_key(session: Session, prefix: str, now: datetime) -> str:
    """Revoke the one live key that begins with `prefix`; return its name. Gateways notice within seconds.

    Raises:
        Conflict: no live key begins so, or more than one does.
    """
    live = ApiKeyRow.prefix.startswith(prefix, autoescape=True) & ApiKeyRow.revoked_at.is_(None)
    names = list(session.scalars(update(ApiKeyRow).where(live).values(revoked_at=now).returning(ApiKeyRow.name)))
    if len(names) != 1:
        raise Conflict(f"{len(names)} live keys begin with {prefix!r}: give the start of exactly one")
    return names[0]


def live_keys(session: Session) -> Mapping[str, Caller]:
    """Return the holders of all live keys by the keys' hashes."""
    rows = session.scalars(select(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None)))
    return {row.key_hash: Caller(row.name, frozenset(map(Scope, row.scopes)), row.requests_per_minute) for row in rows}
