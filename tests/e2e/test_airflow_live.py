"""The four Airflow components, live, with our DAGs: healthy, all parsed, and a run that finds nothing to claim."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from hone.local.airflow import airflow_environment, airflow_programs, prepare_airflow
from hone.local.mock_kafka import mock_broker, mock_program
from hone.local.ports import free_ports
from hone.local.processes import Supervisor
from hone.local.stack import TOPICS, Place, Ports, program_environment

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(420)]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Airflow:
    url: str
    token: str

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"}, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.post(f"{self.url}{path}", headers=headers, json=body, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()


@pytest.fixture
def airflow(tmp_path: Path, store_url: str, database_url: str) -> Iterator[Airflow]:
    (port,) = free_ports(1)
    place = Place(root=ROOT, data=tmp_path, libs=tmp_path / "libs", ports=Ports.free())
    with Supervisor(tmp_path / "stack.json") as supervisor:
        supervisor.start(mock_program(tmp_path / "kafka", TOPICS, die_with=os.getpid()))
        broker = mock_broker(tmp_path / "kafka")
        env = program_environment(
            place, store_url, broker, mode="active", config=ROOT / "configs" / "demo.toml"
        ) | airflow_environment(ROOT, tmp_path / "airflow", database_url, port, broker.bootstrap_servers)
        prepare_airflow(env, tmp_path / "migrate.log")
        supervisor.start_together(airflow_programs(env, tmp_path / "logs"))
        url = env["AIRFLOW__API__BASE_URL"]
        yield Airflow(url, httpx.get(f"{url}/auth/token", timeout=30).json()["access_token"])


def eventually(what: str, probe: Callable[[], Any], timeout_s: float = 150) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(1)
    return found


def test_the_live_scheduler_runs_our_dag_and_skips_what_nobody_asked_for(airflow: Airflow) -> None:
    def healthy() -> bool:
        parts = airflow.get("/api/v2/monitor/health")
        return all(parts[name]["status"] == "healthy" for name in ("scheduler", "triggerer", "dag_processor"))

    eventually("the health of all components", healthy)
    found = eventually("parsing the DAGs", lambda: airflow.get("/api/v2/dags")["dags"])
    eventually("parsing both DAGs", lambda: len(airflow.get("/api/v2/dags")["dags"]) == 2)
    assert airflow.get("/api/v2/importErrors")["import_errors"] == []
    assert not any(dag["is_paused"] for dag in found)
    run = airflow.post("/api/v2/dags/retrain/dagRuns", {"logical_date": None})
    path = f"/api/v2/dags/retrain/dagRuns/{run['dag_run_id']}"
    state = eventually("the end of the run", lambda: ended(airflow.get(path)["state"]))
    assert state == "success"
    tasks = {task["task_id"]: task["state"] for task in airflow.get(f"{path}/taskInstances")["task_instances"]}
    assert tasks == {
        "claim": "success",
        "freeze": "skipped",
        "train": "skipped",
        "judge": "skipped",
        "roll_out": "skipped",
    }


def ended(state: str) -> str | None:
    return state if state in ("success", "failed") else None
