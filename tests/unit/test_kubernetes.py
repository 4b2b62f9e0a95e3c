"""The Kubernetes base: the same programs as in docker-compose.yml, without anything secret."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hone.local.stack import Place, Ports, hone_programs
from hone.settings import Settings
from serving.gateway.app import CLOSE_TIMEOUT_S
from serving.server import DEFAULT_LIMITS
from tests.support.compose import ROOT, services

BASE = ROOT / "deploy" / "k8s" / "base"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())
OBJECTS = [item for name in KUSTOMIZATION["resources"] for item in yaml.safe_load_all((BASE / name).read_text())]
WORKLOADS = [item for item in OBJECTS if item["kind"] in {"Deployment", "StatefulSet", "Job"}]
PROGRAMS = {item["metadata"]["name"]: item for item in WORKLOADS if item["kind"] != "Job"}


def containers(workload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pod = workload["spec"]["template"]["spec"]
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


KEDA = ROOT / "deploy" / "k8s" / "keda"
SELDON = ROOT / "deploy" / "k8s" / "seldon"
SCALED = yaml.safe_load((KEDA / "ingest.yaml").read_text())


def test_keda_scales_the_deployment_of_ingest_on_the_group_that_ingest_reads_with() -> None:
    target = PROGRAMS[SCALED["spec"]["scaleTargetRef"]["name"]]
    (container,) = containers(target)
    (trigger,) = SCALED["spec"]["triggers"]
    assert container["command"][:4] == ["python", "-m", "ingest", "events"]
    assert trigger["metadata"]["consumerGroup"] == Settings().ingest.consumer_group
    names = [literal.split("=")[0] for literal in KUSTOMIZATION["configMapGenerator"][0]["literals"]]
    assert trigger["metadata"]["bootstrapServersFromEnv"] in names
    assert {"configMapRef": {"name": "hone"}} in container["envFrom"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts only"


def rendered(overlay: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not shutil.which("kubectl"):
        pytest.skip("not on the path: kubectl (https://kubernetes.io/docs/tasks/tools)")
    shown = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True).stdout
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(shown)}


def test_the_overlay_for_seldon_gives_the_controller_the_account_of_the_role_and_tells_all_programs() -> None:
    objects = rendered(SELDON)
    (subject,) = objects["RoleBinding", "hone-seldon"]["subjects"]
    pods = {
        name: item["spec"]["template"]["spec"]
        for (_, name), item in objects.items()
        if name in PROGRAMS
        if "template" in item["spec"]
    }
    assert {name: pod["serviceAccountName"] for name, pod in pods.items() if "serviceAccountName" in pod} == {
        "controller": subject["name"]
    }
    (settings,) = (item for (kind, _), item in objects.items() if kind == "ConfigMap")
    assert settings["data"]["HONE_TRAFFIC_BACKEND"] == "seldon_v2"
    assert settings["data"]["HONE_RUNTIME_URL"], "the base's own settings stay"
    for pod in pods.values():
        assert {"configMapRef": {"name": settings["metadata"]["name"]}} in pod["containers"][0]["envFrom"]


def test_the_overlay_with_keda_renders_and_leaves_the_number_of_replicas_to_it() -> None:
    objects = rendered(KEDA)
    assert "replicas" not in objects["Deployment", "ingest"]["spec"]
    assert objects["Deployment", "pairs"]["spec"]["replicas"] == 1
    assert objects["ScaledObject", "ingest"]["metadata"]["namespace"] == "hone"


def test_every_file_is_in_the_kustomization() -> None:
    assert {path.name for path in BASE.glob("*.yaml")} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


def test_each_program_runs_composes_command_from_the_same_image() -> None:
    found = {container["name"]: container for workload in WORKLOADS for container in containers(workload)}
    for name, container in found.items():
        service = services()[name]
        assert container["command"] == service["command"]
        assert service["image"].split(":")[0] == container["image"]
    assert set(found) == {"gateway", "runtime", "ingest", "pairs", "controller", "monitor", "migrate", "topics"}
    assert {image["name"] for image in KUSTOMIZATION["images"]} == {container["image"] for container in found.values()}


@pytest.mark.parametrize("name", ["gateway", "runtime"])
def test_whoever_stops_a_server_waits_longer_than_its_own_grace(name: str) -> None:
    place = Place(root=ROOT, data=ROOT, libs=ROOT, ports=Ports.fixed())
    (local,) = (program for program in hone_programs(place, {}, {}) if program.name == name)
    pod = PROGRAMS[name]["spec"]["template"]["spec"]
    waits = (
        local.stop_timeout_s,
        pod["terminationGracePeriodSeconds"],
        int(services()[name]["stop_grace_period"][:-1]),
    )
    # Cancelled answers, the purge of the queue, the last lines to the disk and the ends of threads take some more.
    assert min(waits) >= DEFAULT_LIMITS.grace_s + 2 * CLOSE_TIMEOUT_S


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_probed_and_reached_where_it_listens(name: str) -> None:
    (container,) = containers(PROGRAMS[name])
    (port,) = container["ports"]
    assert str(port["containerPort"]) == container["command"][-1]
    for probe in ("livenessProbe", "startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
    (service,) = (item for item in OBJECTS if item["kind"] == "Service" and item["metadata"]["name"] == name)
    assert service["spec"]["selector"] == PROGRAMS[name]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["ports"][0]["port"] == port["containerPort"]


def test_nothing_runs_as_root_or_writes_outside_its_volumes() -> None:
    for workload in WORKLOADS:
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        mounts = {volume["name"] for volume in pod.get("volumes", [])} | {
            claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])
        }
        for container in containers(workload):
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"] and not allowed["allowPrivilegeEscalation"]
            assert allowed["capabilities"]["drop"] == ["ALL"]
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= mounts


def test_variables_are_settings_and_keys_come_from_secrets_that_are_not_here() -> None:
    known = {f"HONE_{name.upper()}" for name in Settings.model_fields}
    literals = [literal.split("=")[0] for entry in KUSTOMIZATION["configMapGenerator"] for literal in entry["literals"]]
    assert set(literals) <= known
    assert not [item for item in OBJECTS if item["kind"] == "Secret"]
    keyed = {
        name
        for name, workload in PROGRAMS.items()
        for container in containers(workload)
        if {"secretRef": {"name": "hone-keys"}} in container["envFrom"]
    }
    assert keyed == {"gateway", "controller"}
    single = {
        (name, variable["name"], *variable["valueFrom"]["secretKeyRef"].values())
        for name, workload in PROGRAMS.items()
        for container in containers(workload)
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert single == {("ingest", "HONE_IDENTITY_KEY", "hone-keys", "HONE_IDENTITY_KEY")}


def test_every_gateway_hears_of_plans_before_it_is_ready() -> None:
    literals = dict(
        literal.split("=", 1) for entry in KUSTOMIZATION["configMapGenerator"] for literal in entry["literals"]
    )
    gateway = PROGRAMS["gateway"]["spec"]
    routers = next(
        item for item in OBJECTS if item["kind"] == "Service" and item["metadata"]["name"] == gateway["serviceName"]
    )
    assert routers["spec"]["publishNotReadyAddresses"] and routers["spec"]["clusterIP"] == "None"
    expected = [f"http://gateway-{n}.{gateway['serviceName']}:8700" for n in range(gateway["replicas"])]
    assert json.loads(literals["HONE_ROUTER_URLS"]) == expected
