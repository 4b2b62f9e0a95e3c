"""How sample messages would map, before anything is stored."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from hone.errors import HoneError, InvalidEvent, Retryable
from hone.records import Feedback, Response
from hone.store.offsets import Partition
from ingest.batch import Decode, RawMessage
from ingest.files import open_history

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Sample:
    """One message and what would become of it."""

    place: str
    body: bytes | None
    records: tuple[Response | Feedback, ...] = ()
    reason: str | None = None
    detail: str = ""

    @property
    def fate(self) -> str:
        """Return `stored`, `passed over` or the reason of a dead letter."""
        return self.reason or ("stored" if self.records else "passed over")

    def as_json(self) -> dict[str, Any]:
        """Return it for a program."""
        body = None if self.body is None else self.body.decode("utf-8", "backslashreplace")
        records = [shown(record) for record in self.records]
        return {"place": self.place, "body": body, "fate": self.fate, "detail": self.detail, "records": records}


def sample_of(place: str, message: RawMessage, decode: Decode) -> Sample:
    """Return what would become of a message."""
    try:
        return Sample(place, message.body, tuple(decode(message)))
    except InvalidEvent as error:
        return Sample(place, message.body, reason=error.reason, detail=error.detail)


def samples_of_file(path: Path, decode: Decode, limit: int) -> list[Sample]:
    """Return what would become of the first lines of a file."""
    with open_history(path) as history:
        return [
            sample_of(f"{path.name}:{line.number}", of_line(path, line.number, line.body), decode)
            for line in islice(history.lines(), limit)
        ]


def of_line(path: Path, number: int, body: bytes) -> RawMessage:
    """Return a line as a message; it knows no Kafka time."""
    return RawMessage(Partition(f"file:{path.name}", 0), number, None, body, -1)


def samples_of_topic(bootstrap_servers: str, topic: str, decode: Decode, limit: int) -> list[Sample]:
    """Return what would become of the newest messages of a topic, which is only read: no group, no commit.

    Raises:
        HoneError: there is no such topic, or the broker refuses us.
        Retryable: the broker does not answer.
    """
    settings = {"bootstrap.servers": bootstrap_servers, "group.id": "hone-streams-check", "enable.auto.commit": False}
    consumer = Consumer({**settings, "log_level": 0})  # what goes wrong is raised
    try:
        messages = list(newest(consumer, topic, limit))
    except KafkaException as error:
        raise Retryable(
            f"{topic}: no file of this name, and no broker answers at {bootstrap_servers} ({error.args[0].str()}): "
            "check the name, or HONE_KAFKA_BOOTSTRAP_SERVERS"
        ) from None
    finally:
        consumer.close()
    return [sample_of(f"{topic}/{m.partition.number}@{m.offset}", m, decode) for m in messages]


def newest(consumer: Any, topic: str, limit: int) -> Iterator[RawMessage]:
    """Yield up to `limit` of the newest messages, taken evenly from the partitions."""
    found = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
    if found.error is not None or not found.partitions:
        raise HoneError(f"the broker has no topic {topic}: give its name, or a file that exists")
    share = -(-limit // len(found.partitions))
    places, waiting = [], 0
    for number in found.partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S)
        places.append(TopicPartition(topic, number, max(low, high - share)))
        waiting += high - places[-1].offset
    consumer.assign(places)
    until, wanted = time.monotonic() + TIMEOUT_S, min(limit, waiting)
    while wanted > 0 and time.monotonic() < until:
        for message in consumer.consume(wanted, 0.2):
            if message.error() is None:
                wanted -= 1
                partition = Partition(topic, message.partition())
                yield RawMessage(partition, message.offset(), message.key(), message.value(), message.timestamp()[1])


def show(samples: list[Sample], echo: Callable[[str], None]) -> None:
    """Print each sample with what would become of it, and how many there are of each fate."""
    for sample in samples:
        body = "nothing" if sample.body is None else sample.body.decode("utf-8", "backslashreplace")
        echo(f"{sample.place}  {body if len(body) <= 300 else body[:300] + '…'}")
        for record in sample.records:
            echo(f"    -> {type(record).__name__.lower()} {msgspec.json.encode(shown(record)).decode()}")
        if not sample.records:
            echo(f"    -> {sample.fate}{': ' if sample.detail else ''}{sample.detail}")
    counts = Counter(sample.fate for sample in samples)
    echo("\nof " + f"{len(samples)}: " + ", ".join(f"{number} {fate}" for fate, number in counts.most_common()))


def shown(record: Response | Feedback) -> dict[str, Any]:
    """Return the fields of a record that say something."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return {name: value for name, value in fields.items() if value not in (None, [], {}) and name != "schema_version"}
