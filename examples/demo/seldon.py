"""`make demo BACKEND=seldon`: the same story with both arms behind real Seldon servers (seldon-core or MLServer).

The Kubernetes API is a stand-in on this machine (`examples/cluster`); what it starts for a version is Seldon's server.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from examples.cluster.spoken import text_hash
from examples.demo.watch import DemoFailed
from examples.demo.world import World
from hone.local.ports import free_ports
from hone.local.processes import Program
from hone.store.tables import ModelVersionRow, ResponseRow

BACKENDS = ("local", "seldon", "seldon_v1", "seldon_v2")
ENVIRONMENTS = {"seldon_v1": ".venv-seldon", "seldon_v2": ".venv-mlserver"}
SERVERS = {"local": "hone's runtime", "seldon_v1": "seldon-core 1.17.1", "seldon_v2": "MLServer 1.7"}
"""Who serves the arms, as people read it."""


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


def arms(world: World) -> list[dict[str, Any]]:
    """Return each version that answered people: how many answers are stored, and how many its own weights spoke.

    An answer counts as spoken by them if the arm gave this text with the digest under which the version is registered;
    each answer of an arm accounts for one stored answer. Without a cluster the list is empty.
    """
    url = world.env.get("HONE_SELDON__KUBERNETES_URL")
    if url is None:
        return []
    rows = httpx.get(f"{url}/spoken", timeout=30, trust_env=False).raise_for_status().json()
    said = Counter({(row["digest"], row["text_sha256"]): row["num"] for row in rows})
    return credit(world.watcher.read(stored_answers), said)


def stored_answers(session: Session) -> list[tuple[str, str, str]]:
    """Return version, registered digest and text of every stored answer that is whole."""
    query = select(ResponseRow.model_version, ModelVersionRow.digest, ResponseRow.completion).join(
        ModelVersionRow, ModelVersionRow.model_version == ResponseRow.model_version
    )
    query = query.where(ResponseRow.completed)
    return [(version, digest, text) for version, digest, text in session.execute(query)]


def credit(answers: Iterable[tuple[str, str, str]], said: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the stored answers of each version beside those of them that were said from its weights."""
    stored: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for version, digest, text in answers:
        stored.setdefault((version, digest), Counter())[digest, text_hash(text)] += 1
    return [
        {
            "version": version,
            "digest": digest,
            "answers": texts.total(),
            "spoken_by_its_weights": (texts & said).total(),
        }
        for (version, digest), texts in stored.items()
    ]
