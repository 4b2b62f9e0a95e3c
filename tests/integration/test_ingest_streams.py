"""A topic of another shape on a real broker: read as it is, exactly once, in the transaction and offsets of our own."""

import io
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from hone.local.broker import Broker, create_topics
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC
from hone.store.tables import ConsumerOffsetRow, DeadLetterRow, FeedbackEventRow, ResponseRow
from tests.support.events import feedback
from tests.support.ingest_process import Program, count, hone, produce, wait_for
from tests.support.registry import framed, registry
from tests.support.streams import ANSWER, KEY, RATING

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "configs" / "streams.toml"
RATINGS, ANSWERS, AVRO = "acme.chat.ratings", "acme.chat.answers", "acme.votes"
VOTES = f"""
[streams.votes]
topic = "{AVRO}"
record = "feedback"
format = "avro"
registry = true
[streams.votes.fields]
event_id = "id"
response_id = "on"
kind = {{ const = "thumbs" }}
value = {{ path = "up", map = {{ true = 1, false = -1 }} }}
occurred_at = {{ kafka = "timestamp" }}
"""
VOTE: dict[str, Any] = {
    "type": "record",
    "name": "Vote",
    "fields": [{"name": n, "type": t} for n, t in (("id", "string"), ("on", "string"), ("up", "boolean"))],
}


@dataclass
class World:
    """A broker with foreign topics, a registry, and the environment of ingest on an empty database."""

    bootstrap: str
    env: dict[str, str]


@pytest.fixture
def world(kafka_bootstrap: str, store_url: str, tmp_path: Path) -> Iterator[World]:
    topics = {RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1, RATINGS: 2, ANSWERS: 1, AVRO: 1}
    create_topics(Broker(kafka_bootstrap, "kafka", "", True, ""), topics)
    with registry() as held:
        held.add_avro(7, VOTE)
        path = tmp_path / "streams.toml"
        path.write_text(EXAMPLE.read_text() + VOTES)
        yield World(
            kafka_bootstrap,
            {
                "HONE_DATABASE_URL": store_url,
                "HONE_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
                "HONE_IDENTITY_KEY": KEY.hex(),
                "HONE_SCHEMA_REGISTRY_URL": held.url,
                "HONE_INGEST__STREAMS": str(path),
                "HONE_INGEST__MAX_ROWS": "40",
            },
        )


def send(bootstrap: str, topic: str, *bodies: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True})
    for number, body in enumerate(bodies):
        producer.produce(topic, body, str(number).encode())
    assert producer.flush(30) == 0


def as_json(*documents: dict[str, Any]) -> list[bytes]:
    return [json.dumps(document).encode() for document in documents]


def vote(name: str, up: bool) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(VOTE), {"id": name, "on": "msg_7", "up": up})
    return framed(7, buffer.getvalue())


def test_foreign_topics_are_stored_exactly_once_through_a_kill_beside_our_own(
    world: World, sessions: sessionmaker[Session]
) -> None:
    ratings = [{**RATING, "id": f"r-{n}", "message": {"id": f"msg_{n}"}} for n in range(200)]
    send(world.bootstrap, RATINGS, *as_json(*ratings, *ratings[::10], {**RATING, "action": "viewed"}))
    send(world.bootstrap, RATINGS, b"{broken", *as_json({"id": "r-x", "action": "like", "ts": 1767614400123}))
    send(world.bootstrap, ANSWERS, *as_json(*({**ANSWER, "msg": f"msg_{n}"} for n in range(50))))
    send(world.bootstrap, AVRO, *(vote(f"v-{n}", n % 2 == 0) for n in range(50)), b"{}")
    produce(world.bootstrap, feedback("thumbs", "a", value=1))
    killed = Program("events", world.env, "--crash-at", "stored:3")
    assert killed.process.wait(60) == -signal.SIGKILL
    program = Program("events", world.env)
    try:
        wait_for(lambda: offsets(sessions) == {RATINGS: 223, ANSWERS: 50, AVRO: 51, FEEDBACK_TOPIC: 1}, 60)
        assert f'hone_ingest_skipped_total{{topic="{RATINGS}"}} ' in program.metrics()
    finally:
        program.end()
    assert count(sessions, FeedbackEventRow) == 200 + 50 + 1
    assert count(sessions, ResponseRow) == 50
    with sessions() as session:
        letters = session.execute(select(DeadLetterRow.topic, DeadLetterRow.reason)).all()
    assert sorted(map(tuple, letters)) == [(RATINGS, "missing"), (RATINGS, "not_json"), (AVRO, "not_avro")]


def offsets(sessions: sessionmaker[Session]) -> dict[str, int]:
    with sessions() as session:
        rows = session.execute(select(ConsumerOffsetRow.topic, ConsumerOffsetRow.next_offset)).all()
    return {topic: sum(n for t, n in rows if t == topic) for topic, n in rows if n}


def test_the_check_shows_what_would_become_of_a_topics_newest_messages_and_stores_nothing(
    world: World, sessions: sessionmaker[Session]
) -> None:
    send(world.bootstrap, AVRO, vote("v-check", True), b"{}")
    shown = hone("streams", "check", AVRO, "--limit", "2", "--json", env=world.env)
    assert shown.returncode == 0, shown.stderr
    good, bad = json.loads(shown.stdout)
    assert (good["fate"], good["records"][0]["value"]) == ("stored", 1)
    assert (bad["fate"], bad["records"]) == ("not_avro", [])
    assert count(sessions, FeedbackEventRow) == 0
    nothing = hone("streams", "check", "no.such.topic", env=world.env)
    assert nothing.returncode == 1
    assert "the broker has no topic no.such.topic" in nothing.stderr
