"""A JDBC sink connector on the same messages: Kafka Connect with Debezium's, in its own process, both from Maven.

It stores the feedback topic as it is into the same table, skipping none of its indexes: an external schema tells its
JSON converter the types (KIP-1054), and an upsert by `event_id` makes it idempotent, as its manual advises.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.ingest_world import JDBC_TOPIC, Cost, Messages, World, produce, until
from benchmarks.result import say
from hone.errors import HoneError
from hone.ids import uuid7
from hone.local import maven
from hone.local.kafka import DEPLOY
from hone.local.ports import free_ports
from hone.local.processes import Program, Supervisor

HERE = Path(__file__).parent
POM = HERE / "jdbc" / "pom.xml"
LIBS = HERE.parent / "var" / "jdbc" / "libs"
CONNECTOR = "sink"
BATCH = 2000
START_TIMEOUT_S = 120.0
MAX_ROUNDS = 9
IS_WARM = 0.95
"""A round that costs more than this share of the one before: the process is warm."""
BACKENDS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'PostgreSQL JDBC%'"
)
# With the full compiler and the collector that the JVM chooses, as in production.
JAVA = ("java", "-Xmx1g", "-Xms256m", f"-Dlog4j2.configurationFile={DEPLOY / 'log4j2.properties'}")
UUID, TIME = "io.debezium.data.Uuid", "io.debezium.time.ZonedTimestamp"


def obstacle() -> str | None:
    """Fetch the jars where they are missing; say why the connector cannot run here, or None."""
    try:
        maven.fetch_jars(POM, LIBS, "JDBC sink")
    except HoneError as error:
        return str(error)
    return None


def schema() -> dict[str, Any]:
    """Return Connect's schema of a feedback message, with the logical types that the connector maps to columns."""

    def column(name: str, kind: str = "string", logical: str | None = None, optional: bool = False) -> dict[str, Any]:
        return {"field": name, "type": kind, "optional": optional} | ({"name": logical} if logical else {})

    def many(name: str, logical: str | None = None) -> dict[str, Any]:
        items = {"type": "string", "optional": False} | ({"name": logical} if logical else {})
        return {"field": name, "type": "array", "optional": False, "items": items}

    fields = [
        column("event_id", logical=UUID),
        column("kind"),
        *(column(name, logical=UUID, optional=True) for name in ("response_id", "conversation_id", "turn_id")),
        column("user_id", logical=UUID),
        column("value", "double", optional=True),
        column("text", optional=True),
        column("name", optional=True),
        many("rejected", UUID),
        many("reasons"),
        column("occurred_at", logical=TIME),
        column("received_at", logical=TIME),
        column("signed", "boolean"),
    ]
    return {"type": "struct", "name": "feedback", "optional": False, "fields": fields}


def worker(servers: World, folder: Path, port: int) -> dict[str, object]:
    """Return the settings of Connect's standalone worker."""
    return {
        "bootstrap.servers": servers.broker.bootstrap_servers,
        "listeners": f"http://127.0.0.1:{port}",
        "key.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
        "value.converter.schema.content": json.dumps(schema()),
        "offset.storage.file.filename": folder / "offsets",
        "plugin.discovery": "only_scan",
        "consumer.max.poll.records": BATCH,
        "consumer.auto.offset.reset": "earliest",
    }


def connector(url: str) -> dict[str, object]:
    """Return the settings of the connector that stores into the database of `url`."""
    address = make_url(url)
    socket = f"{address.query['host']}/.s.PGSQL.5432"
    options = {
        "socketFactory": "org.newsclub.net.unix.AFUNIXSocketFactory$FactoryArg",
        "socketFactoryArg": socket,
        "reWriteBatchedInserts": "true",
        "sslmode": "disable",
    }
    return {
        "name": CONNECTOR,
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": 1,
        "topics": JDBC_TOPIC,
        "connection.url": f"jdbc:postgresql://localhost/{address.database}?" + "&".join(map("=".join, options.items())),
        "connection.username": "postgres",
        "connection.password": "none",
        "connection.pool.min_size": 1,
        "connection.pool.max_size": 2,
        "insert.mode": "upsert",
        "primary.key.mode": "record_value",
        "primary.key.fields": "event_id",
        "collection.name.format": "feedback_event",
        "schema.evolution": "none",
        "batch.size": BATCH,
    }


