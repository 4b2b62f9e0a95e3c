"""A real single-node Kafka broker (KRaft) from Maven jars: Java 17 and `mvn`, no container engine, loopback only.

What it acknowledges survives a kill -9 and a restart on the same data directory (not a power cut: one replica, and the
page cache is flushed by the kernel, as in every default Kafka).
"""

import base64
import logging
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from hone.errors import HoneError, ProgramFailed
from hone.local import maven
from hone.local.broker import Broker, cluster_id, serves_groups
from hone.local.ports import free_ports, is_free
from hone.local.processes import Program

logger = logging.getLogger(__name__)

DEPLOY = Path(__file__).parents[2] / "deploy" / "kafka"
POM = DEPLOY / "pom.xml"
MIN_JAVA = 17
READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class KafkaServer:
    """A formatted data directory with its configuration; nothing about it changes between restarts."""

    data_dir: Path
    libs: Path
    port: int
    cluster_id: str

    @property
    def bootstrap_servers(self) -> str:
        """Return host:port."""
        return f"127.0.0.1:{self.port}"

    def broker(self) -> Broker:
        """Return what clients need to know."""
        return Broker(self.bootstrap_servers, "kafka", kafka_version(self.libs), True, self.cluster_id)

    def program(self, log_path: Path) -> Program:
        """Return how to start it, in its own process group."""
        return Program(
            name="kafka",
            argv=(*java(self.libs, "-Xmx384m", "-Xms64m"), "kafka.Kafka", str(self.data_dir / "server.properties")),
            log_path=log_path,
            address=self.bootstrap_servers,
            ready=self.is_ready,
            deadline_s=READY_TIMEOUT_S,
            remedy=f"read its log; to start empty delete {self.data_dir}",
            foundation=True,
        )

    def is_ready(self) -> bool:
        """Say whether it answers as the cluster that was formatted, and consumer groups work."""
        return cluster_id(self.bootstrap_servers) == self.cluster_id and serves_groups(self.bootstrap_servers)


def java_version() -> int | None:
    """Return the major version of the `java` on the path, or None where there is none."""
    if not shutil.which("java"):
        return None
    output = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60).stderr
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(match.group(1)) if match else None


def obstacle(libs: Path) -> str | None:
    """Say what is missing for a real broker (a reason for people), or None where it can be had."""
    version = java_version()
    if version is None or version < MIN_JAVA:
        return f"Kafka needs Java {MIN_JAVA} or newer, found {version or 'none'}"
    if jars_available(libs):
        return None
    if not POM.exists():
        return f"{POM} is missing: the jars are fetched from a checkout only"
    return None if shutil.which("mvn") else f"no Kafka jars in {libs} and no mvn to fetch them"


def jars_available(libs: Path) -> bool:
    """Say whether `libs` holds the broker's complete jars, see `hone.local.maven.jars_available`."""
    return maven.jars_available(POM, libs)


def fetch_jars(target: Path) -> None:
    """Fetch the broker's jars with Maven (about 46 MB) and print what was fetched; does nothing where they are there.

    Raises:
        HoneError: see `hone.local.maven.fetch_jars`.
    """
    if not maven.fetch_jars(POM, target, "Kafka"):
        return
    jars = list(target.glob("*.jar"))
    size_mb = sum(jar.stat().st_size for jar in jars) / 1e6
    print(f"Kafka {kafka_version(target)}: {len(jars)} jars, {size_mb:.0f} MB, in {target}")


def kafka_version(libs: Path) -> str:
    """Return the version of the broker in `libs`, for example 4.3.1."""
    jar = next(libs.glob("kafka-clients-*.jar"), None)
    if not jar:
        raise HoneError(f"no Kafka jars in {libs}; `make setup` fetches them")
    return jar.stem.removeprefix("kafka-clients-")


def prepare_kafka(data_dir: Path, libs: Path) -> KafkaServer:
    """Write the configuration and format the storage once; an existing data directory keeps its content.

    Its ports stay the same as long as they are free.

    Raises:
        HoneError: the directory cannot be written, or the storage tool refused it.
    """
    data_dir = data_dir.absolute()
    config = data_dir / "server.properties"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        port, controller_port = _ports(config)
        config.write_text(server_properties(data_dir / "log", port, controller_port))
    except OSError as error:
        raise HoneError(
            f"cannot write Kafka's data directory {data_dir}: {error}; free space or choose another"
        ) from error
    if not (data_dir / "log" / "meta.properties").exists():
        _format(config, libs)
    return KafkaServer(data_dir, libs, port, _formatted_cluster_id(data_dir))


def server_properties(log_dir: Path, port: int, controller_port: int) -> str:
    """Return the configuration of one node that is broker and controller, small in memory and on disk."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": log_dir,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        # After a kill -9 the controller lets the broker in again only when its old session has expired.
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.segment.bytes": 4 << 20,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 2,
        "transaction.state.log.segment.bytes": 4 << 20,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "log.segment.bytes": 64 << 20,
        "log.index.size.max.bytes": 256 << 10,
        "log.cleaner.dedupe.buffer.size": 4 << 20,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "num.recovery.threads.per.data.dir": 1,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def java(libs: Path, *options: str) -> tuple[str, ...]:
    """Return the start of a command line that runs a main class of the broker's jars."""
    # C1 and the serial collector start faster and use less memory and CPU than the defaults, which pay off in hours.
    tuning = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
    logging_config = f"-Dlog4j2.configurationFile={DEPLOY / 'log4j2.properties'}"
    return ("java", *options, *tuning, logging_config, "-cp", f"{libs.absolute()}/*")


def _ports(config: Path) -> tuple[int, int]:
    """Return the configured ports where both are free, else two new ones."""
    written = re.search(r"^listeners=.*:(\d+),.*:(\d+)$", config.read_text(), re.M) if config.exists() else None
    port, controller_port = (int(p) for p in written.groups()) if written else free_ports(2)
    if is_free(port) and is_free(controller_port):
        return port, controller_port
    port, controller_port = free_ports(2)
    return port, controller_port


def _format(config: Path, libs: Path) -> None:
    command = (*java(libs), "kafka.tools.StorageTool", "format", "-t", _new_cluster_id(), "-c", str(config))
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    if result.returncode:
        last = "\n".join(result.stdout.splitlines()[-8:])
        raise ProgramFailed(f"Kafka's storage tool could not format {config.parent}:\n{last}")


def _new_cluster_id() -> str:
    """Return a random id in Kafka's notation (22 characters of URL-safe base64, not starting with a dash)."""
    while True:
        text = base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _formatted_cluster_id(data_dir: Path) -> str:
    meta = (data_dir / "log" / "meta.properties").read_text()
    match = re.search(r"^cluster\.id=(.+)$", meta, re.M)
    if not match:
        raise HoneError(f"{data_dir}/log/meta.properties names no cluster.id; delete {data_dir} to start empty")
    return match.group(1).replace("\\", "")
