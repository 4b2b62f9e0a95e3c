"""The two programs as processes, on the in-process broker: from messages to pairs to a retrain request."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, Producer
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.local.mock_kafka import MockCluster
from hone.local.ports import free_ports
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC, Feedback, Response
from hone.store.tables import (
    DeadLetterRow,
    FeedbackEventRow,
    PreferencePairRow,
    ResponseRow,
    RetrainRequestRow,
)
from tests.support.events import encode, feedback, response, uid

ROOT = Path(__file__).parents[2]
TOPICS = {RESPONSES_TOPIC: 2, FEEDBACK_TOPIC: 2, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1}
CONFIG = "[trigger]\nmin_pairs = 3\n"

Sessions = sessionmaker[Session]


@pytest.fixture
def broker() -> Iterator[str]:
    cluster = MockCluster(TOPICS)
    yield cluster.bootstrap_servers
    cluster.close()


@pytest.fixture
def start(store_url: str, broker: str, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """`start("events")` starts that program and waits until it is healthy; returns it and its metrics port."""
    config = tmp_path / "hone.toml"
    config.write_text(CONFIG)
    env = {
        **os.environ,
        "HONE_DATABASE_URL": store_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": broker,
        "HONE_KAFKA_INCARNATION": "mock-1",
        "HONE_MODE": "active",
        "HONE_CONFIG": str(config),
    }
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, **changes: str) -> tuple[subprocess.Popen[bytes], int]:
        port = free_ports(1)[0]
        argv = [sys.executable, "-m", "ingest", name, "--metrics-port", str(port)]
        process = subprocess.Popen(argv, env=env | changes, cwd=ROOT)
        running.append(process)
        wait_for(lambda: healthy(port))
        return process, port

    yield start
    for process in running:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def produce(broker: str, *records: Response | Feedback | bytes) -> None:
    producer = Producer({"bootstrap.servers": broker})
    for record in records:
        topic = RESPONSES_TOPIC if isinstance(record, Response) else FEEDBACK_TOPIC
        producer.produce(topic, record if isinstance(record, bytes) else encode(record))
    assert producer.flush(10) == 0


def count(sessions: Sessions, table: type) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def read(broker: str, topic: str) -> list[bytes]:
    config = {"bootstrap.servers": broker, "group.id": f"test-{topic}", "auto.offset.reset": "earliest"}
    consumer = Consumer(config | {"partition.assignment.strategy": "range"})
    consumer.subscribe([topic])
    found = [message.value() for message in consumer.consume(1, 15) if not message.error()]
    consumer.close()
    return found


def test_feedback_becomes_pairs_and_pairs_become_one_request(
    broker: str, sessions: Sessions, start: Callable[..., tuple[subprocess.Popen[bytes], int]]
) -> None:
    ingest, ingest_port = start("events")
    _, pairs_port = start("pairs")
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

    page = httpx.get(f"http://127.0.0.1:{ingest_port}/metrics").text
    assert 'hone_ingest_events_total{kind="response"} 6.0' in page
    assert 'hone_ingest_dead_letters_total{reason="not_json"} 1.0' in page
    page = httpx.get(f"http://127.0.0.1:{pairs_port}/metrics").text
    assert 'hone_pairs_changed_total{change="created",source="choice"} 3.0' in page

    ingest.send_signal(signal.SIGTERM)
    assert ingest.wait(10) == 0


def test_observe_mode_opens_no_request(
    broker: str, sessions: Sessions, start: Callable[..., tuple[subprocess.Popen[bytes], int]]
) -> None:
    start("events")
    _, port = start("pairs", HONE_MODE="observe")
    for number in range(3):
        produce(
            broker,
            response(f"a{number}", turn=f"turn{number}"),
            feedback("edit", f"a{number}", text=f"answer a{number}, made clearer"),
        )
    wait_for(lambda: "hone_new_pairs 3.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    assert count(sessions, RetrainRequestRow) == 0


def test_a_second_member_takes_over_and_nothing_is_stored_twice(
    broker: str, sessions: Sessions, start: Callable[..., tuple[subprocess.Popen[bytes], int]]
) -> None:
    first, _ = start("events")
    produce(broker, *(response(f"r{n}") for n in range(300)))
    wait_for(lambda: count(sessions, ResponseRow) == 300)
    start("events")
    first.send_signal(signal.SIGTERM)
    produce(broker, *(response(f"r{n}") for n in range(200, 500)), b"{}")
    wait_for(lambda: count(sessions, ResponseRow) == 500 and count(sessions, DeadLetterRow) == 1)
    assert first.wait(15) == 0
