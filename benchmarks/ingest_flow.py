"""The programs as they run: how long feedback takes to become a pair, and what more processes give. Reported only."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.ingest_world import NUM_PARTITIONS, TEXT, World
from benchmarks.result import say
from hone.ids import uuid7
from hone.local.ports import free_ports
from hone.local.processes import Program, Supervisor
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, FeedbackKind, Response
from hone.store.offsets import Group, Partition, claim_partitions
from hone.store.tables import DirtyTurnRow, FeedbackEventRow, PreferencePairRow, ResponseRow

ROOT = Path(__file__).parents[1]
Sessions = sessionmaker[Session]
NUM_BURST, LOAD_S = 10_000, 20.0
PATIENCE_S = 300.0

LATENCIES = """
SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
    ORDER BY extract(epoch FROM pg_xact_commit_timestamp(pair.xmin) - event.occurred_at))
FROM preference_pair AS pair JOIN feedback_event AS event ON event.event_id = pair.body_event_id
WHERE event.occurred_at >= to_timestamp(:since)
"""
"""From the moment in which a client sends an edit to the commit of its pair, in seconds."""


@contextmanager
def programs(servers: World, sessions: Sessions, names: Sequence[str], group: str) -> Iterator[None]:
    """Run programs of ingest on one database until the block ends."""
    stack = ExitStack()
    url = sessions.kw["bind"].url.render_as_string(hide_password=False)
    env = {"HONE_DATABASE_URL": url, "HONE_KAFKA_BOOTSTRAP_SERVERS": servers.broker.bootstrap_servers}
    env["HONE_INGEST__CONSUMER_GROUP"] = group
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hone-flow-")))
    with stack, Supervisor(folder / "flow.json") as supervisor:
        for number, (name, port) in enumerate(zip(names, free_ports(len(names)), strict=True)):
            argv = (sys.executable, "-m", "ingest", name, "--metrics-port", str(port))
            log = folder / f"{number}.log"
            supervisor.launch(Program(name=f"{name}-{number}", argv=argv, log_path=log, env=env, cwd=ROOT))
        yield


def count(sessions: Sessions, *tables: type) -> int:
    """Return the number of rows of the tables."""
    with sessions() as session:
        return sum(session.scalar(select(func.count()).select_from(table)) or 0 for table in tables)


def wait_until(condition: Callable[[], bool]) -> float:
    """Wait, and return the time at which it held."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not happen within {PATIENCE_S:g} s")
        time.sleep(0.05)
    return time.monotonic()


def scaling(servers: World, num_messages: int) -> dict[str, float]:
    """Return messages a second with 1 to 4 processes in one group, from the first to the last stored."""
    found = {}
    for number in range(1, 5):
        names, group = ["events"] * number, f"scale-{uuid4().hex[:8]}"
        with servers.database() as sessions, programs(servers, sessions, names, group):
            began = wait_until(lambda: count(sessions, FeedbackEventRow, ResponseRow) > 0)
            first = count(sessions, FeedbackEventRow, ResponseRow)
            ended = wait_until(lambda: count(sessions, FeedbackEventRow, ResponseRow) >= num_messages)
        found[str(number)] = (num_messages - first) / (ended - began)
        say(f"scaling: {number} processes, {found[str(number)]:.0f} messages/s")
    return found


def edits(answers: Sequence[Response], seconds: float, produce: Callable[[str, object], None]) -> None:
    """Send an edit of each answer, evenly over the time."""
    began = time.monotonic()
    for number, answer in enumerate(answers):
        if (ahead := began + seconds * number / len(answers) - time.monotonic()) > 0.002:
            time.sleep(ahead)
        produce(FEEDBACK_TOPIC, edit_of(answer))


def edit_of(answer: Response) -> Feedback:
    """Return a correction of the answer that is made now."""
    now = datetime.now(UTC)
    return Feedback(
        event_id=uuid7(),
        kind=FeedbackKind.EDIT,
        response_id=answer.response_id,
        user_id=answer.user_id,
        text=TEXT * 2 + "Thank you.",
        occurred_at=now,
        received_at=now,
    )


def latency(servers: World, answers: Sequence[Response]) -> dict[str, float]:
    """Return what the chain of ingest and pair worker takes at most, and its latencies at half of that."""
    producer = Producer({"bootstrap.servers": servers.broker.bootstrap_servers, "acks": "all", "linger.ms": 5})

    def produce(topic: str, record: object) -> None:
        producer.produce(topic, msgspec.json.encode(record), uuid4().bytes)
        producer.poll(0)

    group = f"flow-{uuid4().hex[:8]}"
    with servers.database() as sessions:
        begin_at_the_end(servers, sessions, group)
        with programs(servers, sessions, ["events", "pairs"], group):
            return measure(sessions, answers, produce, producer)


def begin_at_the_end(servers: World, sessions: Sessions, group: str) -> None:
    """Let the group leave out what earlier loops left in the topics."""
    consumer = Consumer({"bootstrap.servers": servers.broker.bootstrap_servers, "group.id": "ends"})
    partitions = [Partition(topic, n) for topic in (FEEDBACK_TOPIC, RESPONSES_TOPIC) for n in range(NUM_PARTITIONS)]
    ends = {p: consumer.get_watermark_offsets(TopicPartition(*p), timeout=20)[1] for p in partitions}
    consumer.close()
    with sessions.begin() as session:
        claim_partitions(session, Group(group, servers.broker.incarnation), "benchmark", ends)


def measure(
    sessions: Sessions, answers: Sequence[Response], produce: Callable[[str, object], None], producer: Producer
) -> dict[str, float]:
    """Send answers, a burst of edits to find the capacity, and then edits at half of it."""
    fresh = [msgspec.structs.replace(answer, response_id=uuid7(), turn_id=uuid4()) for answer in answers]
    for answer in fresh:
        produce(RESPONSES_TOPIC, answer)
    producer.flush(60)
    wait_until(lambda: count(sessions, ResponseRow) >= len(fresh) and count(sessions, DirtyTurnRow) == 0)
    before, began = count(sessions, PreferencePairRow), time.monotonic()
    edits(fresh[:NUM_BURST], 0.0, produce)
    producer.flush(60)
    ended = wait_until(lambda: count(sessions, PreferencePairRow) >= before + NUM_BURST)
    capacity = NUM_BURST / (ended - began)
    since, rest = time.time(), fresh[NUM_BURST:][: int(capacity / 2 * LOAD_S)]
    edits(rest, LOAD_S, produce)
    producer.flush(60)
    wait_until(lambda: count(sessions, PreferencePairRow) >= before + NUM_BURST + len(rest))
    with sessions() as session:
        p50, p99 = session.scalar(text(LATENCIES), {"since": since}) or (0.0, 0.0)
    say(f"latency: capacity {capacity:.0f}/s; at half of it p50 {p50:.3f} s, p99 {p99:.3f} s")
    return {"capacity_per_s": capacity, "load_per_s": len(rest) / LOAD_S, "p50_s": p50, "p99_s": p99}
