"""librdkafka's in-process broker as a program: what the demo without Java relies on."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from hone.errors import HoneError, Retryable
from hone.local.broker import Broker, create_topics, external_broker
from hone.local.broker_choice import choose_broker, start_broker
from hone.local.mock_kafka import mock_broker, mock_program
from hone.local.ports import free_ports
from hone.local.processes import Supervisor

PARENT = """
import os, pathlib, sys, time
from hone.local.mock_kafka import mock_program
import subprocess
directory = pathlib.Path(sys.argv[1])
child = subprocess.Popen(mock_program(directory, {}, die_with=os.getpid()).argv)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "stack.json") as supervisor:
        yield supervisor


@pytest.fixture
def broker(supervisor: Supervisor, tmp_path: Path) -> Broker:
    supervisor.start(mock_program(tmp_path, {"events": 6}))
    return mock_broker(tmp_path)


def test_messages_travel_between_processes_at_once(broker: Broker) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all"})
    for number in range(200):
        producer.produce("events", str(number).encode(), key=str(number).encode())
    assert producer.flush(10) == 0
    started = time.monotonic()
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["events"])
    values: set[bytes] = set()
    while len(values) < 200 and time.monotonic() < started + 20:
        values |= {message.value() for message in consumer.consume(200, timeout=0.2) if message.error() is None}
    consumer.close()
    assert values == {str(number).encode() for number in range(200)}
    assert time.monotonic() - started < 2.5, "the group's rebalance delay of 3 s must be off"


def test_topics_have_the_partitions_that_were_asked_for(broker: Broker) -> None:
    metadata = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=5)
    assert {name: len(topic.partitions) for name, topic in metadata.topics.items()} == {"events": 6}


def test_it_says_that_nothing_lasts(broker: Broker) -> None:
    assert (broker.kind, broker.durable) == ("librdkafka-mock", False)


def test_creating_topics_needs_no_admin_api_and_no_time(broker: Broker) -> None:
    started = time.monotonic()
    assert create_topics(broker, {"events": 6, "others": 2}) == []
    assert time.monotonic() - started < 1


def test_each_start_is_a_new_incarnation(broker: Broker, supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.restart("kafka")
    assert mock_broker(tmp_path).incarnation != broker.incarnation


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    deadline = time.monotonic() + 15
    while not (tmp_path / "mock_kafka.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_a_directory_without_a_broker_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HoneError, match="no in-process broker"):
        mock_broker(tmp_path)


def test_your_own_broker_is_chosen_before_any_other(tmp_path: Path) -> None:
    assert choose_broker("kafka.example:9092", tmp_path).kind == "external"


def test_without_java_the_in_process_broker_is_chosen_and_started(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    choice = choose_broker(None, tmp_path / "libs")
    assert choice.kind == "librdkafka-mock"
    assert "Java 17" in choice.reason
    broker = start_broker(supervisor, tmp_path, {"events": 2}, libs=tmp_path / "libs")
    assert broker.kind == "librdkafka-mock"
    found = external_broker(broker.bootstrap_servers)
    assert (found.kind, found.bootstrap_servers) == ("external", broker.bootstrap_servers)


@pytest.mark.kafka
def test_with_java_and_jars_the_real_broker_is_chosen_and_started(
    supervisor: Supervisor, tmp_path: Path, kafka_libs: Path
) -> None:
    assert choose_broker(None, kafka_libs).kind == "kafka"
    broker = start_broker(supervisor, tmp_path, {"events": 3}, libs=kafka_libs)
    assert (broker.kind, broker.durable) == ("kafka", True)
    metadata = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics("events", timeout=5)
    assert len(metadata.topics["events"].partitions) == 3


def test_an_external_broker_that_does_not_answer_is_named_with_a_remedy() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Retryable, match=rf"127\.0\.0\.1:{port} .*HONE_KAFKA_BOOTSTRAP_SERVERS"):
        external_broker(f"127.0.0.1:{port}", timeout_s=1)
