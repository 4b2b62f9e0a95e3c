"""On a real broker: whatever is killed when, every acknowledged message is in Postgres exactly once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count as counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone import metrics
from hone.health import Pulse
from hone.local.broker import create_topics, external_broker
from hone.local.kafka import KafkaServer, prepare_kafka
from hone.local.processes import Supervisor
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Response
from hone.store.offsets import Group
from hone.store.tables import ConsumerOffsetRow, DeadLetterRow, FeedbackEventRow, ResponseRow
from ingest import consumer
from ingest.breaker import Breaker
from ingest.source import Source, consumer_config
from tests.support.events import encode, feedback, response, uid
from tests.support.ingest_process import Program, count, produce, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NUM_PARTITIONS = 3
CONFIG = "[ingest]\nmax_rows = 40\n"
"""Small batches, so that there is always a next one to be killed in."""

Sessions = sessionmaker[Session]
Start = Callable[..., Program]


@pytest.fixture(scope="module")
def server(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> KafkaServer:
    return prepare_kafka(tmp_path_factory.mktemp("kafka") / "data", kafka_libs)


@pytest.fixture(scope="module")
def supervisor(server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    directory = tmp_path_factory.mktemp("stack")
    with Supervisor(directory / "stack.json") as supervisor:
        supervisor.start(server.program(directory / "kafka.log"))
        create_topics(server.broker(), {RESPONSES_TOPIC: NUM_PARTITIONS, FEEDBACK_TOPIC: NUM_PARTITIONS})
        yield supervisor


@pytest.fixture
def start(store_url: str, server: KafkaServer, supervisor: Supervisor, tmp_path: Path) -> Iterator[Start]:
    """`start("--crash-at", "stored:2")` starts one more member of a group of this test's own."""
    config = tmp_path / "hone.toml"
    config.write_text(f'{CONFIG}consumer_group = "{tmp_path.name}"\n')
    env = {
        "HONE_DATABASE_URL": store_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": server.bootstrap_servers,
        "HONE_CONFIG": str(config),
    }
    with ExitStack() as stack:

        def start(*options: str, **changes: str) -> Program:
            program = Program("events", env | changes, *options)
            stack.callback(program.end)
            return program

        yield start


@dataclass
class Sent:
    """Everything that the broker of this module acknowledged."""

    records: list[Response | Feedback] = field(default_factory=list)
    refused: set[tuple[str, int, int]] = field(default_factory=set)


@pytest.fixture(scope="module")
def sent() -> Sent:
    return Sent()


class Log:
    """What the broker acknowledged, and what this test's database holds of it."""

    def __init__(self, server: KafkaServer, sessions: Sessions, sent: Sent) -> None:
        self.server, self.sessions, self.sent = server, sessions, sent

    def send(self, name: str, number: int) -> None:
        """Send answers and feedback, every tenth twice, and some that cannot be read."""
        records: list[Response | Feedback] = [response(f"{name}{n}", turn=f"{name}{n % 50}") for n in range(number)]
        records += [feedback("thumbs", f"{name}{n}", value=1, event_id=uid(f"{name}-{n}")) for n in range(number)]
        self.sent.records += records
        self.sent.refused |= produce(self.server.bootstrap_servers, *records, *records[::10], b"poison", b"{}")

    @property
    def num_sent_twice(self) -> int:
        """At least as many as were."""
        return len(self.sent.records) // 10 + 10

    def ends(self) -> int:
        """The sum of the partitions' ends."""
        consumer = Consumer({"bootstrap.servers": self.server.bootstrap_servers, "group.id": "ends"})
        topics = [TopicPartition(t, n) for t in (RESPONSES_TOPIC, FEEDBACK_TOPIC) for n in range(NUM_PARTITIONS)]
        ends = sum(consumer.get_watermark_offsets(partition, timeout=20)[1] for partition in topics)
        consumer.close()
        return ends

    def num_stored(self) -> int:
        with self.sessions() as session:
            return session.scalar(select(func.sum(ConsumerOffsetRow.next_offset))) or 0

    def num_in_flight(self) -> int:
        """Messages that were acknowledged and are not committed."""
        return self.ends() - self.num_stored()

    def assert_each_once(self) -> None:
        """Every message is one row or one dead letter, and the offsets stand at the ends."""
        wait_for(lambda: self.num_in_flight() == 0, 60)
        with self.sessions() as session:
            responses = session.scalars(select(ResponseRow.response_id)).all()
            events = session.scalars(select(FeedbackEventRow.event_id)).all()
            letters = session.execute(select(DeadLetterRow.topic, DeadLetterRow.partition, DeadLetterRow.offset)).all()
        assert sorted(responses) == sorted({r.response_id for r in self.sent.records if isinstance(r, Response)})
        assert sorted(events) == sorted({r.event_id for r in self.sent.records if isinstance(r, Feedback)})
        assert sorted(map(tuple, letters)) == sorted(self.sent.refused)


