"""Identifiers: time-ordered uuids, and keyed hashes that never reveal what they were made of."""

import functools
import hashlib
import os
import time
from collections.abc import Sequence
from uuid import UUID

import msgspec

from hone.records import Message

RANDOM_BATCH = 64
NOBODY = UUID(int=0)
"""The user of feedback whose author is not known."""


def uuid7(at_ms: int | None = None) -> UUID:
    """Return a version 7 uuid (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits.

    Ids made later sort later, so that a B-tree over them grows at its right edge only.
    """
    at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    return uuid_of(((at_ms & 0xFFFF_FFFF_FFFF) << 80 | random_rest()).to_bytes(16, "big"))


def random_rest() -> int:
    """Return the lower 80 bits of a version 7 uuid: version, variant, and 74 fresh random bits.

    The system is asked for the bits of many at once, since each question costs a system call.
    """
    while True:
        try:
            return _random.pop()
        except IndexError:
            data = os.urandom(10 * RANDOM_BATCH)
            bits = [int.from_bytes(data[at : at + 10], "big") for at in range(0, len(data), 10)]
            _random.extend(0x7 << 76 | (one >> 68 & 0xFFF) << 64 | 0x2 << 62 | one & (1 << 62) - 1 for one in bits)


_random: list[int] = []
os.register_at_fork(after_in_child=_random.clear)  # or two processes would make the same ids


def uuid_of(data: bytes) -> UUID:
    """Return `UUID(bytes=data)` of 16 bytes, in a third of the time: its constructor checks six ways to be called."""
    return msgspec.convert(data, UUID)


def keyed_uuid(key: bytes, purpose: str, *parts: bytes) -> UUID:
    """Return a 16-byte BLAKE2b of the parts under `key`; equal parts give equal ids, other purposes other ids."""
    digest = _begun(key, purpose).copy()
    digest.update(b"".join([len(part).to_bytes(8, "big") + part for part in parts]))
    return uuid_of(digest.digest())


@functools.lru_cache(maxsize=64)
def _begun(key: bytes, purpose: str) -> "hashlib.blake2b":
    """Return the hash of nothing under the key; a copy of it costs half of a new one."""
    return hashlib.blake2b(key=key[:64], digest_size=16, person=purpose.encode()[:16])


def user_id(key: bytes, name: str) -> UUID:
    """Return the pseudonym under which the user called `name` by the app is stored."""
    return keyed_uuid(key, "user", name.encode())


def conversation_id(key: bytes, user: UUID, messages: Sequence[Message], given: str | None = None) -> UUID:
    """Return a conversation's id: of the app's own name for it, else of (user, system prompt, first user message)."""
    if given:
        return keyed_uuid(key, "conversation", given.encode())
    system, asked = first_of(messages, "system"), first_of(messages, "user")
    return keyed_uuid(key, "conversation", user.bytes, system.encode(), asked.encode())


def first_of(messages: Sequence[Message], role: str) -> str:
    """Return the first message of a role; empty where there is none."""
    for message in messages:
        if message.role == role:
            return message.content or ""
    return ""


def turn_id(key: bytes, conversation: UUID, messages: Sequence[Message]) -> UUID:
    """Return the id of a turn: equal for two answers to the same messages of the same conversation."""
    return keyed_uuid(key, "turn", conversation.bytes, msgspec.json.encode([(m.role, m.content) for m in messages]))
