"""Who may call what. Keys are looked up in memory; the database is read every few seconds at most, not per request."""

import asyncio
import base64
import binascii
import functools
import math
import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import OperationalError

from hone.store.keys import EVERY_SCOPE, Caller, Scope, hash_key
from serving.http import Problem
from serving.http import Scope as Http

FRESH_S = 5.0
UNKNOWN_RETRY_S = 1.0
"""An unknown key may be a new one: the table is read again, but not more often than this."""
ADMIN = Caller("admin", EVERY_SCOPE)
STALE_S = 600.0
"""How long known keys keep working while the database is away."""


class Pace:
    """How often each known key may ask: an even rate, with bursts of ten seconds' worth. In this process only."""

    def __init__(self, per_minute: int) -> None:
        """`per_minute` is that of keys without one of their own; 0 is no limit."""
        self.per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, key: str, now: float, per_minute: int | None = None) -> None:
        """Count a request of a key, whose own pace, where it has one, is `per_minute`.

        Raises:
            Problem: 429, with the seconds until the next one is taken.
        """
        per_minute = self.per_minute if per_minute is None else per_minute
        if not per_minute:
            return
        per_s, burst = per_minute / 60, max(1.0, per_minute / 6)
        left, at = self._left.get(key, (burst, now))
        left = min(burst, left + (now - at) * per_s)
        if left < 1:
            wait_s = math.ceil((1 - left) / per_s - 1e-9)
            detail = f"the key makes more than {per_minute} requests a minute: wait {wait_s} s"
            raise Problem(429, "too many requests", detail, retry_after_s=wait_s)
        self._left[key] = (left - 1, now)


class Guard:
    """Checks `Authorization`. The admin key needs no database."""

    def __init__(
        self,
        admin_key: str,
        read_keys: Callable[[], Mapping[str, Caller]],
        *,
        open_chat: bool = False,
        pace: "Pace | None" = None,
    ) -> None:
        """`open_chat`: a gateway of one person on loopback, where chat needs no key."""
        self._pace = pace or Pace(0)
        self._admin_hash = hash_key(admin_key) if admin_key else None
        self._read_keys, self._open_chat = read_keys, open_chat
        self._keys: Mapping[str, Caller] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def require(self, http: Http, scope: Scope) -> Caller:
        """Return who calls, if the key carries the scope.

        Raises:
            Problem: 401 without a known key, 403 without the scope, 429 above the key's pace, 503 while keys cannot
                be read.
        """
        hashed = presented_hash(authorization(http))
        if hashed is None and scope is Scope.CHAT and self._open_chat:
            return Caller("loopback", frozenset({Scope.CHAT}))
        if hashed is None:
            raise Problem(401, "no key", "send `Authorization: Bearer <key>`; make one with `hone keys create`")
        caller = await self._find(hashed)
        if caller is None:
            raise Problem(401, "unknown key", "the key is unknown or revoked: make one with `hone keys create`")
        if scope not in caller.scopes and Scope.ADMIN not in caller.scopes:
            raise Problem(403, "scope missing", f"key {caller.name!r} lacks the scope {scope}: make one that has it")
        if hashed != self._admin_hash:
            self._pace.spend(hashed, time.monotonic(), caller.requests_per_minute)
        return caller

    async def _find(self, hashed: str) -> Caller | None:
        if hashed == self._admin_hash:
            return ADMIN
        max_age = FRESH_S if hashed in self._keys else UNKNOWN_RETRY_S
        if time.monotonic() - self._read_at > max_age:
            await self._refresh(max_age)
        return self._keys.get(hashed)

    async def _refresh(self, max_age: float) -> None:
        """Read the table unless another request just did; known keys survive a database that is away for minutes."""
        async with self._lock:
            if time.monotonic() - self._read_at <= max_age:
                return
            try:
                self._keys = await asyncio.to_thread(self._read_keys)
                self._read_at = time.monotonic()
            except OperationalError as error:
                if time.monotonic() - self._read_at > STALE_S:
                    detail = "the database that holds the keys does not answer: try again, or use the admin key"
                    raise Problem(503, "keys unknown", detail, retry_after_s=5) from error


def authorization(http: Http) -> bytes:
    """Return the `Authorization` header; empty where there is none."""
    return next((value for name, value in http["headers"] if name == b"authorization"), b"")


@functools.lru_cache(maxsize=1024)
def presented_hash(value: bytes) -> str | None:
    """Return the hash of the key in a header; who called lately is known by it, without another look at the key."""
    key = presented_key(value.decode("latin-1").strip())
    return hash_key(key) if key else None


def presented_key(value: str) -> str | None:
    """Return the key of a `Bearer` header, or the password of a `Basic` one (Langfuse clients)."""
    scheme, _, rest = value.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
