"""Foreign messages, and what reads them."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from hone.records import Feedback, Response
from hone.store.offsets import Partition
from hone.tokens import KeyRing
from ingest.batch import RawMessage
from ingest.streams.book import Book
from ingest.streams.config import Stream, StreamsFile, settled
from ingest.streams.mapping import Secrets

KEY = bytes(range(32))
RING = KeyRing({1: bytes(32)}, 1)
RATING = {
    "id": "r-1",
    "ts": 1767614400123,
    "action": "dislike",
    "message": {"id": "msg_7"},
    "user": {"id": "ann"},
    "tags": ["hallucination", "meh"],
}
ANSWER = {
    "msg": "msg_7",
    "chat": "c-1",
    "user": "ann",
    "input": [{"role": "user", "content": "Hi"}],
    "output": "Hello!",
    "model": "acme-3",
    "at": "2026-01-05T12:00:00",
}


def message(body: Any, topic: str = "acme.chat.ratings", *, key: bytes | None = None, at_ms: int = -1) -> RawMessage:
    raw = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
    return RawMessage(Partition(topic, 0), 0, key, raw, at_ms)


def streams_of(toml: str) -> dict[str, Stream]:
    found = msgspec.convert(tomllib.loads(toml), StreamsFile).streams
    return {name: settled(stream, Path()) for name, stream in found.items()}


def book(toml: str, registry: Any = None, path: Path | None = None) -> Book:
    return Book(streams_of(toml), Secrets(KEY, RING), registry, path)


def feedback_stream(fields: str = "", more: str = "") -> str:
    """A stream of thumbs on topic `t`, with the fields that a test is about."""
    plain = {
        "kind": 'kind = { const = "thumbs" }',
        "value": "value = { const = 1 }",
        "response_id": 'response_id = "on"',
        "occurred_at": 'occurred_at = { path = "at", zone = "UTC" }',
    }
    kept = [line for name, line in plain.items() if f"{name} =" not in fields]
    return f'[streams.s]\ntopic = "t"\nrecord = "feedback"\n{more}\n[streams.s.fields]\n' + "\n".join([*kept, fields])


def read(toml: str, body: Any, **about: Any) -> Feedback | Response:
    (record,) = book(toml).decode(message(body, "t", **about))
    return record
