"""What hone brings to a cluster, before a real API server: its manifests, its account's rights, its client."""

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import yaml
from click.testing import CliRunner

from deploy.seldon.render import cli
from examples.cluster.api import Cluster
from examples.cluster.rules import EXPERIMENTS, V1
from hone.errors import ConfigError, Fenced, Retryable
from hone.local.ports import free_ports
from hone.local.processes import Program, Supervisor
from hone.records import TrafficPlan
from hone.settings import Settings
from serving.traffic import seldon_v1, seldon_v2
from serving.traffic.choice import open_backend
from serving.traffic.fenced import fence_of
from serving.traffic.kube_api import KubeApi
from serving.traffic.seldon_v1 import DEPLOYMENTS
from tests.support.kube_cluster import KubeCluster
from tests.support.kube_server import NAMESPACE, KubeServer, collection_of, succeeded
from tests.support.kubernetes import NAME, seldon_backend

pytestmark = [pytest.mark.kubernetes, pytest.mark.shared]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LINES = ("seldon_v1", "seldon_v2")
ALONE = TrafficPlan(fence=4, stable="old", expires_at=datetime(2026, 3, 2, 9, tzinfo=UTC))
PLAN = msgspec.structs.replace(ALONE, fence=5, canary="new", canary_weight=0.25, rollout_id=UUID(int=7), stage=0)
BACK = msgspec.structs.replace(ALONE, fence=6)
APPLY = {"Content-Type": "application/apply-patch+yaml"}
EXPERIMENT = seldon_v2.EXPERIMENTS.path(NAMESPACE, NAME)
KUBECTL = "not on the path: kubectl (https://kubernetes.io/docs/tasks/tools)"
TRIAL = {"dryRun": "All", "fieldValidation": "Strict"}


@pytest.fixture
def admin(kube_server: KubeServer) -> Iterator[httpx.Client]:
    with kube_server.client() as client:
        yield client


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster]) -> KubeCluster:
    made = new_cluster("real")
    assert isinstance(made, KubeCluster)
    return made


# Manifests ------------------------------------------------------------------------------------------------------------


