"""What is produced while ingest is being broken, and the account of it afterwards."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from uuid import UUID

import msgspec
from confluent_kafka import KafkaError, Message, Producer
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.ingest_world import TEXT, USERS, make_response
from hone.ids import uuid7
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, FeedbackKind, Response
from hone.store.tables import DeadLetterRow, FeedbackEventRow, ResponseRow

SHARE_ANSWERS, SHARE_TWICE, SHARE_POISON = 0.05, 0.02, 0.005
MAX_SKEW_S = 86_400
RECENT = 5000
"""From how many of the last messages those are drawn that are sent twice."""

Coordinates = tuple[str, int, int]


def thumb(**fields: object) -> bytes:
    """Return a thumb in JSON, whole but for what is named."""
    now = datetime.now(UTC).isoformat()
    plain: dict[str, object] = {"event_id": str(uuid7()), "kind": "thumbs", "response_id": str(uuid7()), "value": 1}
    plain |= {"user_id": str(USERS[0]), "occurred_at": now, "received_at": now}
    return msgspec.json.encode(plain | fields)


def poison(rng: random.Random) -> tuple[str, bytes | None]:
    """Return a topic and a message that must become a dead letter there."""
    bad: list[bytes | None] = [
        None,
        b"",
        b"not json",
        b'{"event_id": "cut',
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'{"text": "\\ud800"}',
        thumb(kind="thumbs up"),
        thumb(value=7),
        thumb(value="1"),
        thumb(text="nul \0"),
        thumb(occurred_at="2026-01-05T12:00:00"),
        thumb(occurred_at="99999-01-01T00:00:00Z"),
        thumb(occurred_at="1970-01-01T00:00:00Z"),
        thumb(schema_version=99),
        thumb(event_id="7"),
        thumb(kind="edit"),
        thumb(value=1).replace(b'"value":1', b'"value":1e999'),
    ]
    if rng.random() < 0.2:  # what only the database refuses
        return RESPONSES_TOPIC, msgspec.json.encode(msgspec.structs.replace(make_response(rng), stage=1 << 40))
    return FEEDBACK_TOPIC, rng.choice(bad)


def act(rng: random.Random) -> Feedback:
    """Return an act of feedback by a clock that may be wrong by a day; one id in ten is not in the order of time."""
    now = datetime.now(UTC)
    skewed = now + timedelta(seconds=rng.uniform(-MAX_SKEW_S, MAX_SKEW_S) if rng.random() < 0.1 else 0.0)
    return Feedback(
        event_id=uuid7() if rng.random() < 0.9 else UUID(int=rng.getrandbits(128)),
        kind=FeedbackKind.EDIT if rng.random() < 0.2 else FeedbackKind.THUMBS,
        response_id=UUID(int=rng.getrandbits(128)),
        user_id=rng.choice(USERS),
        value=rng.choice((-1.0, 0.0, 1.0)),
        text=TEXT + '\n\ttab, newline, \\ and "quotes"',
        occurred_at=skewed,
        received_at=now,
    )


@dataclass
class Load(Thread):
    """Sends `num_events` valid messages, some twice, and poison between them; to any partition, so in any order."""

    bootstrap_servers: str
    num_events: int
    seed: int
    stop: Event = field(default_factory=Event)
    slow_down: Event = field(default_factory=Event)
    "Set while too much waits to be stored."
    num_sent: int = 0
    "Valid messages, each counted once."
    num_twice: int = 0
    events: set[int] = field(default_factory=set)
    answers: set[int] = field(default_factory=set)
    refused: set[Coordinates] = field(default_factory=set)
    num_poison: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        settings = {"bootstrap.servers": self.bootstrap_servers, "acks": "all", "enable.idempotence": True}
        settings |= {"linger.ms": 20, "message.timeout.ms": 600_000, "queue.buffering.max.messages": 50_000}
        settings |= {"partitioner": "random", "sticky.partitioning.linger.ms": 0, "log_level": 0}
        # Acknowledgements of valid messages are only counted where they fail: a flush that ends is the rest.
        self.producer = Producer({**settings, "delivery.report.only.error": True})
        self.poisoner = Producer(settings)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Send everything, and wait for the broker's word on it."""
        rng, recent = random.Random(self.seed), []
        for topic, body in self.messages(rng):
            while self.slow_down.is_set() and not self.stop.wait(0.05):
                pass
            if self.stop.is_set():
                break
            self.send(topic, body)
            recent.append((topic, body))
            if rng.random() < SHARE_TWICE:
                self.num_twice += 1
                self.send(*rng.choice(recent))
            if rng.random() < SHARE_POISON:
                self.num_poison += 1
                self.poisoner.produce(*poison(rng), on_delivery=self.note)
                self.poisoner.poll(0)
            del recent[:-RECENT]
        left = self.producer.flush(600) + self.poisoner.flush(600)
        if left:
            self.errors.append(f"{left} messages were never acknowledged")

    def messages(self, rng: random.Random) -> Iterator[tuple[str, bytes]]:
        """Yield the valid messages, and remember their ids."""
        for _ in range(self.num_events):
            record: Response | Feedback = make_response(rng) if rng.random() < SHARE_ANSWERS else act(rng)
            if isinstance(record, Response):
                self.answers.add(record.response_id.int)
            else:
                self.events.add(record.event_id.int)
            yield RESPONSES_TOPIC if isinstance(record, Response) else FEEDBACK_TOPIC, msgspec.json.encode(record)
            self.num_sent += 1

    def send(self, topic: str, body: bytes) -> None:
        """Hand a message over, waiting where the queue is full."""
        while True:
            try:
                self.producer.produce(topic, body, on_delivery=self.failed)
                break
            except BufferError:
                self.producer.poll(0.1)
        self.producer.poll(0)

    def failed(self, error: KafkaError | None, _message: Message) -> None:
        """Remember a message that the broker did not take."""
        if error is not None:
            self.errors.append(error.str())

    def note(self, error: KafkaError | None, message: Message) -> None:
        """Remember where poison went."""
        if error is not None:
            self.errors.append(error.str())
        else:
            self.refused.add((str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)))


@dataclass(frozen=True)
class Account:
    """What differs between what the broker acknowledged and what Postgres holds."""

    lost: int
    extra: int
    rows: int
    dead_letters: int


def account(sessions: sessionmaker[Session], load: Load) -> Account:
    """Compare everything."""
    with sessions() as session:
        events = [row.int for row in session.scalars(select(FeedbackEventRow.event_id))]
        answers = [row.int for row in session.scalars(select(ResponseRow.response_id))]
        query = select(DeadLetterRow.topic, DeadLetterRow.partition, DeadLetterRow.offset)
        letters = [(topic, number, offset) for topic, number, offset in session.execute(query)]
    lost = len(load.events - set(events)) + len(load.answers - set(answers)) + len(load.refused - set(letters))
    extra = len(set(events) - load.events) + len(set(answers) - load.answers) + len(set(letters) - load.refused)
    extra += sum(len(found) - len(set(found)) for found in (events, answers, letters))
    return Account(lost, extra, len(events) + len(answers), len(letters))
