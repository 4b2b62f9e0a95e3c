"""The two programs as processes, on the in-process broker: from messages to pairs to a retrain request."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Consumer
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from hone.local.mock_kafka import MockCluster
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC
from hone.store.tables import (
    DeadLetterRow,
    FeedbackEventRow,
    PreferencePairRow,
    ResponseRow,
    RetrainRequestRow,
)
from tests.support.events import feedback, response, uid
from tests.support.ingest_process import Program, count, produce, wait_for

TOPICS = {RESPONSES_TOPIC: 2, FEEDBACK_TOPIC: 2, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1}
CONFIG = "[trigger]\nmin_pairs = 3\n"

Sessions = sessionmaker[Session]
Start = Callable[..., Program]


@pytest.fixture
def broker() -> Iterator[str]:
    cluster = MockCluster(TOPICS)
    yield cluster.bootstrap_servers
    cluster.close()


@pytest.fixture
def start(store_url: str, broker: str, tmp_path: Path) -> Iterator[Start]:
    """`start("events")` starts that program and waits until it is healthy."""
    config = tmp_path / "hone.toml"
    config.write_text(CONFIG)
    env = {
        "HONE_DATABASE_URL": store_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": broker,
        "HONE_KAFKA_INCARNATION": "mock-1",
        "HONE_MODE": "active",
        "HONE_CONFIG": str(config),
    }
    with ExitStack() as stack:

        def start(name: str, *options: str, **changes: str) -> Program:
            program = Program(name, env | changes, *options)
            stack.callback(program.end)
            return program

        yield start


def read(broker: str, topic: str) -> list[bytes]:
    config = {"bootstrap.servers": broker, "group.id": f"test-{topic}", "auto.offset.reset": "earliest"}
    consumer = Consumer(config | {"partition.assignment.strategy": "range"})
    consumer.subscribe([topic])
    found = [message.value() for message in consumer.consume(1, 15) if not message.error()]
    consumer.close()
    return found


def test_feedback_becomes_pairs_and_pairs_become_one_request(broker: str, sessions: Sessions, start: Start) -> None:
    ingest, worker = start("events"), start("pairs")
    for number in range(3):
        good, bad = f"good{number}", f"bad{number}"
        produce(
            broker,
            feedback("choice", good, rejected=(uid(bad),)),
            response(good, turn=f"turn{number}", idempotency_key=uid("k")),
            response(bad, turn=f"turn{number}", idempotency_key=uid("k")),
        )
    produce(broker, b"not json")
    wait_for(lambda: count(sessions, PreferencePairRow) == 3)
    wait_for(lambda: count(sessions, RetrainRequestRow) == 1)
    assert (count(sessions, ResponseRow), count(sessions, FeedbackEventRow)) == (6, 3)
    assert len(read(broker, RETRAIN_TOPIC)) == 1
    assert read(broker, DEAD_LETTER_TOPIC) == [b"not json"]

    page = ingest.metrics()
    assert 'hone_ingest_events_total{kind="response"} 6.0' in page
    assert 'hone_ingest_dead_letters_total{reason="not_json"} 1.0' in page
    page = worker.metrics()
    assert 'hone_pairs_changed_total{change="created",source="choice"} 3.0' in page

    ingest.process.send_signal(signal.SIGTERM)
    assert ingest.process.wait(10) == 0


def test_observe_mode_opens_no_request(broker: str, sessions: Sessions, start: Start) -> None:
    start("events")
    worker = start("pairs", HONE_MODE="observe")
    for number in range(3):
        produce(
            broker,
            response(f"a{number}", turn=f"turn{number}"),
            feedback("edit", f"a{number}", text=f"answer a{number}, made clearer"),
        )
    wait_for(lambda: "hone_new_pairs 3.0" in worker.metrics())
    assert count(sessions, RetrainRequestRow) == 0


def test_a_second_member_takes_over_and_nothing_is_stored_twice(broker: str, sessions: Sessions, start: Start) -> None:
    first = start("events")
    produce(broker, *(response(f"r{n}") for n in range(300)))
    wait_for(lambda: count(sessions, ResponseRow) == 300)
    start("events")
    first.process.send_signal(signal.SIGTERM)
    produce(broker, *(response(f"r{n}") for n in range(200, 500)), b"{}")
    wait_for(lambda: count(sessions, ResponseRow) == 500 and count(sessions, DeadLetterRow) == 1)
    assert first.process.wait(15) == 0


def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(
    broker: str, sessions: Sessions, start: Start
) -> None:
    program = start("events")
    cut = text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'hone-ingest'")
    num_cut = 0
    for part in range(5):
        produce(broker, *(response(f"{part}-{n}") for n in range(200)))
        wait_for(lambda part=part: count(sessions, ResponseRow) > part * 200)
        with sessions() as session:
            num_cut += session.scalar(cut) or 0
    wait_for(lambda: count(sessions, ResponseRow) == 1000)
    assert num_cut == 5
    assert program.process.poll() is None


def test_on_sigterm_it_ends_soon_and_its_successor_reads_nothing_twice(
    broker: str, sessions: Sessions, start: Start
) -> None:
    first = start("events", HONE_INGEST__MAX_ROWS="50")
    produce(broker, *(response(f"r{n}") for n in range(3000)))
    wait_for(lambda: count(sessions, ResponseRow) > 0)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(10) == 0
    assert count(sessions, ResponseRow) < 3000, "it was stopped in the middle"
    second = start("events")
    wait_for(lambda: count(sessions, ResponseRow) == 3000)
    assert second.value("hone_ingest_duplicates_total") == 0


def test_as_the_victim_of_a_deadlock_it_waits_reads_again_and_keeps_its_membership(
    broker: str, sessions: Sessions, start: Start
) -> None:
    program = start("events")
    produce(broker, response("a", turn="t"))
    wait_for(lambda: count(sessions, ResponseRow) == 1)
    with sessions() as other:
        other.execute(text("SET LOCAL deadlock_timeout = '60s'"))  # not this one shall give way
        other.execute(text("UPDATE dirty_turn SET marked_at = now()"))
        produce(broker, response("b", turn="t"), feedback("thumbs", "b", value=1))
        wait_for(lambda: is_waiting(sessions))
        other.execute(text("UPDATE consumer_offset SET updated_at = now()"))
        other.rollback()
    wait_for(lambda: (count(sessions, ResponseRow), count(sessions, FeedbackEventRow)) == (2, 1))
    assert program.value("hone_ingest_retries_total") >= 1
    assert program.value("hone_ingest_fenced_commits_total") == 0
    assert program.process.poll() is None


def is_waiting(sessions: Sessions) -> bool:
    """Say whether ingest waits for somebody's lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hone-ingest' AND wait_event_type = 'Lock'"
    with sessions() as session:
        return bool(session.scalar(text(query)))
