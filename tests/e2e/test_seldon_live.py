"""Real Seldon servers under a rollout: seldon-core's own microservices (v1), models in MLServer (v2).

The Kubernetes API is a stand-in, or a real server where one is built. Gateway, broker protocol, ingest, Postgres,
controller, wrappers and runtimes are the real ones, and people's votes depend on nothing but the text that they were
given.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session, sessionmaker

from examples.cluster.api import Cluster
from examples.cluster.app import cluster_app
from examples.cluster.live import Microservices, MlServer, Running
from examples.demo.seldon import credit, stored_answers
from hone.local.processes import Supervisor
from hone.weights import weights_digest
from tests.support.crowd import ANSWERS, QUESTION, Crowd, platform, register
from tests.support.ingest_process import wait_for
from tests.support.kube_cluster import KubeCluster
from tests.support.kubernetes import CLUSTERS, NAME
from tests.support.speaking_model import make_speaking_model
from tests.support.web import serving

pytestmark = [pytest.mark.seldon, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Live(Crowd):
    """People on the platform, with Seldon's servers behind the gateway."""

    line: str = ""
    ingress: str = ""
    cluster: Cluster = None  # type: ignore[assignment]

    def running(self) -> dict[str, Running]:
        return {one.arm.version: one for one in dict(self.cluster.arms.running).values()}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("speaking")
    return {name: make_speaking_model(root / name, text, seed) for seed, (name, text) in enumerate(ANSWERS.items())}


@pytest.fixture(params=CLUSTERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["seldon_v1", "seldon_v2"])
def live(
    request: pytest.FixtureRequest,
    kind: str,
    new_cluster: Callable[..., Cluster],
    store_url: str,
    sessions: sessionmaker[Session],
    models: dict[str, Path],
    tmp_path: Path,
) -> Iterator[Live]:
    versions = register(sessions, models)
    line = request.param
    with ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor(tmp_path / "stack.json"))
        logs = tmp_path / "logs"
        if line == "seldon_v1":
            cluster = new_cluster(kind, arms=lambda clock: Microservices(supervisor, logs))
        else:
            cluster = new_cluster(kind, arms=lambda clock: MlServer(supervisor, logs, tmp_path / "models"))
        ingress = stack.enter_context(serving(cluster_app(cluster)))
        seldon: dict[str, Any] = {
            "prometheus_url": ingress,
            "arm_url": ingress + ("/services/{service}" if line == "seldon_v1" else ""),
            "kubernetes_url": ingress,
        }
        if isinstance(cluster, KubeCluster):
            seldon |= stack.enter_context(real_access(cluster, tmp_path))
        values = {"traffic_backend": line, "seldon": seldon}
        client = stack.enter_context(platform(tmp_path, store_url, sessions, values))
        yield Live(sessions, client, versions, line=line, ingress=ingress, cluster=cluster)


@contextmanager
def real_access(cluster: KubeCluster, directory: Path) -> Iterator[dict[str, Any]]:
    """The controller's way to a real API server, past all of ours, while Seldon's operators look for themselves."""
    (directory / "token").write_text(cluster.token)
    with cluster.operators():
        yield {
            "kubernetes_url": cluster.server.url,
            "token_file": directory / "token",
            "ca_file": cluster.server.ca_file,
        }


def test_a_good_challenger_is_promoted_and_a_bad_one_rolled_back_on_real_seldon_servers(
    live: Live, models: dict[str, Path]
) -> None:
    good = live.crowd(live.start("good", "base"))
    assert (good.phase, good.reason.split(":")[0]) == ("promoted", "better")
    assert live.stable() == live.versions["good"]
    bad = live.crowd(live.start("bad", "good"))
    assert bad.phase == "rolled_back"
    assert live.stable() == live.versions["good"]
    check_answers(live)
    wait_for(lambda: set(live.running()) == {live.versions["good"]}, 20)
    check_arm(live, "good", models["good"])


def check_answers(live: Live) -> None:
    """Every stored answer was spoken by the weights of the version that it is credited to: by text, and by digest."""
    live.check_answers()
    said = {version: ANSWERS[name] for name, version in live.versions.items()}
    with live.sessions() as session:
        found = credit(stored_answers(session), Counter({s[1:]: num for s, num in live.cluster.spoken.items()}))
    assert {arm["version"] for arm in found} == set(said)
    assert all(arm["spoken_by_its_weights"] == arm["answers"] > 0 for arm in found), found


def check_arm(live: Live, name: str, directory: Path) -> None:
    """The arm's own server says which weights it answers from, and counts who named it."""
    running = live.running()[live.versions[name]]
    if live.line == "seldon_v1":
        answer = httpx.post(
            f"{running.url}/api/v1.0/predictions", json={"jsonData": {"messages": QUESTION}}, timeout=30
        )
        digest = answer.json()["meta"]["tags"]["digest"]
    else:
        text = httpx.Response(200, json={"messages": QUESTION}).text
        tensor = {"name": "chat_request", "shape": [1], "datatype": "BYTES", "data": [text]}
        headers = {"seldon-model": f"{NAME}.experiment"}
        answer = httpx.post(f"{live.ingress}/v2/models/x/infer", json={"inputs": [tensor]}, headers=headers, timeout=30)
        digest = answer.json()["parameters"]["digest"]
    assert digest == weights_digest(directory)
    counted = counts(running.metrics_url, live.versions[name])
    assert counted["false"] == 1
    assert counted["true"] >= 20


def counts(url: str, version: str) -> dict[str, float]:
    """What an arm's server counted, by whether the caller was a gateway."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(url, timeout=10).text):
        for sample in family.samples:
            if sample.name == "hone_arm_requests_total" and sample.labels["version"] == version:
                found[sample.labels["keyed"]] = found.get(sample.labels["keyed"], 0) + sample.value
    return found
