"""The whole platform on one machine: which programs, with which commands and environment, in which order."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hone.local.broker import Broker
from hone.local.broker_choice import start_broker
from hone.local.checkout import checkout as checkout
from hone.local.ports import free_ports
from hone.local.postgres import PostgresServer, start_postgres
from hone.local.processes import Program, Supervisor
from hone.local.secrets_file import local_secrets
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC

TOPICS = {RESPONSES_TOPIC: 4, FEEDBACK_TOPIC: 4, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1}

METERED = ("ingest", "pairs", "controller")
"""Programs without a main port of their own: they serve `/metrics` and `/healthz` on an extra one."""

STOP_TIMEOUT_S = 30.0
"""For gateway and runtime, which let answers in flight end and then bring their records to Kafka or to the disk."""


@dataclass(frozen=True)
class Ports:
    """Loopback ports of the programs."""

    gateway: int
    runtime: int
    ingest: int
    pairs: int
    controller: int
    airflow: int

    @classmethod
    def free(cls) -> "Ports":
        """Return ports that were free a moment ago."""
        return cls(*free_ports(6))

    @classmethod
    def fixed(cls) -> "Ports":
        """Return the ports of `make up`, which people remember."""
        return cls(gateway=8700, runtime=8710, ingest=8721, pairs=8722, controller=8723, airflow=8780)


@dataclass(frozen=True)
class Place:
    """Where a stack lives: the checkout, its data, its jars and its ports."""

    root: Path
    data: Path
    libs: Path
    ports: Ports

    @property
    def logs(self) -> Path:
        """Return the folder with one log for each program."""
        return self.data / "logs"


def start_database(supervisor: Supervisor, place: Place) -> PostgresServer:
    """Start the embedded Postgres and make the databases `hone` and `airflow`; migrations are the caller's."""
    server = start_postgres(place.data / "postgres")
    # What `hone status` shows is the address that HONE_DATABASE_URL takes.
    supervisor.adopt(replace(server.running(), address=server.database_url("hone")))
    server.create_database("hone")
    server.create_database("airflow")
    return server


def start_topics(supervisor: Supervisor, place: Place, bootstrap_servers: str | None, *, detached: bool) -> Broker:
    """Start the broker, or find yours, with hone's topics on it."""
    return start_broker(
        supervisor,
        place.data / "kafka",
        TOPICS,
        libs=place.libs,
        bootstrap_servers=bootstrap_servers,
        detached=detached,
    )


def program_environment(place: Place, database_url: str, broker: Broker, *, mode: str, config: Path) -> dict[str, str]:
    """Return the variables that every program of the stack gets; the secrets are made at the first call."""
    return {
        **local_secrets(place.data / "secrets.env"),
        "HONE_DATABASE_URL": database_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "HONE_KAFKA_INCARNATION": broker.incarnation,
        "HONE_GATEWAY_URL": f"http://127.0.0.1:{place.ports.gateway}",
        "HONE_RUNTIME_URL": f"http://127.0.0.1:{place.ports.runtime}",
        "HONE_MODE": mode,
        "HONE_CONFIG": str(config),
        "HONE_VAR_DIR": str(place.data),
        "HONE_TRAINING_PYTHON": os.environ.get("HONE_TRAINING_PYTHON", sys.executable),
        **process_environment(place),
    }


def process_environment(place: Place) -> dict[str, str]:
    """Return those of the variables that are no settings of hone's."""
    return {
        "PYTHONPATH": str(place.root),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def hone_programs(place: Place, env: Mapping[str, str], models: Mapping[str, Path]) -> list[Program]:
    """Return gateway, runtime, ingest, pair worker and controller; `models` are served from the start."""
    ports = place.ports
    served = tuple(word for version, directory in models.items() for word in ("--model", f"{version}={directory}"))
    commands = {
        "runtime": (("serving", "runtime", "--port", str(ports.runtime), *served), ports.runtime),
        "gateway": (("serving", "gateway", "--port", str(ports.gateway)), ports.gateway),
        "ingest": (("ingest", "events", "--metrics-port", str(ports.ingest)), ports.ingest),
        "pairs": (("ingest", "pairs", "--metrics-port", str(ports.pairs)), ports.pairs),
        "controller": (("serving", "controller", "--metrics-port", str(ports.controller)), ports.controller),
    }
    return [
        Program(
            name=name,
            argv=(sys.executable, "-m", *words),
            env=env,
            cwd=place.root,
            log_path=place.logs / f"{name}.log",
            address=f"http://127.0.0.1:{port}",
            health_url=f"http://127.0.0.1:{port}/healthz",
            deadline_s=120,
            stop_timeout_s=STOP_TIMEOUT_S if name in ("gateway", "runtime") else 10.0,
        )
        for name, (words, port) in commands.items()
    ]


def poller_program(place: Place, env: Mapping[str, str]) -> Program:
    """Return the poller that starts the real DAG where no Airflow is live."""
    return Program(
        name="retrain-poller",
        argv=(sys.executable, "-m", "hone.local.retrain"),
        env=env,
        cwd=place.root,
        log_path=place.logs / "retrain.log",
    )