def rendered(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` sends."""
    if not shutil.which("kubectl"):
        pytest.skip(KUBECTL)
    command = ["kubectl", "kustomize", str(DEPLOY / "k8s" / folder)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [*yaml.safe_load_all(shown)]


def try_to_apply(admin: httpx.Client, manifest: dict[str, Any], space: str | None = None) -> dict[str, Any]:
    """Server-side apply without storing anything, unknown fields refused."""
    meta = manifest["metadata"] | ({} if space is None else {"namespace": space})
    path = f"{collection_of(manifest | {'metadata': meta})}/{meta['name']}"
    options = TRIAL | {"fieldManager": "tests", "force": "true"}
    return succeeded(admin.patch(path, json=manifest | {"metadata": meta}, params=options, headers=APPLY))


@pytest.mark.parametrize("folder", ["base", "seldon", "keda"])
def test_the_server_takes_every_object_and_knows_every_field(admin: httpx.Client, folder: str) -> None:
    objects = rendered(folder)
    taken = [try_to_apply(admin, item)["kind"] for item in objects if item["kind"] != "ScaledObject"]
    assert {"Namespace", "ConfigMap", "StatefulSet", "Deployment", "Job", "Service", "PersistentVolumeClaim"} <= set(
        taken
    )


def test_what_was_applied_is_what_is_stored(kube_server: KubeServer, tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip(KUBECTL)
    access, base = f"--kubeconfig={kube_server.kubeconfig(tmp_path)}", str(DEPLOY / "k8s" / "base")
    subprocess.run(["kubectl", access, "apply", "--validate=strict", "-k", base], capture_output=True, check=True)
    found = subprocess.run(["kubectl", access, "diff", "-k", base], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, ""), "what the server fills in would be a change at each apply"


def pods_of(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that the workloads' controllers would create."""
    templates = [
        (item["metadata"]["name"], item["spec"]["template"]) for item in objects if "template" in item.get("spec", {})
    ]
    return [pod(name, template["spec"]) for name, template in templates]


def pod(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def test_the_namespaces_own_policy_admits_the_pods_of_every_program(admin: httpx.Client) -> None:
    pods = [one for one in pods_of(rendered("base"))]
    for one in pods:
        one["spec"] = with_volumes(one["spec"])
        succeeded(admin.post(collection_of(one), json=one, params=TRIAL))
    assert {one["metadata"]["name"] for one in pods} >= {
        "gateway",
        "runtime",
        "ingest",
        "pairs",
        "controller",
        "migrate",
    }


def with_volumes(spec: dict[str, Any]) -> dict[str, Any]:
    """The pod with the volumes that a StatefulSet's claims would give it."""
    volumes = spec.get("volumes", [])
    mounted = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])}
    missing = mounted - {one["name"] for one in volumes}
    return spec | {"volumes": [*volumes, *({"name": name, "emptyDir": {}} for name in sorted(missing))]}


def test_seldons_pods_need_the_policy_that_the_overlay_sets(admin: httpx.Client) -> None:
    spaces = {
        folder: next(item for item in rendered(folder) if item["kind"] == "Namespace") for folder in ("base", "seldon")
    }
    refused = {}
    for folder, space in spaces.items():
        meta = space["metadata"] | {"name": f"with-{folder}"}
        admin.post("/api/v1/namespaces", json=space | {"metadata": meta})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        admin.post(f"/api/v1/namespaces/with-{folder}/serviceaccounts", json=account)
        executor = {"name": "seldon-container-engine", "image": "executor", "securityContext": {"runAsUser": 8888}}
        arm = pod("arm", {"containers": [executor]})
        arm["metadata"]["namespace"] = f"with-{folder}"
        refused[folder] = admin.post(collection_of(arm), json=arm, params=TRIAL)
    assert refused["base"].status_code == 403
    assert 'violates PodSecurity "restricted' in refused["base"].json()["message"]
    assert refused["seldon"].status_code == 201


@pytest.mark.parametrize(
    ("line", "kinds"), [("v1", ["SeldonDeployment"]), ("v2", ["Model", "Model", "Experiment"])], ids=["v1", "v2"]
)
def test_printed_manifests_of_a_split_are_taken(admin: httpx.Client, line: str, kinds: list[str]) -> None:
    uris = [word for version in ("m-1", "m-2") for word in ("--uri", f"{version}=/models/{version}")]
    shown = CliRunner().invoke(cli, [line, "--stable", "m-1", "--canary", "m-2", "--weight", "0.05", *uris])
    assert [try_to_apply(admin, item)["kind"] for item in yaml.safe_load(shown.output)["items"]] == kinds


@pytest.mark.parametrize("version", ["m-1", "V_1.2", "1", "-", "schön", "m" * 90, "2026-11-24T10:00:00Z"])
def test_every_versions_names_are_taken(admin: httpx.Client, version: str) -> None:
    predictor = seldon_v1.render_predictor(NAME, version, f"/models/{version}", "image", traffic=100)
    plan = msgspec.structs.replace(ALONE, stable=version)
    meta = {"name": seldon_v1.service_name(NAME, version), "namespace": NAMESPACE}
    manifests = (
        seldon_v1.render_deployment(plan, [predictor], name=NAME, namespace=NAMESPACE),
        seldon_v2.render_model(version, f"/models/{version}", namespace=NAMESPACE),
        seldon_v2.render_experiment(plan, name=NAME, namespace=NAMESPACE),
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 8000}]}},
    )
    taken = [try_to_apply(admin, manifest)["metadata"]["name"] for manifest in manifests]
    assert taken == [manifest["metadata"]["name"] for manifest in manifests]


# Rights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("DELETE", f"{DEPLOYMENTS.path(NAMESPACE)}/{NAME}", id="what serves cannot be deleted"),
        pytest.param("PUT", f"{EXPERIMENT}/status", id="what its operator reports is not ours to write"),
        pytest.param("PUT", EXPERIMENT, id="it only writes over what it has read"),
        pytest.param("GET", DEPLOYMENTS.path("default"), id="another namespace"),
        pytest.param("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets", id="secrets"),
        pytest.param("GET", f"/api/v1/namespaces/{NAMESPACE}/pods", id="pods"),
    ],
)
def test_the_account_may_not(kube_server: KubeServer, method: str, path: str) -> None:
    with kube_server.client(kube_server.token_of("hone-controller")) as controller:
        assert controller.request(method, path).status_code == 403


@pytest.mark.parametrize("token", ["of an account without the role", "of nobody"])
def test_without_the_role_the_error_says_where_it_is(kube_server: KubeServer, cluster: KubeCluster, token: str) -> None:
    cluster.token = kube_server.token_of("default") if "account" in token else token
    with seldon_backend("seldon_v2", cluster, []) as backend, pytest.raises(ConfigError, match=r"40[13].*rbac\.yaml"):
        backend.prepare("old", "/models/old")


# The client -----------------------------------------------------------------------------------------------------------


def settings_of(server: KubeServer, line: str, directory: Path) -> Settings:
    """Settings of a controller in the cluster, with the files that the kubelet mounts."""
    token = directory / "token"
    token.write_text(server.token_of("hone-controller"))
    seldon = {"kubernetes_url": server.url, "token_file": token, "ca_file": server.ca_file}
    return Settings(traffic_backend=line, router_urls=[], seldon=seldon)


def follow_a_rollout(settings: Settings, cluster: KubeCluster) -> None:
    """Deploy two versions, split, and promote, with a backend made as the controller makes its own."""
    with open_backend(settings) as backend:
        assert backend.observe().resource is not None
        for version in ("old", "new"):
            with pytest.raises(Retryable, match="not ready yet"):
                backend.prepare(version, f"/models/{version}")
            cluster.operator.reconcile()
            backend.prepare(version, f"/models/{version}")
        for plan in (ALONE, PLAN, msgspec.structs.replace(BACK, stable="new")):
            backend.split_past(plan)
            cluster.operator.reconcile()
            assert backend.observe().resource_carries(plan, backend.capabilities().min_step)
        backend.teardown("old")
        cluster.operator.reconcile()
        assert backend.observe().models == {"new"}


@pytest.mark.parametrize("line", LINES)
def test_the_backend_of_the_settings_works_over_tls_with_the_accounts_token(
    kube_server: KubeServer, cluster: KubeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr("serving.traffic.seldon.READY_PAUSE_S", 0.0)
    follow_a_rollout(settings_of(kube_server, line, tmp_path), cluster)
    # Nothing but the account's own calls went over this connection: the cluster's own client was not used.
    assert cluster.calls == []


def test_the_backend_works_through_kubectl_proxy_without_credentials(
    kube_server: KubeServer, cluster: KubeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("kubectl"):
        pytest.skip(KUBECTL)
    monkeypatch.setattr("serving.traffic.seldon.READY_PAUSE_S", 0.0)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ("kubectl", "proxy", f"--port={port}", f"--kubeconfig={kube_server.kubeconfig(tmp_path)}")
    with Supervisor(tmp_path / "proxy.json") as supervisor:
        log = tmp_path / "proxy.log"
        supervisor.start(Program(name="kubectl", argv=command, log_path=log, health_url=f"{url}/readyz"))
        seldon = {"kubernetes_url": url}
        follow_a_rollout(Settings(traffic_backend="seldon_v2", router_urls=[], seldon=seldon), cluster)
    assert cluster.calls == []  # all of it went through the proxy


def test_a_server_whose_certificate_is_not_the_clusters_is_not_spoken_to(
    kube_server: KubeServer, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("a secret")
    with KubeApi(kube_server.url, NAMESPACE, token_file=token) as api, pytest.raises(Retryable, match="CERTIFICATE"):
        api.get(DEPLOYMENTS, NAME)


@pytest.mark.parametrize("line", LINES)
def test_a_server_that_crashes_and_starts_again_is_waited_for_and_keeps_what_was_written(
    kube_server: KubeServer, cluster: KubeCluster, tmp_path: Path, line: str
) -> None:
    with seldon_backend(line, cluster, []) as backend:
        backend.prepare("old", "/models/old")
        backend.prepare("new", "/models/new")
    with open_backend(settings_of(kube_server, line, tmp_path)) as backend:
        backend.split_past(PLAN)
        killed = kube_server.pid()
        crash = threading.Thread(target=kube_server.crash)
        crash.start()
        while crash.is_alive():
            with suppress(Retryable):  # a short absence is waited for within the call, a longer one is told
                backend.split_past(PLAN if kube_server.pid() == killed else BACK)
            time.sleep(0.005)
        crash.join()
        backend.split_past(BACK)
        cluster.operator.reconcile()
        assert backend.observe().resource_carries(BACK, backend.capabilities().min_step)
    assert kube_server.pid() != killed


@pytest.mark.parametrize("line", LINES)
def test_of_controllers_that_race_the_fence_never_falls(
    kube_server: KubeServer, cluster: KubeCluster, tmp_path: Path, line: str
) -> None:
    with seldon_backend(line, cluster, []) as backend:
        for version in ("old", "new"):
            backend.prepare(version, f"/models/{version}")
        backend.apply(ALONE)
    since, fences, settings = cluster.store.last, list(range(5, 45)), settings_of(kube_server, line, tmp_path)
    random.Random(3).shuffle(fences)

    def control(mine: list[int]) -> None:
        with open_backend(settings) as backend:
            for fence in mine:
                write_at_last(backend, msgspec.structs.replace(PLAN, fence=fence, canary_weight=fence / 100))

    threads = [threading.Thread(target=control, args=(fences[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [fence_of(made) for _, _, made in cluster.watch(V1 if line == "seldon_v1" else EXPERIMENTS, since)]
    assert seen == sorted(seen)
    assert seen[-1] == max(fences)


def write_at_last(backend: Any, plan: TrafficPlan) -> None:
    """Write the plan however often others come between, unless one of them is newer."""
    while True:
        with suppress(Retryable):
            with suppress(Fenced):
                backend.write(plan, 0)
            return
