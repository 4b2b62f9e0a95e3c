"""Broker, Postgres, messages and CPU meter of the ingest benchmark: all real, on loopback, gone when it ends."""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import psutil
from confluent_kafka import Producer
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from hone.ids import uuid7
from hone.local.broker import Broker, create_topics
from hone.local.kafka import fetch_jars, kafka_version, prepare_kafka
from hone.local.postgres import SERVER_SETTINGS, PostgresServer, drop_database, start_postgres
from hone.local.processes import Supervisor
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, FeedbackKind, Message, Reason, Response, Track
from hone.store.engine import make_engine, make_sessions, migrate

LIBS = Path(__file__).parents[1] / "var" / "kafka" / "libs"
SHORT_FEEDBACK, SHORT_BOTH = "bench.feedback.v1", "bench.both.v1"
"""Topics for the loops that are too slow for all messages."""
JDBC_TOPIC = "bench.jdbc.v1"
NUM_PARTITIONS = 4
RESPONSES_PER_FEEDBACK = 0.68
USERS = [uuid4() for _ in range(5000)]
TEXT = "The refund was sent on the day of the request; it takes three to five working days to show on your card. "
POSTGRES = {**SERVER_SETTINGS, "shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "60min"}
POSTGRES["track_commit_timestamp"] = "on"
"""Durable (fsync, full page writes); no checkpoint falls into a measurement."""


@dataclass(frozen=True)
class World:
    """The servers."""

    broker: Broker
    postgres: PostgresServer

    @contextmanager
    def database(self, name: str | None = None, template: str = "migrated") -> Iterator[sessionmaker[Session]]:
        """Yield sessions on a copy of `template`, all over one connection; only a named one stays."""
        chosen = name or f"bench_{uuid4().hex[:12]}"
        engine = make_engine(self.postgres.create_database(chosen, template=template), pool_size=1, program="benchmark")
        yield make_sessions(engine)
        engine.dispose()
        if name is None:
            drop_database(self.postgres.url, chosen)


@contextmanager
def world() -> Iterator[World]:
    """Start both servers in a folder of their own, and leave nothing behind."""
    fetch_jars(LIBS)
    with tempfile.TemporaryDirectory(prefix="hone-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)  # Postgres may run as another user
        with Supervisor(directory / "stack.json") as supervisor:
            postgres = start_postgres(directory / "postgres", settings=POSTGRES)
            supervisor.adopt(postgres.running())
            kafka = prepare_kafka(directory / "kafka", LIBS)
            supervisor.start(kafka.program(directory / "kafka.log"))
            migrate(postgres.create_database("migrated"))
            topics = (FEEDBACK_TOPIC, RESPONSES_TOPIC, SHORT_FEEDBACK, SHORT_BOTH, JDBC_TOPIC)
            create_topics(kafka.broker(), dict.fromkeys(topics, NUM_PARTITIONS))
            yield World(kafka.broker(), postgres)


def describe(servers: World) -> dict[str, object]:
    """Return what ran."""
    return {"kafka": kafka_version(LIBS), "partitions": NUM_PARTITIONS, "postgres": dict(POSTGRES)}


@dataclass(frozen=True)
class Messages:
    """What is produced, once, and read by every loop."""

    feedback: list[Feedback]
    responses: list[Response]

    @classmethod
    def make(cls, num_feedback: int, seed: int) -> "Messages":
        """Return answers, and feedback on them: 60 % thumbs, 25 % edits, 10 % comments, 5 % regenerations."""
        rng = random.Random(seed)
        responses = [make_response(rng) for _ in range(round(num_feedback * RESPONSES_PER_FEEDBACK))]
        return cls([make_feedback(rng, rng.choice(responses)) for _ in range(num_feedback)], responses)

    def both(self) -> list[Feedback | Response]:
        """Return all records, mixed as they would be in time."""
        step = len(self.feedback) / len(self.responses)
        places: list[tuple[float, Feedback | Response]] = [
            (n * step, record) for n, record in enumerate(self.responses)
        ]
        places += [(float(n), record) for n, record in enumerate(self.feedback)]
        return [record for _, record in sorted(places, key=lambda place: place[0])]


def make_response(rng: random.Random) -> Response:
    """Return one answer in a turn of its own."""
    turn = UUID(int=rng.getrandbits(128))
    return Response(
        response_id=uuid7(),
        conversation_id=UUID(int=rng.getrandbits(128)),
        turn_id=turn,
        user_id=rng.choice(USERS),
        messages=(Message("system", "You help customers."), Message("user", "Where is my refund for order 5121?")),
        completion=TEXT * 3 + str(turn),
        model_version="base-1f3a",
        track=Track.STABLE,
        parameters={"temperature": 0.7, "max_tokens": 256},
        finish_reason="stop",
        latency_ms=412.5,
        first_byte_ms=61.25,
        num_prompt_tokens=41,
        num_completion_tokens=77,
        created_at=datetime.now(UTC),
    )


def make_feedback(rng: random.Random, on: Response) -> Feedback:
    """Return one act about an answer."""
    now = datetime.now(UTC)
    kind = rng.choices(("thumbs", "edit", "comment", "regenerate"), (60, 25, 10, 5))[0]
    up = rng.random() < 0.6
    reasons = (Reason.WRONG, Reason.TOO_LONG) if kind == "thumbs" and not up else ()
    value = (1.0 if up else -1.0) if kind == "thumbs" else 0.8 if kind == "regenerate" else None
    return Feedback(
        event_id=uuid7(),
        kind=FeedbackKind(kind),
        response_id=on.response_id,
        conversation_id=on.conversation_id,
        turn_id=on.turn_id,
        user_id=on.user_id,
        value=value,
        text=TEXT * 3 + "Thank you." if kind in ("edit", "comment") else None,
        reasons=reasons,
        occurred_at=now,
        received_at=now,
    )


def produce(broker: Broker, topic: str, records: Sequence[Feedback | Response]) -> None:
    """Send the records and wait for every acknowledgement."""
    settings = {"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "linger.ms": 20}
    producer = Producer({**settings, "queue.buffering.max.messages": 1_000_000})
    for record in records:
        producer.produce(topic, msgspec.json.encode(record), record.user_id.bytes)
        producer.poll(0)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} of {len(records)} messages were not acknowledged within 120 s")


@dataclass(frozen=True)
class Cost:
    """What a loop took."""

    events: int
    client_s: float
    "CPU of this process, librdkafka's threads included."
    postgres_s: float
    "CPU of the one backend that served it."
    wall_s: float

    @property
    def total_us(self) -> float:
        """Return CPU of both sides for each event, in microseconds."""
        return (self.client_s + self.postgres_s) / self.events * 1e6

    def as_dict(self) -> dict[str, float]:
        """Return microseconds for each event, and events a second."""
        per_event = {"client_us": self.client_s, "postgres_us": self.postgres_s, "wall_us": self.wall_s}
        figures = {name: seconds / self.events * 1e6 for name, seconds in per_event.items()}
        return {"events": self.events, **figures, "events_per_s": self.events / self.wall_s if self.wall_s else 0.0}


class Meter:
    """Measures from its making to `stop`."""

    def __init__(self, sessions: sessionmaker[Session] | None = None) -> None:
        self.backend = psutil.Process(backend_of(sessions)) if sessions else None
        self.began = self.read()

    def read(self) -> tuple[float, float, float]:
        """Return CPU of this process, CPU of the backend, and the time."""
        backend = self.backend.cpu_times() if self.backend else None
        return time.process_time(), backend.user + backend.system if backend else 0.0, time.monotonic()

    def stop(self, events: int) -> Cost:
        """Return what was spent on these events."""
        client, postgres, wall = (now - then for now, then in zip(self.read(), self.began, strict=True))
        return Cost(events, client, postgres, wall)


def backend_of(sessions: sessionmaker[Session]) -> int:
    """Return the process id of the one connection's backend."""
    with sessions() as session:
        return int(session.scalar(text("SELECT pg_backend_pid()")) or 0)


def until(count: Callable[[], int], wanted: int, step: Callable[[], object], timeout_s: float = 300.0) -> None:
    """Repeat `step` until `count` reaches `wanted`."""
    deadline = time.monotonic() + timeout_s
    while count() < wanted:
        step()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{count()} of {wanted} after {timeout_s:.0f} s (process {os.getpid()})")