@pytest.fixture
def log(server: KafkaServer, supervisor: Supervisor, sessions: Sessions, sent: Sent) -> Log:
    return Log(server, sessions, sent)


def die(program: Program, log: Log) -> None:
    """Wait for the death by SIGKILL, and assert that it hit messages in flight."""
    assert program.process.wait(30) == -signal.SIGKILL
    assert log.num_in_flight() > 0


def test_killed_at_each_point_of_a_batch_it_loses_and_doubles_nothing(start: Start, log: Log) -> None:
    log.send("a", 300)
    for point in ("consumed:3", "copied:3", "stored:3", "committed:3"):
        stored = log.num_stored()
        die(start("--crash-at", point), log)
        assert log.num_stored() > stored, "each life made progress before its death"
    start()
    log.assert_each_once()


def test_killed_from_outside_while_another_member_works_it_loses_and_doubles_nothing(start: Start, log: Log) -> None:
    first, second = start(), start()
    log.send("b", 1500)
    wait_for(lambda: count(log.sessions, ResponseRow) > 100)
    first.process.send_signal(signal.SIGSTOP)  # what is sent now lies in its partitions when it dies
    log.send("c", 100)
    first.process.send_signal(signal.SIGKILL)
    die(first, log)
    log.assert_each_once()
    assert second.process.poll() is None


def test_a_zombie_that_wakes_up_after_its_successor_is_fenced(start: Start, log: Log) -> None:
    log.send("d", 300)
    zombie = start("--crash-at", "consumed:3:SIGSTOP")
    wait_for(lambda: log.num_stored() > 0)
    start()
    log.assert_each_once()
    assert log.num_stored() > 0
    zombie.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "hone_ingest_fenced_commits_total 1.0" in zombie.metrics())
    log.send("e", 100)
    log.assert_each_once()


@pytest.mark.parametrize("rebalancing", ["eager", "cooperative"])
def test_three_members_that_come_and_go_under_load_lose_and_double_nothing(
    start: Start, log: Log, rebalancing: str
) -> None:
    how, parts = {"HONE_INGEST__REBALANCING": rebalancing}, counter()
    first, second = start(**how), start(**how)
    while second.value("hone_ingest_events_total") == 0:
        log.send(f"{rebalancing}{next(parts)}", 100)
    third = start(**how)
    log.send(f"{rebalancing}{next(parts)}", 500)
    first.process.send_signal(signal.SIGTERM)
    log.send(f"{rebalancing}{next(parts)}", 1500)
    assert first.process.wait(30) == 0
    log.assert_each_once()
    assert [program.process.poll() for program in (second, third)] == [None, None]
    # Whoever gets a partition reads on where it was drained: nobody stored a message for the second time.
    assert sum(program.value("hone_ingest_duplicates_total") for program in (second, third)) <= log.num_sent_twice
    assert second.value("hone_ingest_fenced_commits_total") == third.value("hone_ingest_fenced_commits_total") == 0


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    start: Start, log: Log, server: KafkaServer, supervisor: Supervisor
) -> None:
    program = start()
    log.send("f", 1500)
    wait_for(lambda: count(log.sessions, ResponseRow) > 100)
    supervisor.kill("kafka")
    supervisor.restart("kafka")
    log.send("g", 100)
    log.assert_each_once()
    assert program.process.poll() is None


def stored_offsets(sessions: Sessions, server: KafkaServer, group: str, next_offset: int) -> None:
    """What an earlier life of the group left: every partition at `next_offset`."""
    with sessions.begin() as session:
        for topic in (RESPONSES_TOPIC, FEEDBACK_TOPIC):
            for number in range(NUM_PARTITIONS):
                row = ConsumerOffsetRow(topic=topic, partition=number, next_offset=next_offset, epoch=1, owner="old")
                row.consumer_group, row.incarnation = group, server.cluster_id
                session.add(row)


def test_a_stored_offset_beyond_the_topics_end_stops_it(
    start: Start, log: Log, server: KafkaServer, tmp_path: Path
) -> None:
    log.send("h", 10)
    stored_offsets(log.sessions, server, tmp_path.name, 1_000_000)
    assert start().process.wait(30) == 1
    assert count(log.sessions, ResponseRow) == 0


