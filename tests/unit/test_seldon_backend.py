"""Both Seldon backends when the API server, the operator or other people get in the way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import yaml

from examples.cluster.api import Cluster
from examples.cluster.faults import Fault
from hone.errors import ConfigError, Fenced, Retryable
from hone.records import TrafficPlan
from hone.settings import Settings
from serving.traffic.choice import open_backend
from serving.traffic.fenced import ATTEMPTS
from serving.traffic.kube_api import KubeApi, Stale
from serving.traffic.seldon import SeldonTraffic
from serving.traffic.seldon_v1 import DEPLOYMENTS
from serving.traffic.seldon_v2 import EXPERIMENTS, SeldonV2, render_experiment
from tests.support.kubernetes import CLUSTERS, NAME, seldon_backend

ALONE = TrafficPlan(fence=4, stable="old", expires_at=datetime(2026, 3, 2, 9, tzinfo=UTC))
PLAN = msgspec.structs.replace(ALONE, fence=5, canary="new", canary_weight=0.25, rollout_id=UUID(int=7), stage=0)
BACK = msgspec.structs.replace(ALONE, fence=6)
HALF = msgspec.structs.replace(PLAN, fence=6, canary_weight=0.5, stage=1)
V1, V2 = "seldon_v1", "seldon_v2"
RBAC = Path(__file__).parents[2] / "deploy" / "seldon" / "rbac.yaml"


class Time:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest, new_cluster: Callable[..., Cluster], time: Time) -> Cluster:
    return new_cluster(request.param, clock=time)


@pytest.fixture(params=[V1, V2])
def backend(request: pytest.FixtureRequest, cluster: Cluster, time: Time) -> Iterator[SeldonTraffic]:
    with seldon_backend(request.param, cluster, [], clock=time) as backend:
        for version in ("old", "new"):
            backend.prepare(version, f"/models/{version}")
        backend.apply(ALONE)
        yield backend


def in_force(backend: SeldonTraffic, plan: TrafficPlan) -> bool:
    return backend.observe().resource_carries(plan, backend.capabilities().min_step)


def split_object(cluster: Cluster) -> dict[str, Any]:
    return next(made for key, made in cluster.store.objects.items() if key[2] == NAME)


@pytest.mark.parametrize("fault", list(Fault))
def test_one_fault_of_each_kind_is_overcome_within_one_call(
    backend: SeldonTraffic, cluster: Cluster, fault: Fault
) -> None:
    cluster.faults.add(fault)
    backend.apply(PLAN)
    assert in_force(backend, PLAN)


def test_a_write_whose_answer_was_lost_is_not_made_twice(backend: SeldonTraffic, cluster: Cluster) -> None:
    cluster.faults.add(Fault.LOST_ANSWER)
    generation = split_object(cluster)["metadata"]["generation"]
    backend.apply(PLAN)
    assert split_object(cluster)["metadata"]["generation"] == generation + 1


def test_attempts_end(backend: SeldonTraffic, cluster: Cluster) -> None:
    cluster.faults.add(*[Fault.CONFLICT] * 50)
    before = len(cluster.calls)
    with pytest.raises(Retryable, match=rf"not written in {ATTEMPTS} attempts.*409"):
        backend.apply(PLAN)
    assert len(cluster.calls) - before <= 2 * ATTEMPTS + 2


def test_a_controller_that_woke_late_is_fenced_though_it_reads_stale(backend: SeldonTraffic, cluster: Cluster) -> None:
    backend.apply(PLAN)
    cluster.faults.add(Fault.STALE_READ)
    with pytest.raises(Fenced, match="follows plan 5, ours is 4"):
        backend.apply(ALONE)
    assert in_force(backend, PLAN)


def test_somebody_elses_edit_between_read_and_write_is_not_lost(backend: SeldonTraffic, cluster: Cluster) -> None:
    key = next(key for key in cluster.store.objects if key[2] == NAME)
    get, edits = backend.api.get, iter([True])

    def get_then_edit(*place: Any) -> Any:
        found = get(*place)
        if next(edits, False):
            cluster.store.patch(key, {"metadata": {"labels": {"team": "search"}}}, "merge")
        return found

    backend.api.get = get_then_edit  # type: ignore[method-assign]
    backend.apply(PLAN)
    assert split_object(cluster)["metadata"]["labels"]["team"] == "search"
    assert in_force(backend, PLAN)


def test_a_persons_edit_of_the_weights_is_seen_and_undone(backend: SeldonTraffic, cluster: Cluster) -> None:
    backend.apply(PLAN)
    key = next(key for key in cluster.store.objects if key[2] == NAME)
    spec = split_object(cluster)["spec"]
    arms = spec.get("candidates") or spec["predictors"]
    field = "weight" if "candidates" in spec else "traffic"
    whole = sum(arm[field] for arm in arms)
    edited = [arm | {field: whole // 2} for arm in arms]
    cluster.store.patch(key, {"spec": {("candidates" if "candidates" in spec else "predictors"): edited}}, "merge")
    assert not in_force(backend, PLAN)
    backend.apply(PLAN)
    assert in_force(backend, PLAN)


def test_a_slow_canary_is_not_in_force_before_it_answers(cluster: Cluster, time: Time) -> None:
    cluster.arms.ready_after_s = 60  # type: ignore[attr-defined]
    for line in (V1, V2):
        with seldon_backend(line, cluster, [], clock=time) as slow:
            with pytest.raises(Retryable, match="not ready yet"):
                slow.prepare("new", "/models/new")
            assert "new" not in slow.observe().models
            time.now += 60
            slow.prepare("new", "/models/new")
            assert slow.observe().models == {"new"}


def cured(backend: SeldonTraffic, cluster: Cluster, time: Time, plan: TrafficPlan, looks: int) -> list[bool]:
    """Let callers come and the controller look; after each look, whether the plan is in force."""
    found = []
    for _ in range(looks):
        backend.apply(plan)
        cluster.send_unkeyed(NAME, 300)
        time.now += 10
        found.append(in_force(backend, plan))
    return found


def test_a_split_that_was_accepted_and_has_no_effect_is_written_again_then_made_anew(
    cluster: Cluster, time: Time
) -> None:
    with seldon_backend(V2, cluster, [], clock=time) as backend:
        for version in ("old", "new"):
            backend.prepare(version, f"/models/{version}")
        backend.apply(HALF)
        cluster.faults.ineffective = True
        back = msgspec.structs.replace(BACK, fence=7)
        cured(backend, cluster, time, back, looks=5)
        assert ("DELETE", f"/apis/mlops.seldon.io/v1alpha1/namespaces/hone/experiments/{NAME}") in cluster.calls
        assert set(cluster.send_unkeyed(NAME, 300)) == {"old"}
        assert in_force(backend, back)
        assert split_object(cluster)["metadata"]["annotations"]["hone/attempt"] == "2"


def test_on_v1_which_cannot_be_made_anew_the_canary_is_given_up(cluster: Cluster, time: Time) -> None:
    with seldon_backend(V1, cluster, [], clock=time) as backend:
        for version in ("old", "new"):
            backend.prepare(version, f"/models/{version}")
        backend.apply(PLAN)
        cluster.faults.ineffective = True
        assert cured(backend, cluster, time, HALF, looks=8)[-1] is False
        assert not any(method == "DELETE" for method, _ in cluster.calls)
        assert backend.observe().resource_is_without("new")


def test_a_server_that_forgets_edits_never_counts_as_in_force_until_the_object_is_new(
    backend: SeldonTraffic, cluster: Cluster, time: Time
) -> None:
    cluster.faults.forgets = True
    found = cured(backend, cluster, time, PLAN, looks=6)
    assert found[0] is False
    assert found[-1] is isinstance(backend, SeldonV2)
    assert backend.observe().resource_is_without("new") is not found[-1]


def test_requests_past_the_gateways_are_unknown_where_nobody_counts_them(cluster: Cluster) -> None:
    with seldon_backend(V2, cluster, [], count_unkeyed=lambda: None) as backend:
        backend.prepare("old", "/models/old")
        backend.apply(ALONE)
        cluster.send_unkeyed(NAME, 5)
        seen = backend.observe().resource
        assert seen is not None
        assert seen.unkeyed is None


def test_an_experiment_whose_default_is_the_stable_model_would_split_callers_who_name_it(cluster: Cluster) -> None:
    with seldon_backend(V2, cluster, []) as backend:
        for version in ("old", "new"):
            backend.prepare(version, f"/models/{version}")
        backend.apply(HALF)
        assert {cluster.send_keyed("chat-old") for _ in range(40)} == {"old"}
        key = next(key for key in cluster.store.objects if key[2] == NAME)
        cluster.store.patch(key, {"spec": {"default": "chat-old"}}, "merge")
        assert {cluster.send_keyed("chat-old") for _ in range(40)} == {"old", "new"}
        backend.apply(HALF)
        assert {cluster.send_keyed("chat-old") for _ in range(40)} == {"old"}


def rights_of_the_role() -> set[tuple[str, str]]:
    role = next(item for item in yaml.safe_load_all(RBAC.read_text()) if item["kind"] == "Role")
    return {(plural, verb) for rule in role["rules"] for plural in rule["resources"] for verb in rule["verbs"]}


def right(method: str, path: str) -> tuple[str, str]:
    """What a call needs, as RBAC names it."""
    _, _, _, _, _, plural, *name = path.split("/")[1:]
    verbs = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete", "GET": "get" if name else "list"}
    return plural, verbs[method]


def test_the_role_holds_the_rights_that_the_backends_use_and_no_others(cluster: Cluster, time: Time) -> None:
    for line in (V1, V2):
        with seldon_backend(line, cluster, [], clock=time) as backend:
            for place in ("old", "new", "new-place"):
                backend.prepare(place[:3], f"/models/{place}")
            backend.apply(PLAN)
            cluster.faults.ineffective = True
            cured(backend, cluster, time, BACK, looks=5)
            cluster.faults.ineffective = False
            backend.teardown("new")
            backend.observe()
    assert {right(*call) for call in cluster.calls if "/apis/" in call[1]} == rights_of_the_role()


# The client -----------------------------------------------------------------------------------------------------------


def answering(code: int, document: dict[str, Any], seen: list[httpx.Request]) -> Callable[[httpx.Request], Any]:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(code, json=document)

    return answer


def test_the_token_is_read_anew_for_each_request(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []
    file = tmp_path / "token"
    transport = httpx.MockTransport(answering(404, {}, seen))
    with KubeApi("http://cluster", "hone", token_file=file, transport=transport) as api:
        for token in ("one", "two"):
            file.write_text(token + "\n")
            assert api.get(DEPLOYMENTS, NAME) is None
    assert [request.headers["Authorization"] for request in seen] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    ("code", "message", "error", "words"),
    [
        (403, "forbidden: cannot get resource", ConfigError, "rbac.yaml"),
        (403, "admission webhook denied the request", Retryable, "denied"),
        (401, "Unauthorized", ConfigError, "rbac.yaml"),
        (500, "etcdserver: request timed out", Retryable, "etcdserver"),
        (429, "too many requests", Retryable, "429"),
    ],
)
def test_refusals_are_sorted_into_what_to_do(code: int, message: str, error: type[Exception], words: str) -> None:
    transport = httpx.MockTransport(answering(code, {"message": message}, []))
    with KubeApi("http://cluster", "hone", transport=transport) as api, pytest.raises(error, match=words):
        api.get(DEPLOYMENTS, NAME)


def test_a_kind_that_the_cluster_does_not_serve_is_no_missing_object(cluster: Cluster) -> None:
    with KubeApi("http://cluster", "hone", transport=cluster.transport()) as api:
        assert api.get(EXPERIMENTS, NAME) is None
        with pytest.raises(Retryable, match="404 page not found: the cluster does not serve this kind"):
            api.get(replace(EXPERIMENTS, version="v9"), NAME)


@pytest.mark.shared
def test_a_field_that_nobody_knows_is_refused_and_named_in_few_words(cluster: Cluster) -> None:
    good = render_experiment(PLAN, name=NAME, namespace="hone")
    with KubeApi("http://cluster", "hone", transport=cluster.transport()) as api:
        with pytest.raises(Retryable, match=r"400.*unknown field.*trafic"):
            api.create(EXPERIMENTS, good | {"spec": good["spec"] | {"trafic": 5}})
        api.create(EXPERIMENTS, good)
        with pytest.raises(Stale, match=r"422.*unknown field.*trafic") as refused:
            api.patch(EXPERIMENTS, NAME, [{"op": "add", "path": "/spec/trafic", "value": 5}])
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("code", [401, 403])
def test_who_was_let_in_once_waits_until_the_server_knows_its_roles_again(code: int) -> None:
    codes = iter([404, code])
    transport = httpx.MockTransport(lambda request: httpx.Response(next(codes), json={"message": "forbidden"}))
    with KubeApi("http://cluster", "hone", transport=transport) as api:
        assert api.get(DEPLOYMENTS, NAME) is None
        with pytest.raises(Retryable, match=r"forbidden.*rbac\.yaml"):
            api.get(DEPLOYMENTS, NAME)


def test_outside_of_a_cluster_the_error_names_kubectl_proxy() -> None:
    settings = Settings(traffic_backend="seldon_v2", seldon={"token_file": "/nowhere/token"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"seldon\.token_file = /nowhere/token.*kubectl proxy"):
        open_backend(settings)


@pytest.mark.parametrize("line", [V1, V2])
def test_over_kubectl_proxy_no_credentials_are_needed(line: str) -> None:
    settings = Settings(traffic_backend=line, seldon={"kubernetes_url": "http://127.0.0.1:9"})  # type: ignore[arg-type]
    with open_backend(settings) as backend:
        seen = backend.observe()
        assert seen.resource is not None
        assert not seen.resource.reachable
