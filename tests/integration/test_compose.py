"""docker-compose.yml: our services run here as processes, with its exact commands, environment and health checks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import NullPool, create_engine, inspect

from hone.local.airflow import airflow_environment
from hone.local.kafka import prepare_kafka
from hone.local.mock_kafka import MockCluster
from hone.local.ports import free_ports
from hone.local.processes import Supervisor
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC
from hone.settings import Settings
from tests.support.compose import ROOT, Here, document, interpolated, our_services, services, variables
from tests.support.ingest_process import wait_for

PORTS = (8700, 8710, 8721, 8722, 8723, 8724)
PROGRAMS = ("gateway", "runtime", "ingest", "pairs", "controller", "monitor")
TOPICS = {RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1}
SECRET = re.compile("KEY|KEYS|SECRET|PASSWORD|TOKEN")
VALUES = {
    "POSTGRES_PASSWORD": "p",
    "HONE_TOKEN_KEYS": f"1:{'ab' * 32}",
    "HONE_IDENTITY_KEY": "cd" * 32,
    "HONE_ADMIN_KEY": "hone-admin",
    "AIRFLOW_JWT_SECRET": "j" * 32,
    "AIRFLOW_FERNET_KEY": "f" * 44,
    "GRAFANA_ADMIN_PASSWORD": "g",
}
ENVIRONMENT_OF_THE_IMAGE = {
    "HONE_VAR_DIR": "/var/lib/hone",
    "HONE_CONFIG": "/app/configs/hone.toml",
    "PYTHONPATH": "/app/",
}


def test_the_file_follows_the_compose_specification() -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    command = [str(tool), "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_no_secret_has_a_default_or_stands_in_the_file() -> None:
    found = {name: operator for name, operator, _ in variables(document())}
    secrets = {name for name in found if SECRET.search(name)}
    assert secrets == set(VALUES) and all(found[name] == "?" for name in secrets)
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name} is written down"


def test_a_secret_that_is_missing_stops_everything() -> None:
    for missing in VALUES:
        with pytest.raises(KeyError, match=missing):
            interpolated(services(), {name: value for name, value in VALUES.items() if name != missing})


def test_the_script_draws_every_secret_once(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "compose" / "secrets.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "deploy" / "compose" / "secrets.sh").read_text())
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    path = tmp_path / ".env"
    drawn = dict(line.split("=", 1) for line in path.read_text().splitlines())
    interpolated(services(), drawn)
    assert set(drawn) == {*VALUES, "COMPOSE_PROFILES", "HONE_MODE"}
    assert len({drawn[name] for name in VALUES}) == len(VALUES) and min(len(drawn[name]) for name in VALUES) >= 40
    assert path.stat().st_mode & 0o077 == 0
    assert subprocess.run(["sh", str(script)], capture_output=True).returncode == 1
    assert dict(line.split("=", 1) for line in path.read_text().splitlines()) == drawn


def test_every_service_has_a_health_check_a_profile_and_a_pinned_image() -> None:
    jobs = {name for name, service in services().items() if service.get("restart") == "no"}
    assert jobs == {"migrate", "topics", "tools", "airflow-init"}
    for name, service in services().items():
        assert service["profiles"] and set(service["profiles"]) <= {"core", "airflow", "monitoring", "tools"}
        assert ("healthcheck" in service) != (name in jobs), name
        assert re.search(r":v?\d+(\.\d+)+$", service["image"]), service["image"]


def test_only_the_gateway_may_be_published_beyond_loopback() -> None:
    for name, service in services().items():
        for port in interpolated(service, VALUES).get("ports", []):
            assert port.startswith("127.0.0.1:"), name
    published = {name for name, service in services().items() if "ports" in service}
    assert "runtime" not in published and "postgres" not in published and "kafka" not in published


def test_every_variable_is_a_setting_and_only_who_signs_or_decides_has_the_keys() -> None:
    known = {f"HONE_{name.upper()}" for name in Settings.model_fields} | {"HONE_CONFIG"}
    for name, service in our_services().items():
        given = {variable for variable in service.get("environment", {}) if variable.startswith("HONE_")}
        assert given <= known, name
        held = {variable for variable in given if SECRET.search(variable)}
        if name in {"pairs", "monitor", "migrate", "topics", "runtime"}:
            assert not held, name
        if name == "ingest":
            assert held == {"HONE_IDENTITY_KEY"}, "it gives people of foreign topics the gateway's pseudonyms"


def test_airflow_has_the_same_variables_as_the_stack_that_is_tested_live() -> None:
    given = set(services()["airflow-api"]["environment"])
    tested = set(airflow_environment(Path("/app"), Path("/home"), "url", 1, "kafka:9092"))
    in_the_image = {"AIRFLOW_HOME", "PYTHONPATH"}
    secrets = {"AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY"}
    assert {name for name in given if name.startswith("AIRFLOW")} == tested - in_the_image | secrets
    dockerfile = (ROOT / "deploy" / "images" / "Dockerfile").read_text()
    assert all(f"{name}=" in dockerfile for name in in_the_image | set(ENVIRONMENT_OF_THE_IMAGE))
    json.loads(services()["airflow-api"]["environment"]["AIRFLOW_CONN_KAFKA_DEFAULT"])


def test_prometheus_scrapes_each_program_where_it_listens() -> None:
    targets = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "targets.json").read_text())
    found = {group["labels"]["job"]: group["targets"] for group in targets}
    assert set(found) == set(PROGRAMS)
    for name, (target,) in found.items():
        assert target == f"{name}:{services()[name]['command'][-1]}"
        host = services()[name]["command"][-3]
        assert host == "0.0.0.0", f"{name} must listen beyond its own container"


@pytest.fixture
def here(tmp_path: Path, database_url: str) -> Iterator[Here]:
    cluster = MockCluster(TOPICS)
    yield Here(tmp_path, dict(zip(PORTS, free_ports(len(PORTS)), strict=True)), cluster.bootstrap_servers, database_url)
    cluster.close()


def environment(here: Here, service: Mapping[str, Any]) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    declared = {name: str(value) for name, value in service.get("environment", {}).items()}
    return plain | {"OMP_NUM_THREADS": "1"} | here.environment(ENVIRONMENT_OF_THE_IMAGE | declared)


@contextmanager
def container(here: Here, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """The service's command under its environment, as a process."""
    service = interpolated(services()[name], VALUES)
    process = subprocess.Popen(here.command(service["command"]), env=environment(here, service), cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def is_healthy(here: Here, name: str) -> bool:
    """Whether the service's own health check passes."""
    words = services()[name]["healthcheck"]["test"]
    assert words[0] == "CMD"
    return subprocess.run(here.command(words[1:]), capture_output=True, timeout=20).returncode == 0


@pytest.mark.slow
def test_our_services_start_with_composes_commands_become_healthy_and_end_when_asked(here: Here) -> None:
    with container(here, "migrate") as job:
        assert job.wait(timeout=60) == 0
    assert "response" in inspect(create_engine(here.database_url, poolclass=NullPool)).get_table_names()
    with ExitStack() as stack:
        running = {name: stack.enter_context(container(here, name)) for name in PROGRAMS}
        for name, process in running.items():
            wait_for(lambda name=name, process=process: is_healthy(here, name) or process.poll() is not None, 90)
            assert process.poll() is None, f"{name} ended with {process.returncode}"
        for process in running.values():
            process.terminate()
        ended_at = time.monotonic() + 30
        codes = {process.wait(max(1, ended_at - time.monotonic())) for process in running.values()}
        assert codes <= {0, -signal.SIGTERM}, "uvicorn ends by the signal that it was sent, once requests have ended"
        assert not is_healthy(here, "gateway"), "a check that passes for a program that is gone would say nothing"


@pytest.mark.kafka
def test_the_topics_are_made_once_on_a_real_broker(tmp_path: Path, kafka_libs: Path, database_url: str) -> None:
    server = prepare_kafka(tmp_path / "kafka", kafka_libs)
    with Supervisor(tmp_path / "stack.json") as supervisor:
        supervisor.start(server.program(tmp_path / "kafka.log"))
        here = Here(tmp_path, {}, server.broker().bootstrap_servers, database_url)
        service = interpolated(services()["topics"], VALUES)
        said = [
            subprocess.run(
                here.command(service["command"]),
                env=environment(here, service),
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            for _ in range(2)
        ]
    assert [result.returncode for result in said] == [0, 0], said[0].stderr
    assert all(topic in said[0].stdout for topic in TOPICS) and "all are there" in said[1].stdout
