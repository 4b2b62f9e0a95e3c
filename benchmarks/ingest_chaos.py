"""Whether ingest loses or doubles anything while all breaks: `python -m benchmarks.ingest_chaos --json --seed 1`.

A real broker, a durable Postgres, three members of one consumer group, a million messages with duplicates, disorder,
wrong clocks and poison; and faults drawn from the seed. At the end every acknowledged message must be one row or one
dead letter.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.chaos_faults import Stage, schedule
from benchmarks.chaos_load import Load, account
from benchmarks.ingest_world import LIBS, NUM_PARTITIONS, POSTGRES
from benchmarks.result import Target, report, say
from hone.errors import HoneError
from hone.local.broker import Broker, create_topics
from hone.local.kafka import fetch_jars, prepare_kafka
from hone.local.postgres import start_postgres, stop_postgres
from hone.local.processes import Supervisor
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC
from hone.store.engine import make_engine, make_sessions, migrate
from hone.store.tables import ConsumerOffsetRow

TOPICS = (RESPONSES_TOPIC, FEEDBACK_TOPIC)
MAX_WAITING = 60_000
"""Messages that wait to be stored, above which the load slows down: the faults shall hit work, not a backlog."""
EXPECTED = (0, -signal.SIGKILL, -signal.SIGTERM)
"""Exit codes; SIGTERM itself ends a member that is still starting."""


@contextmanager
def stage(directory: Path, rebalancing: str) -> Iterator[tuple[Stage, Broker]]:
    """Start both servers; stop everything at the end."""
    fetch_jars(LIBS)
    directory.chmod(0o755)  # Postgres may run as another user
    with Supervisor(directory / "stack.json") as supervisor:
        kafka, data = prepare_kafka(directory / "kafka", LIBS), directory / "postgres"
        supervisor.start(kafka.program(directory / "kafka.log"))
        create_topics(kafka.broker(), dict.fromkeys(TOPICS, NUM_PARTITIONS))
        try:
            url = start_postgres(data, settings=POSTGRES).create_database("chaos")
            migrate(url)
            env = {"HONE_DATABASE_URL": url, "HONE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
            env |= {"HONE_INGEST__MAX_ROWS": "1000", "HONE_INGEST__REBALANCING": rebalancing}
            engine = make_engine(url, program="chaos")
            yield Stage(supervisor, make_sessions(engine), data, POSTGRES, directory, env), kafka.broker()
            engine.dispose()
        finally:
            supervisor.stop_all()
            stop_postgres(data)


def num_stored(sessions: sessionmaker[Session]) -> int | None:
    """Return the sum of the stored offsets; None while the database is away."""
    with suppress(DBAPIError), sessions() as session:
        return session.scalar(select(func.coalesce(func.sum(ConsumerOffsetRow.next_offset), 0)))
    return None


def num_in_log(broker: Broker) -> int:
    """Return how many messages the broker holds."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "chaos-ends"})
    partitions = [TopicPartition(topic, number) for topic in TOPICS for number in range(NUM_PARTITIONS)]
    try:
        return sum(consumer.get_watermark_offsets(partition, timeout=20)[1] for partition in partitions)
    finally:
        consumer.close()


def attack(scene: Stage, load: Load, num_faults: int, num_members: int, deadline: float) -> Counter[str]:
    """Let the faults happen while the load runs; return how many of each kind did."""
    waiting, done = schedule(load.seed, num_faults, load.num_events, num_members), Counter[str]()
    stored = 0
    load.start()
    while (load.is_alive() or waiting) and time.monotonic() < deadline:
        scene.tend()
        stored = num_stored(scene.sessions) or stored
        (load.slow_down.set if load.num_sent - stored > MAX_WAITING else load.slow_down.clear)()
        if waiting and stored >= waiting[0].after_events:
            fault = waiting.pop(0)
            scene.inject(fault)
            done[fault.kind] += 1
            say(f"{done.total()}/{num_faults} {fault.kind}: sent {load.num_sent}, offsets {stored}")
        else:
            time.sleep(0.05)
    load.slow_down.clear()
    return done


