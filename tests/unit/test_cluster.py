"""The stand-in cluster is as strict as the API server that it stands in for."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from examples.cluster.api import Cluster
from examples.cluster.faults import Fault
from tests.support.kubernetes import CLUSTERS

EXPERIMENTS = "/apis/mlops.seldon.io/v1alpha1/namespaces/hone/experiments"
MODELS = "/apis/mlops.seldon.io/v1alpha1/namespaces/hone/models"
DEPLOYMENTS = "/apis/machinelearning.seldon.io/v1/namespaces/hone/seldondeployments"
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
STRICT = {"fieldValidation": "Strict"}
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}


def experiment(name: str = "e", **spec: Any) -> dict[str, Any]:
    arms = {"candidates": [{"name": "a", "weight": 1}]} | spec
    return {"apiVersion": "mlops.seldon.io/v1alpha1", "kind": "Experiment", "metadata": {"name": name}, "spec": arms}


def model(name: str) -> dict[str, Any]:
    spec = {"storageUri": f"/models/{name}", "requirements": ["hone"]}
    meta = {"name": name, "labels": {"app": "chat"}}
    return {"apiVersion": "mlops.seldon.io/v1alpha1", "kind": "Model", "metadata": meta, "spec": spec}


def deployment(*predictors: dict[str, Any]) -> dict[str, Any]:
    spec = {"name": "d", "predictors": [{"graph": {"name": "chat", "type": "MODEL"}} | one for one in predictors]}
    meta = {"name": "d"}
    return {"apiVersion": "machinelearning.seldon.io/v1", "kind": "SeldonDeployment", "metadata": meta, "spec": spec}


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest, new_cluster: Callable[..., Cluster]) -> Cluster:
    return new_cluster(request.param, account=None, clock=lambda: 0.0)


@pytest.fixture
def api(cluster: Cluster) -> httpx.Client:
    return httpx.Client(base_url="http://cluster", transport=cluster.transport())


def test_a_new_object_gets_its_identity_and_cannot_be_made_twice(api: httpx.Client) -> None:
    made = api.post(EXPERIMENTS, json=experiment())
    assert made.status_code == 201
    assert made.json()["metadata"].keys() >= {"uid", "resourceVersion", "generation", "creationTimestamp"}
    again = api.post(EXPERIMENTS, json=experiment())
    assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize(
    ("path", "manifest", "code"),
    [
        pytest.param(EXPERIMENTS, experiment("No_Name"), 422, id="a name that is none"),
        pytest.param(EXPERIMENTS, model("m"), 422, id="another kind"),
        pytest.param(EXPERIMENTS.replace("v1alpha1", "v2"), experiment(), 404, id="another version"),
        pytest.param("/apis/mlops.seldon.io/v1alpha1/namespaces/hone/pods", experiment(), 404, id="an unknown kind"),
    ],
)
def test_what_does_not_fit_its_path_is_refused(
    api: httpx.Client, path: str, manifest: dict[str, Any], code: int
) -> None:
    assert api.post(path, json=manifest).status_code == code


@pytest.mark.shared
@pytest.mark.parametrize(
    ("path", "manifest", "code", "words"),
    [
        pytest.param(EXPERIMENTS, experiment(candidates=[{"name": "a"}]), 422, "weight", id="a required field"),
        pytest.param(EXPERIMENTS, experiment(candidates=[{"name": "a", "weight": "5"}]), 422, "integer", id="a type"),
        pytest.param(EXPERIMENTS, experiment(trafic=5), 400, "trafic", id="an unknown field"),
        pytest.param(DEPLOYMENTS, deployment({"name": "a", "trafic": 5}), 400, "trafic", id="deep in v1"),
    ],
)
def test_seldons_own_schemas_are_enforced(
    api: httpx.Client, path: str, manifest: dict[str, Any], code: int, words: str
) -> None:
    refused = api.post(path, json=manifest, params=STRICT)
    assert refused.status_code == code
    assert words in refused.json()["message"]


@pytest.mark.shared
@pytest.mark.parametrize(
    "weight", [pytest.param({"weihgt": 5}, id="unknown"), pytest.param({"weight": "5"}, id="type")]
)
def test_a_patch_to_something_invalid_changes_nothing(api: httpx.Client, weight: dict[str, Any]) -> None:
    api.post(EXPERIMENTS, json=experiment())
    steps = [{"op": "replace", "path": "/spec/candidates/0", "value": {"name": "a", "weight": 9} | weight}]
    refused = api.patch(f"{EXPERIMENTS}/e", json=steps, headers=JSON_PATCH, params=STRICT)
    assert refused.status_code == 422
    assert next(iter(weight)) in refused.json()["message"]
    assert api.get(f"{EXPERIMENTS}/e").json()["spec"]["candidates"] == [{"name": "a", "weight": 1}]


@pytest.mark.parametrize(
    ("predictors", "words"),
    [
        ([{"name": "a", "traffic": 95}, {"name": "b", "traffic": 50}], "sum to 100"),
        ([{"name": "a", "shadow": True}], "only predictor"),
        ([{"name": "a", "traffic": 50}, {"name": "a", "traffic": 50}], "Duplicate"),
        ([{"name": "a"}, {"name": "b", "shadow": True}, {"name": "c", "shadow": True}], "Multiple shadows"),
        ([{"name": "a"}, {"name": "b", "shadow": True, "traffic": 101}], "between 0 and 100"),
    ],
)
def test_the_webhook_of_v1_refuses_what_its_schema_allows(
    api: httpx.Client, predictors: list[dict[str, Any]], words: str
) -> None:
    refused = api.post(DEPLOYMENTS, json=deployment(*predictors))
    assert refused.status_code == 422
    assert words in refused.json()["message"]


def test_only_a_change_of_the_spec_is_a_new_generation_and_a_change_of_nothing_is_none(api: httpx.Client) -> None:
    made = api.post(EXPERIMENTS, json=experiment()).json()["metadata"]
    path = f"{EXPERIMENTS}/e"
    labelled = api.patch(path, json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE_PATCH).json()["metadata"]
    assert (labelled["generation"], labelled["resourceVersion"] > made["resourceVersion"]) == (1, True)
    same = api.patch(path, json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE_PATCH).json()["metadata"]
    assert same["resourceVersion"] == labelled["resourceVersion"]
    moved = api.patch(path, json={"spec": {"resourceType": "model"}}, headers=MERGE_PATCH).json()["metadata"]
    assert moved["generation"] == 2


def test_a_status_cannot_be_written_by_those_who_do_not_own_it(api: httpx.Client) -> None:
    api.post(EXPERIMENTS, json=experiment())
    api.patch(f"{EXPERIMENTS}/e", json={"status": {"conditions": []}}, headers=MERGE_PATCH)
    assert api.get(f"{EXPERIMENTS}/e").json()["status"]["conditions"]


def test_a_patch_whose_test_fails_changes_nothing(api: httpx.Client) -> None:
    api.post(EXPERIMENTS, json=experiment())
    steps = [
        {"op": "replace", "path": "/spec/candidates/0/weight", "value": 9},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
    ]
    assert api.patch(f"{EXPERIMENTS}/e", json=steps, headers=JSON_PATCH).status_code == 422
    assert api.get(f"{EXPERIMENTS}/e").json()["spec"]["candidates"][0]["weight"] == 1


def test_whoever_writes_over_what_they_have_not_read_gets_a_conflict(api: httpx.Client) -> None:
    first = api.post(EXPERIMENTS, json=experiment()).json()
    api.patch(f"{EXPERIMENTS}/e", json={"spec": {"resourceType": "model"}}, headers=MERGE_PATCH)
    assert api.put(f"{EXPERIMENTS}/e", json=first).status_code == 409
    unread = first | {"metadata": {"name": "e"}}
    assert api.put(f"{EXPERIMENTS}/e", json=unread).status_code == 422
    options = {"preconditions": {"resourceVersion": first["metadata"]["resourceVersion"]}}
    assert api.request("DELETE", f"{EXPERIMENTS}/e", json=options).status_code == 409
    assert api.request("DELETE", f"{EXPERIMENTS}/e").status_code == 200
    assert api.get(f"{EXPERIMENTS}/e").status_code == 404


def test_other_kinds_of_patches_are_refused(api: httpx.Client) -> None:
    api.post(EXPERIMENTS, json=experiment())
    assert api.patch(f"{EXPERIMENTS}/e", json={}, headers={"Content-Type": "application/json"}).status_code == 415


def test_an_experiment_is_ready_once_its_models_are(api: httpx.Client) -> None:
    api.post(EXPERIMENTS, json=experiment())
    assert conditions(api)["ExperimentReady"] == "False"
    api.post(MODELS, json=model("a"))
    assert conditions(api)["ExperimentReady"] == "True"


def test_the_scheduler_of_v2_accepts_the_object_and_does_not_run_it(api: httpx.Client) -> None:
    api.post(MODELS, json=model("a"))
    assert api.post(EXPERIMENTS, json=experiment(default="b")).status_code == 201
    assert conditions(api)["ExperimentReady"] == "False"


def conditions(api: httpx.Client) -> dict[str, str]:
    status = api.get(f"{EXPERIMENTS}/e").json()["status"]
    return {one["type"]: one["status"] for one in status["conditions"]}


def test_a_list_holds_what_carries_the_label(api: httpx.Client) -> None:
    for name in "ab":
        api.post(MODELS, json=model(name))
    api.patch(f"{MODELS}/b", json={"metadata": {"labels": {"app": None}}}, headers=MERGE_PATCH)
    items = api.get(MODELS, params={"labelSelector": "app=chat"}).json()["items"]
    assert [item["metadata"]["name"] for item in items] == ["a"]


def test_a_watch_tells_what_happened_since_in_order(api: httpx.Client, cluster: Cluster) -> None:
    since = int(api.post(EXPERIMENTS, json=experiment()).json()["metadata"]["resourceVersion"])
    api.patch(f"{EXPERIMENTS}/e", json={"spec": {"resourceType": "model"}}, headers=MERGE_PATCH)
    api.request("DELETE", f"{EXPERIMENTS}/e")
    seen = cluster.watch("experiments", since)
    assert [what for _, what, _ in seen][-1] == "DELETED"
    assert {what for _, what, _ in seen} == {"MODIFIED", "DELETED"}
    assert [number for number, _, _ in seen] == sorted(number for number, _, _ in seen)


@pytest.mark.parametrize(
    ("fault", "raised", "stored"),
    [
        (Fault.LOST_ANSWER, httpx.ReadTimeout, True),
        (Fault.NO_ANSWER, httpx.ConnectTimeout, False),
    ],
)
def test_a_lost_answer_is_not_a_lost_request(
    api: httpx.Client, cluster: Cluster, fault: Fault, raised: type[Exception], stored: bool
) -> None:
    cluster.faults.add(fault)
    with pytest.raises(raised):
        api.post(EXPERIMENTS, json=experiment())
    assert (api.get(f"{EXPERIMENTS}/e").status_code == 200) is stored
