"""What reading foreign messages costs beside reading hone's own, and that it costs those nothing.

CPU microseconds for one message, on the consumer's own decode path; medians over interleaved rounds of one run.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import fastavro
import msgspec

from benchmarks.result import Target, report, say
from hone.ids import uuid7
from hone.records import FEEDBACK_TOPIC, Feedback, FeedbackKind
from hone.settings import Settings
from hone.store.offsets import Partition
from ingest.backfill import decode_line
from ingest.batch import RawMessage, decode_native
from ingest.streams.book import Book, open_book

ROUNDS, MESSAGES = 31, 4000
SCHEMA = {
    "type": "record",
    "name": "Rating",
    "fields": [{"name": name, "type": "string"} for name in ("id", "action", "user", "on")]
    + [{"name": "ts", "type": "long"}],
}
STREAMS = """
[streams.{name}]
topic = "{name}"
record = "feedback"
{form}
[streams.{name}.fields]
event_id = "id"
response_id = "on"
user_id = "user"
kind = {{ path = "action", map = {{ like = "thumbs", dislike = "thumbs" }} }}
value = {{ path = "action", map = {{ like = 1, dislike = -1 }} }}
occurred_at = {{ path = "ts", time = "ms" }}
"""
RATING = {"id": "r-1", "action": "like", "user": "ann", "on": "msg-7", "ts": 1767614400123}


def message(topic: str, body: bytes) -> RawMessage:
    return RawMessage(Partition(topic, 0), 0, b"k", body, 1767614400123)


def messages() -> dict[str, RawMessage]:
    """Return one message of each shape."""
    event = msgspec.convert(
        {"event_id": uuid7(), "kind": FeedbackKind.THUMBS, "response_id": uuid7(), "user_id": uuid7(), "value": 1.0}
        | {"occurred_at": "2026-01-05T12:00:00Z", "received_at": "2026-01-05T12:00:00Z"},
        Feedback,
    )
    avro = io.BytesIO()
    fastavro.schemaless_writer(avro, fastavro.parse_schema(SCHEMA), RATING)
    return {
        "native": message(FEEDBACK_TOPIC, msgspec.json.encode(event)),
        "json": message("json", msgspec.json.encode(RATING)),
        "avro": message("avro", avro.getvalue()),
    }


def make_book(folder: Path) -> Book:
    (folder / "rating.avsc").write_bytes(msgspec.json.encode(SCHEMA))
    avro = 'format = "avro"\nschema = "rating.avsc"'
    text = STREAMS.format(name="json", form="") + STREAMS.format(name="avro", form=avro)
    (folder / "streams.toml").write_text(text)
    secret: Any = "ab" * 32
    settings: Any = {"streams": folder / "streams.toml"}
    return open_book(Settings(identity_key=secret, ingest=settings))


def cpu_us(decode: Callable[[RawMessage], object], found: RawMessage) -> float:
    started = time.process_time()
    for _ in range(MESSAGES):
        decode(found)
    return 1e6 * (time.process_time() - started) / MESSAGES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for symmetry: the last line is always JSON")
    parser.parse_args()
    shapes = messages()
    with TemporaryDirectory() as folder:
        book = make_book(Path(folder))
    ways: dict[str, tuple[Callable[[RawMessage], object], RawMessage]] = {
        "native": (decode_native, shapes["native"]),
        "native_beside_streams": (book.decode, shapes["native"]),
        "native_line_of_a_file": (decode_line, shapes["native"]),
        "mapped_json": (book.decode, shapes["json"]),
        "mapped_avro": (book.decode, shapes["avro"]),
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, (decode, found) in ways.items():
            rounds[name].append(cpu_us(decode, found))
        if number % 10 == 0:
            say(f"round {number} of {ROUNDS}")
    slowdown = median(b / a for a, b in zip(rounds["native"], rounds["native_beside_streams"], strict=True))
    figures = {f"{name}_us": round(median(values), 2) for name, values in rounds.items()}
    targets = {"native_beside_streams_over_native": Target(round(slowdown, 3), "<=", 1.15)}
    return report(figures, targets, [])


if __name__ == "__main__":
    sys.exit(main())