def properties(path: Path, settings: dict[str, object]) -> str:
    """Write Java properties; return the path."""
    lines = [f"{key}={value}" for key, value in settings.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@contextmanager
def connect(servers: World, url: str, folder: Path) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """Yield the process that runs the connector, and its HTTP interface."""
    folder.mkdir()
    (port,) = free_ports(1)
    files = (
        properties(folder / "worker.properties", worker(servers, folder, port)),
        properties(folder / "sink.properties", connector(url)),
    )
    base = f"http://127.0.0.1:{port}/connectors/{CONNECTOR}"
    program = Program(
        name="connect",
        argv=(*JAVA, "-cp", f"{LIBS}/*", "org.apache.kafka.connect.cli.ConnectStandalone", *files),
        log_path=folder / "connect.log",
        health_url=f"{base}/status",
        deadline_s=START_TIMEOUT_S,
    )
    with Supervisor(folder / "stack.json") as supervisor, httpx.Client(base_url=base, timeout=30.0) as client:
        supervisor.start(program)
        yield psutil.Process(supervisor.running[0].process.pid), client


class JdbcMeter:
    """CPU of the connector's process and of all its backends, from its making to `stop`."""

    def __init__(self, process: psutil.Process, sessions: sessionmaker[Session]) -> None:
        with sessions() as session:
            backends = [psutil.Process(pid) for pid in session.scalars(BACKENDS)]
        self.process, self.backends, self.began = process, backends, (0.0, 0.0, 0.0)
        self.began = self.read()

    def read(self) -> tuple[float, float, float]:
        """Return CPU of the process, of its backends, and the time."""
        return cpu(self.process), sum(map(cpu, self.backends)), time.monotonic()

    def stop(self, events: int) -> Cost:
        """Return what was spent on these events."""
        client, postgres, wall = (now - then for now, then in zip(self.read(), self.began, strict=True))
        return Cost(events, client, postgres, wall)


def cpu(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def measure(servers: World, messages: Messages, rounds: int, folder: Path) -> list[Cost]:
    """Store all feedback once to warm up and once in each round, under new ids; return the cost of the rounds.

    There are as many rounds as asked for, and more while they still become cheaper: the JVM compiles what is hot. The
    connector pauses while a round is produced, so that it reads full batches.
    """
    folder.mkdir(exist_ok=True)
    costs: list[Cost] = []
    with servers.database() as sessions:
        url = sessions.kw["bind"].url.render_as_string(hide_password=False)
        with connect(servers, url, folder / "connect") as (process, client):
            for number in range(MAX_ROUNDS + 1):
                client.put("/pause").raise_for_status()
                await_state(client, "PAUSED")
                feedback = [msgspec.structs.replace(event, event_id=uuid7()) for event in messages.feedback]
                produce(servers.broker, JDBC_TOPIC, feedback)
                meter = JdbcMeter(process, sessions)
                client.put("/resume").raise_for_status()
                until(lambda: num_stored(sessions), len(feedback) * (number + 1), lambda: check(client))
                costs.append(meter.stop(len(feedback)))
                say(f"jdbc round {number}: {costs[-1].total_us:.1f} us of CPU an event, {costs[-1].events} events")
                if number >= rounds and costs[-1].total_us > IS_WARM * costs[-2].total_us:
                    break
    return costs[1:]


def num_stored(sessions: sessionmaker[Session]) -> int:
    """Return the number of rows."""
    with sessions() as session:
        return int(session.scalar(text("SELECT count(*) FROM feedback_event")) or 0)


def check(client: httpx.Client) -> None:
    """Wait a moment, and fail where the connector has failed."""
    time.sleep(0.25)
    for task in client.get("/status").raise_for_status().json()["tasks"]:
        if task["state"] == "FAILED":
            raise HoneError(f"the connector failed: {task['trace'][:2000]}")


def await_state(client: httpx.Client, state: str) -> None:
    """Wait until every task of the connector is in this state."""

    def reached() -> int:
        tasks = client.get("/status").raise_for_status().json()["tasks"]
        return int(bool(tasks) and all(task["state"] == state for task in tasks))

    until(reached, 1, lambda: check(client), timeout_s=60.0)
