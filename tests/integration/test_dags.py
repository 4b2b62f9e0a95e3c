"""The DAGs as Airflow sees them: one process parses them all, without a database."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.airflow
ROOT = Path(__file__).parents[2]

PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
print(json.dumps({
    "errors": bag.import_errors,
    "torch": sorted(name for name in ("torch", "transformers", "trl") if name in sys.modules),
    "dags": {dag_id: {
        "doc": dag.doc_md or "", "catchup": dag.catchup, "max_active_runs": dag.max_active_runs,
        "tasks": {t.task_id: {"retries": t.retries, "pool": t.pool, "queue": t.queue} for t in dag.tasks},
    } for dag_id, dag in bag.dags.items()},
}))
"""


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(ROOT / "dags")], env=env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_dag_parses(bag: dict[str, Any]) -> None:
    assert bag["errors"] == {}
    assert "retrain" in bag["dags"]


def test_parsing_leaves_torch_alone(bag: dict[str, Any]) -> None:
    assert bag["torch"] == []


def test_every_dag_says_what_it_reads_writes_and_what_its_failure_means(bag: dict[str, Any]) -> None:
    for dag in bag["dags"].values():
        assert all(word in dag["doc"] for word in ("**Reads**", "**Writes**", "**Impact of failure**"))


def test_no_dag_catches_up_or_overlaps_itself(bag: dict[str, Any]) -> None:
    assert all(not dag["catchup"] and dag["max_active_runs"] == 1 for dag in bag["dags"].values())


def test_every_task_is_tried_again_and_training_waits_for_the_gpu(bag: dict[str, Any]) -> None:
    assert list(bag["dags"]["roll_out"]["tasks"]) == ["start", "watch"]
    tasks = bag["dags"]["retrain"]["tasks"]
    assert list(tasks) == ["claim", "freeze", "train", "judge", "roll_out"]
    assert all(task["retries"] >= 2 for task in tasks.values())
    assert (tasks["train"]["pool"], tasks["train"]["queue"]) == ("gpu", "gpu")


def test_no_dag_file_shadows_a_folder() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not {path.stem for path in (ROOT / "dags").glob("*.py")} & folders
