"""Arms that are real: a `seldon-core-microservice` for each predictor (v1), or models in one MLServer (v2).

Each wrapper owns the runtime process of its arm; all of them run on this machine and end with the supervisor.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from examples.cluster.operator import Arm
from hone.local.ports import free_ports
from hone.local.processes import Program, Supervisor

ROOT = Path(__file__).parents[2]
LOAD_TIMEOUT_S = 120.0
PROBE_PAUSE_S = 0.2
SHARED_ENVIRONMENT = {"ARM_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


@dataclass
class Running:
    """An arm that was started."""

    arm: Arm
    url: str
    "Where its protocol is spoken."
    metrics_url: str
    ready: threading.Event


class Microservices:
    """Seldon v1: one process of seldon-core's own server for each arm."""

    def __init__(self, supervisor: Supervisor, logs: Path) -> None:
        self.supervisor, self.logs, self.client = (
            supervisor,
            logs,
            httpx.Client(timeout=LOAD_TIMEOUT_S, trust_env=False),
        )
        self.running: dict[str, Running] = {}

    def keep(self, arms: dict[str, Arm]) -> None:
        """Start what is new, stop what is gone."""
        for name in self.running.keys() - arms.keys():
            self.supervisor.stop(name)
            del self.running[name]
        for name in arms.keys() - self.running.keys():
            self.running[name] = self._start(arms[name])

    def _start(self, arm: Arm) -> Running:
        http_port, metrics_port = free_ports(2)
        url = f"http://127.0.0.1:{http_port}"
        parameters = [{"name": key, "type": "STRING", "value": value} for key, value in arm.parameters]
        environment = {
            "PREDICTIVE_UNIT_ID": "chat",
            "PREDICTOR_ID": arm.name,
            "PREDICTIVE_UNIT_HTTP_SERVICE_PORT": str(http_port),
            "PREDICTIVE_UNIT_METRICS_SERVICE_PORT": str(metrics_port),
            "PREDICTIVE_UNIT_METRICS_ENDPOINT": "/metrics",
            "PREDICTIVE_UNIT_PARAMETERS": json.dumps(parameters),
            "GRPC_WORKERS": "0",
            "GUNICORN_THREADS": "16",
            "GUNICORN_KEEPALIVE": "75",  # its 2 s are shorter than what callers keep idle connections for
        }
        program = Program(
            name=arm.name,
            argv=(str(ROOT / ".venv-seldon/bin/seldon-core-microservice"), "serving.seldon.v1.ChatModel"),
            env=SHARED_ENVIRONMENT | environment,
            cwd=ROOT,
            log_path=self.logs / f"{arm.name}.log",
        )
        self.supervisor.launch(program)
        found = Running(arm, url, f"http://127.0.0.1:{metrics_port}/metrics", threading.Event())
        follow(
            found,
            lambda: self.client.get(f"{url}/health/status").is_success,
            lambda: self.supervisor.exit_code(arm.name) is None,
        )
        return found

    def is_ready(self, name: str) -> bool:
        """Say whether the arm has answered, and its process lives."""
        found = self.running.get(name)
        return found is not None and found.ready.is_set() and self.supervisor.exit_code(name) is None


class MlServer:
    """Seldon v2: one MLServer that loads and unloads models, as a Server of Seldon v2 does."""

    def __init__(self, supervisor: Supervisor, logs: Path, repository: Path) -> None:
        """Start the server without a model."""
        self.supervisor, self.repository = supervisor, repository
        self.client = httpx.Client(timeout=LOAD_TIMEOUT_S, trust_env=False)
        repository.mkdir(parents=True, exist_ok=True)
        http_port, grpc_port, metrics_port = free_ports(3)
        self.url, self.metrics_url = f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{metrics_port}/metrics"
        self.running: dict[str, Running] = {}
        environment = {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(http_port),
            "MLSERVER_GRPC_PORT": str(grpc_port),
            "MLSERVER_METRICS_PORT": str(metrics_port),
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_DEBUG": "false",
        }
        supervisor.start(
            Program(
                name="mlserver",
                argv=(str(ROOT / ".venv-mlserver/bin/mlserver"), "start", str(repository)),
                env=SHARED_ENVIRONMENT | environment,
                cwd=ROOT,
                log_path=logs / "mlserver.log",
                health_url=f"{self.url}/v2/health/live",
            )
        )

    def keep(self, arms: dict[str, Arm]) -> None:
        """Load what is new, unload what is gone; both go on in the background."""
        for name in self.running.keys() - arms.keys():
            del self.running[name]
            threading.Thread(target=self._order, args=(name, "unload"), daemon=True).start()
        for name in arms.keys() - self.running.keys():
            found = self.running[name] = Running(arms[name], self.url, self.metrics_url, threading.Event())
            write_settings(self.repository / name, arms[name])
            follow(found, lambda name=name: self._order(name, "load"), lambda name=name: name in self.running)  # type: ignore[misc]

    def _order(self, name: str, act: str) -> bool:
        return self.client.post(f"{self.url}/v2/repository/models/{name}/{act}").is_success

    def is_ready(self, name: str) -> bool:
        """Say whether the model is loaded, and the server lives."""
        found = self.running.get(name)
        return found is not None and found.ready.is_set() and self.supervisor.exit_code("mlserver") is None


def write_settings(folder: Path, arm: Arm) -> None:
    """Write what MLServer reads of a model, as Seldon's agent does with the folder that it fetched."""
    parameters = dict(arm.parameters)
    settings = {
        "name": arm.name,
        "implementation": "serving.seldon.v2.ChatModel",
        "parameters": {"uri": parameters["directory"], "extra": {"version": parameters["version"]}},
    }
    folder.mkdir(exist_ok=True)
    (folder / "model-settings.json").write_text(json.dumps(settings))


def follow(found: Running, probe: Callable[[], bool], goes_on: Callable[[], bool]) -> None:
    """Set the arm's event once the probe says yes, from a thread of its own."""

    def wait() -> None:
        while goes_on():
            with suppress(httpx.TransportError):  # it is not up yet
                if probe():
                    return found.ready.set()
            time.sleep(PROBE_PAUSE_S)

    threading.Thread(target=wait, daemon=True).start()
