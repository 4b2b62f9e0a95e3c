"""History into the tables, by the consumer's own loop: a file is a log of one partition, a topic is read to its end.

A file's content names the log's life, a line's number is its offset. So a second run goes on where the first one ended,
a run of what is done stores nothing, and a line that cannot be read is a dead letter with its number.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message
from prometheus_client import Counter as Metric

from hone import metrics
from hone.errors import Conflict, HoneError, InvalidEvent, Retryable
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Response
from hone.store.offsets import Partition
from ingest.batch import Decode, RawMessage
from ingest.decode import decode
from ingest.files import History, Line, open_history
from ingest.source import BROKER_TIMEOUT_S, Source

GROUP = "hone-backfill"
OWN_SHAPE = "hone"
ENDLESS = 1 << 62
"""Nobody knows how many lines a file has before it is read."""


class Shape(msgspec.Struct):
    """What tells an answer from feedback in a line of hone's own records."""

    completion: Any = None


SHAPE = msgspec.json.Decoder(Shape)


def decode_line(message: RawMessage) -> tuple[Any]:
    """Return the record in a line of hone's own shape: an answer has a completion, everything else is feedback."""
    body = message.body or b""
    try:
        is_answer = SHAPE.decode(body).completion is not None
    except (msgspec.DecodeError, UnicodeDecodeError):
        is_answer = False
    return (decode(RESPONSES_TOPIC if is_answer else FEEDBACK_TOPIC, body),)


def fingerprint(path: Path, stream: str | None) -> str:
    """Return the name of a file's content as one stream reads it, whatever the file is called."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{stream or OWN_SHAPE}:sha256:{digest}"


def stream_of(incarnation: str) -> str | None:
    """Return the stream that read a file's line, from the name of its life; None for hone's own shape."""
    stream = incarnation.rpartition(":sha256:")[0]
    return None if stream == OWN_SHAPE else stream


def partition_of(path: Path) -> Partition:
    """Return the one partition of a file."""
    return Partition(f"file:{path.name}", 0)


class FileSource:
    """Reads a file as if it were a partition; sets `stop` when all of it has been stored, or once `halt` is set."""

    may_hold_old = False

    def __init__(self, path: Path, halt: Event, show: Callable[[int], None]) -> None:
        self.path, self.halt, self.show, self.stop = path, halt, show, Event()
        self.partition = partition_of(path)
        self.unclaimed = {self.partition}
        self.positions: dict[Partition, int] = {}
        self.stack = ExitStack()
        self.history: History | None = None
        self.lines: Iterator[Line] = iter(())
        self.is_done = False
        self.begun_at: int | None = None
        self.num_read = 0

    def read_from(self, positions: Mapping[Partition, int]) -> None:
        """Go to the first line that is not stored."""
        self.begun_at = self.begun_at or positions[self.partition]
        self.close()
        self.history = self.stack.enter_context(open_history(self.path))
        start = positions[self.partition]
        self.lines = (line for line in self.history.lines() if line.number >= start)
        self.positions = dict(positions)
        self.unclaimed = set()

    def release(self) -> None:
        """Stop reading."""
        self.unclaimed, self.positions = {self.partition}, {}

    def rejoin(self) -> None:
        """Give way: raises Conflict."""
        raise Conflict(f"another backfill of {self.path} has taken over: let it end, and run again if it does not")

    def poll(self, max_messages: int, timeout_s: float) -> list[RawMessage]:
        """Return the next lines; none while nothing is claimed."""
        if self.halt.is_set():
            self.stop.set()
        if not self.positions or self.stop.is_set():
            self.halt.wait(timeout_s)
            return []
        found = [
            RawMessage(self.partition, line.number, None, line.body, -1) for line in islice(self.lines, max_messages)
        ]
        self.num_read += len(found)
        if not found:
            self.is_done = True
            self.stop.set()
        return found

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        """Return the number of the first line, and one that no file reaches."""
        return 1, ENDLESS

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Return none: the file's content is in the name of its life."""
        return {}

    def num_behind(self, partition: Partition, next_offset: int) -> int | None:
        """Return None: nobody knows."""
        return None

    def hint(self, positions: Mapping[Partition, int]) -> None:
        """Show how much of the file has been stored."""
        if self.history is not None:
            self.show(self.history.num_bytes)

    def close(self) -> None:
        """Close the file."""
        self.stack.close()


