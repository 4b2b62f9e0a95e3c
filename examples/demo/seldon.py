"""`make demo BACKEND=seldon`: the same story with both arms behind real Seldon servers (seldon-core or MLServer).

The Kubernetes API is a stand-in on this machine (`examples/cluster`); what it starts for a version is Seldon's server.
"""

import sys
from pathlib import Path

from examples.demo.watch import DemoFailed
from examples.demo.world import World
from hone.local.ports import free_ports
from hone.local.processes import Program

BACKENDS = ("local", "seldon", "seldon_v1", "seldon_v2")
ENVIRONMENTS = {"seldon_v1": ".venv-seldon", "seldon_v2": ".venv-mlserver"}


def backend_of(word: str) -> str:
    """Return the traffic backend that the word means; `seldon` is v1."""
    return "seldon_v1" if word == "seldon" else word


def require_environment(backend: str) -> None:
    """Raise DemoFailed where the servers of the backend are not installed."""
    folder = ENVIRONMENTS.get(backend)
    if folder is not None and not (Path(folder) / ".hone-setup").exists():
        raise DemoFailed(f"{folder} is missing: run `make seldon` once")


def start_cluster(world: World, backend: str) -> None:
    """Start the cluster and let gateway and controller, which start later, use it."""
    (port,) = free_ports(1)
    url, line = f"http://127.0.0.1:{port}", backend.removeprefix("seldon_")
    words = ("examples.cluster", "--line", line, "--port", str(port), "--data", str(world.place.data))
    world.supervisor.start(
        Program(
            name=f"seldon-{line}",
            argv=(sys.executable, "-m", *words),
            env=world.env,
            cwd=world.place.root,
            log_path=world.place.logs / "cluster.log",
            address=url,
            health_url=f"{url}/healthz",
        )
    )
    world.env |= {
        "HONE_TRAFFIC_BACKEND": backend,
        "HONE_SELDON__KUBERNETES_URL": url,
        "HONE_SELDON__PROMETHEUS_URL": url,
        "HONE_SELDON__ARM_URL": f"{url}/services/{{service}}" if line == "v1" else url,
    }
