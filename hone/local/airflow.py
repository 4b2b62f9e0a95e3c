"""Apache Airflow beside the local stack: its environment, its database, and its four components.

Airflow is only ever started as a program: nothing here imports it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hone.errors import ProgramFailed
from hone.local.processes import Program, tail

COMPONENTS = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
"""With their options. Log servers would listen on every address; here the API server reads the files itself."""
MIGRATE_TIMEOUT_S = 600


def airflow_environment(root: Path, home: Path, database_url: str, port: int, bootstrap_servers: str) -> dict[str, str]:
    """Return the variables under which every Airflow command of this stack runs; `root` holds `dags/`."""
    kafka = {
        "bootstrap.servers": bootstrap_servers,
        "group.id": "hone-airflow",
        "auto.offset.reset": "latest",
        "enable.auto.commit": False,
    }
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url,
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_KAFKA_DEFAULT": json.dumps({"conn_type": "kafka", "extra": kafka}),
        "PYTHONPATH": str(root),
    }


def prepare_airflow(env: Mapping[str, str], log_path: Path) -> None:
    """Bring Airflow's schema to its newest version and make the pool `gpu` of one slot; safe to repeat.

    Raises:
        ProgramFailed: a command failed; the message names the log.
    """
    run_airflow(env, log_path, "db", "migrate")
    run_airflow(env, log_path, "pools", "set", "gpu", "1", "one training at a time")


def run_airflow(env: Mapping[str, str], log_path: Path, *arguments: str) -> None:
    """Run one Airflow command to its end, its output appended to the log."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        result = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=MIGRATE_TIMEOUT_S,
        )
    if result.returncode:
        command = " ".join(arguments)
        raise ProgramFailed(f"airflow {command} ended with code {result.returncode}; log: {log_path}\n{tail(log_path)}")


def airflow_programs(env: Mapping[str, str], logs: Path) -> list[Program]:
    """Return the four components; the API server answers for all of them at `/api/v2/monitor/health`."""
    url = env["AIRFLOW__API__BASE_URL"]
    return [
        Program(
            name=f"airflow-{component}",
            argv=(sys.executable, "-m", "airflow", component, *options),
            env=env,
            log_path=logs / f"airflow-{component}.log",
            address=url if component == "api-server" else "",
            health_url=f"{url}/api/v2/monitor/health" if component == "api-server" else "",
            deadline_s=240,
        )
        for component, options in COMPONENTS.items()
    ]
