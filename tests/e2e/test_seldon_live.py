"""Real Seldon servers under a rollout: seldon-core's own microservices (v1), models in MLServer (v2).

The Kubernetes API is a stand-in, or a real server where one is built. Gateway, broker protocol, ingest, Postgres,
controller, wrappers and runtimes are the real ones, and people's votes depend on nothing but the text that they were
given.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session, sessionmaker

from examples.cluster.api import Cluster
from examples.cluster.app import cluster_app
from examples.cluster.live import Microservices, MlServer, Running
from examples.demo.seldon import credit, stored_answers
from hone.health import Pulse
from hone.local.processes import Supervisor
from hone.settings import Settings
from hone.store.models import get_alias, register_model, set_alias
from hone.store.rollouts import create_rollout, get_rollout
from hone.store.tables import ResponseRow, RolloutRow
from hone.weights import weights_digest
from serving.controller import Controller
from serving.gateway.app import open_gateway
from serving.looking import keep_looking
from serving.traffic.choice import open_backend
from tests.support.gateway import IDENTITY_KEY, KEY, TOKEN_KEYS, broker
from tests.support.ingest_process import Program, wait_for
from tests.support.kube_cluster import KubeCluster
from tests.support.kubernetes import CLUSTERS, NAME
from tests.support.speaking_model import make_speaking_model
from tests.support.web import serving

pytestmark = [pytest.mark.seldon, pytest.mark.slow, pytest.mark.timeout(600)]
ANSWERS = {"base": "Open the Orders page.", "good": "Happy to help! Press Rename.", "bad": "Export."}
LIKES = {ANSWERS["base"]: 0.5, ANSWERS["good"]: 0.95, ANSWERS["bad"]: 0.05}
QUESTION = [{"role": "user", "content": "How do I rename my order?"}]
POLICY: dict[str, Any] = {
    "alpha": 0.05,
    "min_canary_users": 20,
    "promote_weight": 0.25,
    "horizon_pairs": 400,
    "horizon_s": 60,
    "outcome_window_s": 1,
    "settle_s": 1,
    "block_s": 4,
    "stages": [{"weight": 0.25, "min_users": 5}, {"weight": 0.5, "min_users": 10}],
    "guardrails": {"max_latency_ratio": 20.0, "latency_slack_ms": 5000},
    "max_propensity_gap": 0.2,
}


@dataclass
class Live:
    """The running platform, and the people on it."""

    line: str
    sessions: sessionmaker[Session]
    cluster: Cluster
    ingress: str
    client: httpx.Client
    versions: dict[str, str]
    "By what the model says."
    texts: dict[str, str] = field(default_factory=dict)
    "Text of each answer, by its id."
    users: int = 0

    def visit(self, number: int) -> None:
        """A new person asks, half of them for a stream, reads the text, and votes."""
        body = {"model": "hone", "messages": QUESTION, "temperature": 0, "stream": number % 2 == 1}
        headers = {"Authorization": f"Bearer {KEY}", "X-User-Id": f"user {number}"}
        answer = self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        answer_id, text = read(answer)
        self.texts[answer_id] = text
        vote = 1 if random.Random(number).random() < LIKES[text] else -1
        told = self.client.post("/v1/feedback", json={"kind": "thumbs", "response_id": answer_id, "value": vote})
        assert told.status_code == 202, told.text

    def crowd(self, rollout_id: UUID) -> RolloutRow:
        """Let ever new people come until the rollout has ended."""
        deadline = time.monotonic() + 60
        with ThreadPoolExecutor(6) as pool:
            while (row := self.row(rollout_id)).ended_at is None:
                assert time.monotonic() < deadline, f"not ended: {row.phase} {row.reason} {row.evidence}"
                list(pool.map(self.visit, range(self.users, self.users + 12)))
                self.users += 12
        return row

    def row(self, rollout_id: UUID) -> RolloutRow:
        with self.sessions() as session:
            return get_rollout(session, rollout_id)

    def start(self, canary: str, stable: str) -> UUID:
        with self.sessions.begin() as session:
            return create_rollout(
                session,
                canary_version=self.versions[canary],
                stable_version=self.versions[stable],
                policy=POLICY,
                started_by="test",
                now=datetime.now(UTC),
            )

    def stable(self) -> str:
        with self.sessions() as session:
            alias = get_alias(session, "stable")
            assert alias is not None
            return alias.model_version

    def running(self) -> dict[str, Running]:
        return {one.arm.version: one for one in dict(self.cluster.arms.running).values()}  # type: ignore[attr-defined]


def read(answer: httpx.Response) -> tuple[str, str]:
    """Id and text of an answer, whole or streamed."""
    if "event-stream" not in answer.headers["content-type"]:
        return answer.json()["id"], answer.json()["choices"][0]["message"]["content"]
    assert answer.text.endswith("data: [DONE]\n\n")
    events = [
        httpx.Response(200, text=line[6:]).json() for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    assert len({event["id"] for event in events}) == 1
    return events[0]["id"], "".join(event["choices"][0]["delta"].get("content", "") for event in events)


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
    with sessions.begin() as session:
        versions = {
            name: register_model(session, digest=weights_digest(directory), directory=directory, status="passed")
            for name, directory in models.items()
        }
        set_alias(session, "stable", versions["base"], expected_generation=None)
    with ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor(tmp_path / "stack.json"))
        logs = tmp_path / "logs"
        if request.param == "seldon_v1":
            cluster = new_cluster(kind, arms=lambda clock: Microservices(supervisor, logs))
        else:
            cluster = new_cluster(kind, arms=lambda clock: MlServer(supervisor, logs, tmp_path / "models"))
        ingress = stack.enter_context(serving(cluster_app(cluster)))
        bootstrap = stack.enter_context(broker())
        values: dict[str, Any] = {
            "mode": "active",
            "traffic_backend": request.param,
            "database_url": store_url,
            "kafka_bootstrap_servers": bootstrap,
            "var_dir": tmp_path,
            "token_keys": TOKEN_KEYS,
            "identity_key": IDENTITY_KEY,
            "admin_key": KEY,
            "rollout": {"interval_s": 0.3, "plan_ttl_s": 30},
            "seldon": {
                "prometheus_url": ingress,
                "arm_url": ingress + ("/services/{service}" if request.param == "seldon_v1" else ""),
                "kubernetes_url": ingress,
            }
            | (stack.enter_context(real_access(cluster, tmp_path)) if isinstance(cluster, KubeCluster) else {}),
        }
        gateway = stack.enter_context(serving(open_gateway(Settings(**values), "127.0.0.1")))
        ingest = Program(
            "events",
            {
                "HONE_DATABASE_URL": store_url,
                "HONE_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
                "HONE_KAFKA_INCARNATION": "live",
                "HONE_IDENTITY_KEY": IDENTITY_KEY,
            },
        )
        stack.callback(ingest.end)
        settings = Settings(**(values | {"gateway_url": gateway}))
        stop = threading.Event()
        backend = stack.enter_context(open_backend(settings))
        controller = Controller(sessions, backend, settings)
        thread = threading.Thread(target=keep_looking, args=(controller, stop, Pulse(max_age_s=60)))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        client = stack.enter_context(httpx.Client(base_url=gateway, timeout=30, trust_env=False))
        wait_for(lambda: client.get("/readyz").status_code == 200, 60)
        yield Live(request.param, sessions, cluster, ingress, client, versions)


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
    said = {version: ANSWERS[name] for name, version in live.versions.items()}
    wait_for(lambda: len(stored(live)) >= len(live.texts), 20)
    rows = stored(live)
    assert {row.completion for row in rows} == set(ANSWERS.values()), "all three were served"
    assert all(row.completion == said[row.model_version] for row in rows)
    assert not any(row.fallback for row in rows)
    with live.sessions() as session:
        found = credit(stored_answers(session), Counter({s[1:]: num for s, num in live.cluster.spoken.items()}))
    assert {arm["version"] for arm in found} == set(said)
    assert all(arm["spoken_by_its_weights"] == arm["answers"] > 0 for arm in found), found


def stored(live: Live) -> list[ResponseRow]:
    with live.sessions() as session:
        return list(session.query(ResponseRow))


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