def test_messages_that_are_gone_before_they_were_read_stop_it(
    start: Start, log: Log, server: KafkaServer, tmp_path: Path
) -> None:
    """Last in this file: it deletes what the tests above count."""
    log.send("i", 10)
    stored_offsets(log.sessions, server, tmp_path.name, 0)
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(RESPONSES_TOPIC, 0, 1)]).values():
        future.result()
    assert start().process.wait(30) == 1
    assert count(log.sessions, ResponseRow) == 0

    (tmp_path / "hone.toml").write_text(f'{CONFIG}consumer_group = "{tmp_path.name}"\non_retention_gap = "continue"\n')
    program = start()
    wait_for(lambda: log.num_in_flight() == 0, 60)
    assert 'hone_ingest_retention_gaps_total{topic="hone.responses.v1"} 1.0' in program.metrics()


def test_a_topic_that_was_created_again_and_is_longer_than_before_stops_it(
    start: Start, log: Log, server: KafkaServer
) -> None:
    """Its offsets would fit: only the broker's id of the topic tells. Nothing may be skipped."""
    log.send("f", 100)
    first = start()
    wait_for(lambda: log.num_stored() > 0, 60)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(30) == 0
    stored = count(log.sessions, FeedbackEventRow)
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
    admin.delete_topics([FEEDBACK_TOPIC])[FEEDBACK_TOPIC].result()
    wait_for(lambda: create_topics(server.broker(), {FEEDBACK_TOPIC: NUM_PARTITIONS}))
    produce(server.bootstrap_servers, *(feedback("thumbs", f"again{n}", value=1) for n in range(20_000)))
    assert start().process.wait(30) == 1
    assert count(log.sessions, FeedbackEventRow) == stored
    start(HONE_KAFKA_INCARNATION="second")
    wait_for(lambda: count(log.sessions, FeedbackEventRow) == stored + 20_000, 60)


def member(bootstrap: str, sessions: Sessions, group: str) -> consumer.Ingest:
    """A member in this process."""
    named = Group(group, external_broker(bootstrap).incarnation)
    source = Source(bootstrap, group, [FEEDBACK_TOPIC])
    return consumer.Ingest(source, sessions, named, "test", 40, 0.1, "stop", Breaker(0.5), Pulse())


def store_until(ingest: consumer.Ingest, number: int) -> None:
    def stored() -> bool:
        consumer.turn(ingest)
        return count(ingest.sessions, FeedbackEventRow) == number

    wait_for(stored)


def thumbs(first: int, end: int) -> list[Feedback]:
    return [feedback("thumbs", f"g{n}", value=1, event_id=uid(f"grow-{n}")) for n in range(first, end)]


def test_partitions_that_are_added_are_read_from_their_first_message(
    kafka_bootstrap: str, store_url: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = consumer_config
    monkeypatch.setattr(  # a running member looks for new partitions every ten seconds
        "ingest.source.consumer_config", lambda *words: settings(*words) | {"topic.metadata.refresh.interval.ms": 300}
    )
    create_topics(external_broker(kafka_bootstrap), {FEEDBACK_TOPIC: 1})
    ingest = member(kafka_bootstrap, sessions, "growing")
    produce(kafka_bootstrap, *thumbs(0, 20))
    store_until(ingest, 20)
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.create_partitions([NewPartitions(FEEDBACK_TOPIC, 3)])[FEEDBACK_TOPIC].result()
    producer = Producer({"bootstrap.servers": kafka_bootstrap})
    for n, record in enumerate(thumbs(20, 60)):
        producer.produce(FEEDBACK_TOPIC, encode(record), partition=n % 3)
    assert producer.flush(30) == 0
    store_until(ingest, 60)
    ingest.source.close()
    assert {p.number for p in ingest.claims} == {0, 1, 2}


def test_an_older_offset_in_kafkas_own_group_changes_nothing(
    kafka_bootstrap: str, store_url: str, sessions: Sessions
) -> None:
    create_topics(external_broker(kafka_bootstrap), {FEEDBACK_TOPIC: 1})
    produce(kafka_bootstrap, *thumbs(0, 30))
    first = member(kafka_bootstrap, sessions, "older")
    store_until(first, 30)
    first.source.close()
    outsider = Consumer({"bootstrap.servers": kafka_bootstrap, "group.id": "older", "enable.auto.commit": False})
    outsider.commit(offsets=[TopicPartition(FEEDBACK_TOPIC, 0, 3)], asynchronous=False)
    outsider.close()
    second, before = member(kafka_bootstrap, sessions, "older"), metrics.INGEST_DUPLICATES._value.get()
    produce(kafka_bootstrap, *thumbs(30, 40))
    store_until(second, 40)
    second.source.close()
    assert metrics.INGEST_DUPLICATES._value.get() == before, "nothing was read twice"
