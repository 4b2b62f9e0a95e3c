"""`python -m ingest` as a process, and what tests ask of it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.local.ports import free_ports
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Response
from tests.support.events import encode

ROOT = Path(__file__).parents[2]


class Program:
    """One running program of ingest."""

    def __init__(self, name: str, env: Mapping[str, str], *options: str) -> None:
        self.port = free_ports(1)[0]
        argv = [sys.executable, "-m", "ingest", name, "--metrics-port", str(self.port), *options]
        self.process = subprocess.Popen(argv, env={**os.environ, **env}, cwd=ROOT)
        wait_for(lambda: self.is_healthy() or self.process.poll() is not None)

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.port}/metrics").text

    def value(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        families = text_string_to_metric_families(self.metrics())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def hone(*words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of `hone` that starts a program of the checkout, to its end."""
    argv = [sys.executable, "-m", "hone.cli", *words]
    return subprocess.run(argv, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=120)


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def produce(bootstrap_servers: str, *records: Response | Feedback | bytes) -> set[tuple[str, int, int]]:
    """Send bytes to the feedback topic, and records to theirs; return the coordinates of the bytes."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "enable.idempotence": True})
    refused: set[tuple[str, int, int]] = set()
    num_done = 0

    def done(error: object, message: object) -> None:
        nonlocal num_done
        assert error is None
        num_done += 1

    def done_bytes(error: object, message: "object") -> None:
        done(error, message)
        refused.add((message.topic(), message.partition(), message.offset()))  # type: ignore[attr-defined]

    for number, record in enumerate(records):
        raw = isinstance(record, bytes)
        topic = RESPONSES_TOPIC if isinstance(record, Response) else FEEDBACK_TOPIC
        body = record if isinstance(record, bytes) else encode(record)
        producer.produce(topic, body, str(number % 61).encode(), on_delivery=done_bytes if raw else done)
    assert producer.flush(30) == 0
    assert num_done == len(records)
    return refused


def count(sessions: sessionmaker[Session], table: type) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0