def settle(scene: Stage, load: Load, broker: Broker, deadline: float) -> None:
    """Wait until all that was sent is stored, with nobody harmed any more."""
    for thread in (load, *scene.threads):
        thread.join(max(0.0, deadline - time.monotonic()))
    load.stop.set()
    while time.monotonic() < deadline:
        scene.tend()
        with suppress(KafkaException):
            if num_stored(scene.sessions) == num_in_log(broker):
                return
        time.sleep(0.5)
    say("not everything was stored in time")


PRINTED_BY_DRIVER = "SystemError: <function decode at"
"""psycopg2 prints an error of its own where a connection dies while another is handled; ingest goes on."""
ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)
"""Where an entry of a log begins; what a traceback prints stands at an entry's end."""


def count_defects(log: str) -> int:
    """Return the number of entries with a traceback that is not the driver's."""
    return sum("Traceback" in entry and PRINTED_BY_DRIVER not in entry for entry in ENTRY.split(log))


def count_lines(directory: Path, words: str) -> int:
    """Return how often the members' logs hold these words."""
    return sum(path.read_text(errors="replace").count(words) for path in directory.glob("ingest-*.log"))


def run(seed: int, num_events: int, num_faults: int, members: int, minutes: float, rebalancing: str) -> dict[str, Any]:
    """Return what was done, and what differs at the end."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hone-chaos-", ignore_cleanup_errors=True) as folder:
        with stage(Path(folder), rebalancing) as (scene, broker):
            scene.members = [scene.start() for _ in range(members)]
            load = Load(broker.bootstrap_servers, num_events, seed)
            done = attack(scene, load, num_faults, members, began + minutes * 60)
            settle(scene, load, broker, time.monotonic() + 120)
            found = account(scene.sessions, load)
        logs = {"fenced": "fenced:", "waits": "waiting ", "refusals": "Error: ", "printed_by_driver": PRINTED_BY_DRIVER}
        counts = {name: count_lines(Path(folder), words) for name, words in logs.items()} | {"defects": 0}
        bad = {code: number for code, number in scene.ended.items() if code not in EXPECTED}
        for path in Path(folder).glob("ingest-*.log"):
            log = path.read_text(errors="replace")
            counts["defects"] += count_defects(log)
            if bad or "Traceback" in log:
                say(f"{path.name}: {log[-3000:]}")
    if load.errors:
        raise HoneError(f"the load is not what was planned: {load.errors[:3]}")
    sent = {"events": load.num_sent, "sent_twice": load.num_twice, "poison": load.num_poison}
    figures = {**sent, "faults": done.total(), "faults_by_kind": dict(done), "members_started": scene.num_started}
    figures |= {"lost": found.lost, "extra": found.extra, "rows": found.rows, "dead_letters": found.dead_letters}
    return figures | counts | {"stopped_by_themselves": bad, "wall_s": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time, and printed")
    parser.add_argument("--events", type=int, default=1_000_000, help="valid messages")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=14, help="no fault and no message after so many")
    parser.add_argument("--rebalancing", choices=["eager", "cooperative"], help="default: by the seed")
    chosen = parser.parse_args()
    rebalancing = chosen.rebalancing or ("eager", "cooperative")[chosen.seed % 2]
    say(f"seed {chosen.seed}, {rebalancing}")
    figures = run(chosen.seed, chosen.events, chosen.faults, chosen.members, chosen.minutes, rebalancing)
    say(f"lost/extra = {figures['lost']}/{figures['extra']} with seed {chosen.seed}")
    targets = {
        "lost": Target(figures["lost"], "==", 0),
        "extra": Target(figures["extra"], "==", 0),
        "events": Target(figures["events"], ">=", chosen.events),
        "faults": Target(figures["faults"], ">=", chosen.faults),
        "stopped_by_themselves": Target(sum(figures["stopped_by_themselves"].values()), "==", 0),
        "defects": Target(figures["defects"], "==", 0),
    }
    return report({**figures, "rebalancing": rebalancing}, targets, seeds=[chosen.seed])


if __name__ == "__main__":
    sys.exit(main())
