"""Starts the platform for the demo: a fresh database and broker in `var/demo`, the base model, every program."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
from sqlalchemy.orm import Session, sessionmaker

from examples.demo.show import Update
from examples.demo.watch import DemoFailed, Watcher
from examples.support.base_model import ensure_base
from examples.support.corpus import Check, forgetting_checks, golden_checks
from examples.support.drive import Target
from hone.local.airflow import airflow_environment, prepare_airflow
from hone.local.broker import Broker
from hone.local.processes import Supervisor
from hone.local.stack import (
    Place,
    Ports,
    checkout,
    hone_programs,
    poller_program,
    program_environment,
    start_database,
    start_topics,
)
from hone.store.engine import make_engine, make_sessions, migrate
from hone.store.models import import_model, set_alias

HOME = Path("var/demo")
STATE_FILE = HOME / "stack.json"


@dataclass
class World:
    """The running platform, as the demo's operator holds it."""

    place: Place
    supervisor: Supervisor
    broker: Broker
    database_url: str
    env: dict[str, str]

    @cached_property
    def sessions(self) -> sessionmaker[Session]:
        """Return sessions of the operator."""
        return make_sessions(make_engine(self.database_url, program="hone-demo"))

    @property
    def watcher(self) -> Watcher:
        """Return a reader of the database that notices dead programs."""
        return Watcher(self.sessions, self.supervisor.check, str(self.place.logs))

    @property
    def gateway(self) -> Target:
        """Return where simulated people chat."""
        return Target(self.env["HONE_GATEWAY_URL"], api_key=self.env["HONE_ADMIN_KEY"])


def make_place() -> Place:
    """Return a fresh place; data of an earlier demo is removed, its cached model stays."""
    data = (HOME / "run").absolute()
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    return Place(root=checkout(), data=data, libs=Path("var/kafka/libs").absolute(), ports=Ports.free())


def start_foundations(supervisor: Supervisor, place: Place, update: Update) -> World:
    """Start Postgres and the broker, and bring both schemas to their newest version."""
    update("Postgres", 0, 4)
    server = start_database(supervisor, place)
    url = server.database_url("hone")
    migrate(url)
    update("broker", 1, 4)
    broker = start_topics(supervisor, place, os.environ.get("HONE_KAFKA_BOOTSTRAP_SERVERS"), detached=False)
    env = program_environment(place, url, broker, mode="active", config=place.root / "configs" / "demo.toml")
    update("Airflow's database", 2, 4)
    airflow_url = server.database_url("airflow")
    env |= airflow_environment(
        place.root, place.data / "airflow", airflow_url, place.ports.airflow, broker.bootstrap_servers
    )
    prepare_airflow(env, place.logs / "airflow-migrate.log")
    return World(place, supervisor, broker, url, env)


def make_base(update: Update) -> Path:
    """Return the base model, pretrained from nothing once and cached."""
    return ensure_base(HOME / "cache", on_progress=lambda step, total: update("training from nothing", step, total))


def register_base(world: World, base: Path) -> str:
    """Register the base as the first stable model, and hand the operator's checks to the gates."""
    with world.sessions.begin() as session:
        version = import_model(session, base)
        set_alias(session, "stable", version, expected_generation=None)
    files = {"GOLDEN_TESTS": golden_checks(), "GENERAL_PROMPTS": forgetting_checks()}
    for name, checks in files.items():
        path = world.place.data / f"{name.lower()}.jsonl"
        write_checks(path, checks)
        world.env[f"HONE_TRAINING__{name}"] = str(path)
    return version


def write_checks(path: Path, checks: Iterable[Check]) -> None:
    """Write an operator's tests as the gates read them: one {id, prompt, must_contain} a line."""
    rows = ({"id": c.id, "prompt": list(c.prompt), "must_contain": list(c.must_contain)} for c in checks)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def start_programs(world: World, version: str, base: Path, update: Update) -> None:
    """Start every program and the poller of the DAG; wait until traffic may come."""
    programs = hone_programs(world.place, world.env, {version: base})
    update(", ".join(program.name for program in programs), 0, 1)
    world.supervisor.start_together([*programs, poller_program(world.place, world.env)])
    url = f"{world.env['HONE_GATEWAY_URL']}/readyz"

    def ready(session: Session) -> bool | None:
        return True if httpx.get(url, timeout=5, trust_env=False).is_success else None

    world.watcher.wait("the gateway's readiness", ready, 60, "gateway")


def load_arm(world: World, version: str, directory: str) -> None:
    """Make sure that the runtime serves a version, for the final comparison only."""
    url = f"{world.env['HONE_RUNTIME_URL']}/v1/models/load"
    answer = httpx.post(url, json={"model_version": version, "directory": directory}, timeout=60, trust_env=False)
    if not answer.is_success:
        raise DemoFailed(
            f"the runtime did not load {version} ({answer.status_code}): read {world.place.logs}/runtime.log"
        )
