"""The real broker: what it acknowledged is still there after a kill -9."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from hone.local.broker import Broker, cluster_id, create_topics
from hone.local.kafka import KafkaServer, fetch_jars, jars_available, prepare_kafka
from hone.local.processes import Supervisor

pytestmark = pytest.mark.kafka

NUM_MESSAGES = 3000
NUM_PARTITIONS = 12


@pytest.fixture(scope="module")
def server(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> KafkaServer:
    return prepare_kafka(tmp_path_factory.mktemp("kafka") / "data", kafka_libs)


@pytest.fixture(scope="module")
def supervisor(server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    directory = tmp_path_factory.mktemp("stack")
    with Supervisor(directory / "stack.json") as supervisor:
        supervisor.start(server.program(directory / "kafka.log"))
        yield supervisor


def test_all_acknowledged_messages_survive_a_kill_and_a_restart(server: KafkaServer, supervisor: Supervisor) -> None:
    broker = server.broker()
    assert create_topics(broker, {"survivors": NUM_PARTITIONS}) == ["survivors"]
    acknowledged = produce(broker, "survivors")
    assert len(acknowledged) == NUM_MESSAGES

    supervisor.kill("kafka")
    assert cluster_id(broker.bootstrap_servers) is None, "the broker must really be gone"
    supervisor.restart("kafka")

    assert consume(broker, "survivors") == acknowledged


def test_the_broker_keeps_identity_and_address_over_a_restart(server: KafkaServer, supervisor: Supervisor) -> None:
    supervisor.restart("kafka")
    again = server.broker()
    assert (again.kind, again.durable) == ("kafka", True)
    assert again.version.startswith("4.")
    assert cluster_id(again.bootstrap_servers, timeout_s=5) == again.incarnation


def test_the_first_consumer_of_a_group_need_not_wait(server: KafkaServer, supervisor: Supervisor) -> None:
    create_topics(server.broker(), {"quick": 2})
    producer = Producer({"bootstrap.servers": server.bootstrap_servers})
    producer.produce("quick", b"x")
    assert producer.flush(10) == 0
    consumer = Consumer(
        {"bootstrap.servers": server.bootstrap_servers, "group.id": "quick", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["quick"])
    message = consumer.poll(2.5)
    consumer.close()
    assert message is not None
    assert message.value() == b"x"


def test_unknown_topics_are_not_created_by_use(server: KafkaServer, supervisor: Supervisor) -> None:
    producer = Producer({"bootstrap.servers": server.bootstrap_servers, "message.timeout.ms": 3000, "log_level": 0})
    errors: list[object] = []
    producer.produce("never-created", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(10)
    assert [error is not None for error in errors] == [True]


def test_creating_topics_again_changes_nothing(server: KafkaServer, supervisor: Supervisor) -> None:
    create_topics(server.broker(), {"twice": 3})
    assert create_topics(server.broker(), {"twice": 5}) == []


def test_preparing_formatted_storage_keeps_its_cluster(server: KafkaServer) -> None:
    assert prepare_kafka(server.data_dir, server.libs).cluster_id == server.cluster_id


def test_fetching_again_does_nothing(kafka_libs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (kafka_libs / "DONE").stat().st_mtime_ns
    fetch_jars(kafka_libs)
    assert (kafka_libs / "DONE").stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""


def test_jars_of_another_pom_do_not_count(kafka_libs: Path, tmp_path: Path) -> None:
    assert jars_available(kafka_libs)
    (tmp_path / "DONE").write_text("0" * 64)
    assert not jars_available(tmp_path)


def produce(broker: Broker, topic: str) -> set[bytes]:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "enable.idempotence": True})
    acknowledged: set[bytes] = set()
    for number in range(NUM_MESSAGES):
        producer.produce(
            topic,
            str(number).encode(),
            key=str(number % 97).encode(),
            on_delivery=lambda error, message: acknowledged.add(message.value()) if error is None else None,
        )
    producer.flush(30)
    return acknowledged


def consume(broker: Broker, topic: str) -> set[bytes]:
    """Read every partition from its beginning to its present end."""
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False}
    )
    partitions = [TopicPartition(topic, number, 0) for number in range(NUM_PARTITIONS)]
    wanted = sum(consumer.get_watermark_offsets(p, timeout=20)[1] for p in partitions)
    consumer.assign(partitions)
    values: list[bytes] = []
    while len(values) < wanted and (messages := consumer.consume(500, timeout=20)):
        values += [message.value() for message in messages if message.error() is None]
    consumer.close()
    assert len(values) == wanted
    return set(values)