class WholeTopic(Source):
    """Reads all partitions of a topic up to where they ended at the start, outside any consumer group."""

    def __init__(self, bootstrap_servers: str, topic: str, halt: Event, show: Callable[[int], None]) -> None:
        self.halt, self.show, self.stop, self.is_done = halt, show, Event(), False
        self.num_read = 0
        self.ended: set[Partition] = set()
        "Have nothing after what was read: the last offsets of a log may hold no message."
        super().__init__(bootstrap_servers, GROUP, [topic])
        marks = {partition: self.watermarks(partition) for partition in self.unclaimed}
        self.lows, self.ends = ({p: mark[side] for p, mark in marks.items()} for side in (0, 1))

    @property
    def num_messages(self) -> int:
        """Return how many offsets lie between beginnings and ends."""
        return sum(self.ends.values()) - sum(self.lows.values())

    def config(self, bootstrap_servers: str, group: str, rebalancing: str) -> dict[str, Any]:
        """Return the consumer's configuration: the end of a partition is told, and nothing is written to stderr."""
        return {**super().config(bootstrap_servers, group, rebalancing), "enable.partition.eof": True, "log_level": 0}

    def subscribe(self) -> None:
        """Take all partitions.

        Raises:
            HoneError: there is no such topic.
            Retryable: the broker does not answer.
        """
        (topic,) = self.topics
        try:
            found = self.consumer.list_topics(topic, timeout=BROKER_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise Retryable(f"no broker answers ({error.args[0].str()}): check HONE_KAFKA_BOOTSTRAP_SERVERS") from None
        if found.error is not None or not found.partitions:
            raise HoneError(f"the broker has no topic {topic}")
        self.unclaimed = {Partition(topic, number) for number in found.partitions}

    def rejoin(self) -> None:
        """Give way: raises Conflict."""
        raise Conflict(f"another backfill of {self.topics[0]} has taken over: let it end, and run again if it does not")

    def read_from(self, positions: Mapping[Partition, int]) -> None:
        """Read from the first message that is not stored."""
        self.ended.clear()
        super().read_from(positions)
        self.look()

    def poll(self, max_messages: int, timeout_s: float) -> list[RawMessage]:
        """Return messages below the ends."""
        if self.halt.is_set():
            self.stop.set()
        found = [m for m in super().poll(max_messages, timeout_s) if m.offset < self.ends[m.partition]]
        self.num_read += len(found)
        if not found:
            self.look()
        return found

    def told(self, error: KafkaError, message: Message) -> None:
        """Note the end of a partition; judge other errors."""
        if error.code() == KafkaError._PARTITION_EOF:
            self.ended.add(Partition(message.topic(), message.partition()))
        else:
            super().told(error, message)

    def hint(self, positions: Mapping[Partition, int]) -> None:
        """Show how much was stored, and end where that is all. Kafka is told nothing: there is no group."""
        self.look()

    def look(self) -> None:
        """Set `stop` where every partition has been read to its end."""
        self.show(sum(max(0, offset - self.lows[partition]) for partition, offset in self.positions.items()))
        self.is_done = all(p in self.ended or self.positions.get(p, -1) >= end for p, end in self.ends.items())
        if self.is_done:
            self.stop.set()


@dataclass(frozen=True)
class Tally:
    """What a backfill did, or would do."""

    num_new: dict[str, int]
    "By kind of feedback, and `response`."
    num_known: int | None
    "Were there already; None where nobody looked."
    num_refused: dict[str, int]
    "By reason."
    num_skipped: int
    "Are passed over by the streams."

    @property
    def is_all_refused(self) -> bool:
        """Say whether something was read, and nothing of it can be used."""
        return bool(self.num_refused) and not (self.num_new or self.num_known or self.num_skipped)

    def text(self) -> str:
        """Return it in a line for people."""
        refused = ", ".join(f"{number} {reason}" for reason, number in sorted(self.num_refused.items()))
        new = ", ".join(f"{number} {kind}" for kind, number in sorted(self.num_new.items()))
        what = "to store" if self.num_known is None else "new"
        parts = [
            f"{sum(self.num_new.values())} {what}{f' ({new})' if new else ''}",
            *([] if self.num_known is None else [f"{self.num_known} there already"]),
            f"{sum(self.num_refused.values())} refused{f' ({refused})' if refused else ''}",
            f"{self.num_skipped} passed over",
        ]
        return " · ".join(parts)

    def __add__(self, other: "Tally") -> "Tally":
        """Return both together; what nobody looked up stays unknown."""
        known = None if self.num_known is None or other.num_known is None else self.num_known + other.num_known
        return Tally(
            dict(Counter(self.num_new) + Counter(other.num_new)),
            known,
            dict(Counter(self.num_refused) + Counter(other.num_refused)),
            self.num_skipped + other.num_skipped,
        )


def counted(metric: Metric, label: str) -> dict[str, int]:
    """Return what a counter of this process says, by a label; zeros are left out."""
    samples = [sample for family in metric.collect() for sample in family.samples if sample.name.endswith("_total")]
    return {sample.labels.get(label, ""): int(sample.value) for sample in samples if sample.value}


def tally() -> Tally:
    """Return what the loop of this process has done so far."""
    return Tally(
        counted(metrics.INGEST_EVENTS, "kind"),
        sum(counted(metrics.INGEST_DUPLICATES, "").values()),
        counted(metrics.INGEST_DEAD_LETTERS, "reason"),
        sum(counted(metrics.INGEST_SKIPPED, "topic").values()),
    )


def rehearse(
    path: Path, decode: Decode, show: Callable[[int], None], refuse: Callable[[RawMessage, InvalidEvent], None]
) -> Tally:
    """Read a whole file and store nothing; `refuse` is told each line that would be refused, and why."""
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    num_skipped = 0
    with open_history(path) as history:
        for line in history.lines():
            message = RawMessage(partition_of(path), line.number, None, line.body, -1)
            try:
                records = decode(message)
                kinds.update("response" if isinstance(r, Response) else str(r.kind) for r in records)
                num_skipped += not records
            except InvalidEvent as error:
                reasons[error.reason] += 1
                refuse(message, error)
            if line.number % 1000 == 0:
                show(history.num_bytes)
    return Tally(dict(kinds), None, dict(reasons), num_skipped)
