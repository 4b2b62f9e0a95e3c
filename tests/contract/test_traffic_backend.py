"""What the controller relies on, over every backend: real gateway routes; the real runtime, or a strict cluster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from examples.cluster.api import Cluster
from hone.errors import ConfigError, Fenced, Retryable
from hone.records import TrafficPlan
from serving.router import Router
from serving.traffic.backend import TrafficBackend
from serving.traffic.local import LocalTraffic
from tests.support.kubernetes import NAME, REAL, seldon_backend
from tests.support.platform import KEY, Clock, make_router, router_app
from tests.support.web import serving

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
ROLLOUT = UUID(int=7)
ALONE = TrafficPlan(fence=4, stable="old", expires_at=NOW + timedelta(seconds=60))
PLAN = msgspec.structs.replace(ALONE, fence=5, canary="new", canary_weight=0.25, rollout_id=ROLLOUT, stage=0)
NOWHERE = "http://127.0.0.1:9"
PLATFORMS = (
    "local",
    *("seldon_v1", "seldon_v2"),
    *(pytest.param(f"{line} real", marks=REAL.marks) for line in ("seldon_v1", "seldon_v2")),
)


@dataclass
class Platform:
    """One backend with its gateways, as a test sees it from outside."""

    backend: Any
    routers: list[Router]
    addresses: list[str]
    directory: Path
    "Of a model."
    make: Callable[..., TrafficBackend]
    cluster: Cluster | None = None

    def prepare(self, *versions: str) -> None:
        for version in versions:
            self.backend.prepare(version, str(self.directory))

    def follows(self, plan: TrafficPlan) -> bool:
        seen = self.backend.observe()
        return all(view.plan == plan for view in seen.routers) and seen.resource_carries(
            plan, self.backend.capabilities().min_step
        )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Clock, list[Router], list[str]]]:
    """Two gateways that all tests share, one after the other."""
    clock, routers = Clock(NOW), [make_router(tmp_path_factory.mktemp(name)) for name in "ab"]
    with serving(router_app(routers[0], clock)) as first, serving(router_app(routers[1], clock)) as second:
        yield clock, routers, [first, second]


@pytest.fixture
def clock(hub: tuple[Clock, list[Router], list[str]]) -> Clock:
    hub[0].now = NOW
    return hub[0]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A runtime that serves nothing yet, and a directory with a model."""
    from serving.runtime.app import runtime_app
    from tests.support.tiny_model import make_tiny_model

    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    with serving(runtime_app({})) as url:
        yield url, directory


@pytest.fixture(params=PLATFORMS)
def platform(
    request: pytest.FixtureRequest,
    hub: tuple[Clock, list[Router], list[str]],
    clock: Clock,
    runtime: tuple[str, Path],
    new_cluster: Callable[..., Cluster],
) -> Iterator[Platform]:
    url, directory = runtime
    _, routers, addresses = hub
    for router in routers:
        router.plan, router.broken = None, frozenset()
    line, _, kind = request.param.partition(" ")
    cluster = None if line == "local" else new_cluster(kind or "stand-in")

    def make(addresses: list[str], key: str = KEY) -> Any:
        if cluster is None:
            return LocalTraffic(addresses, url, key)
        return seldon_backend(line, cluster, addresses, key=key)

    with make(addresses) as backend:
        yield Platform(backend, routers, addresses, directory, make, cluster)
        for version in backend.observe().models if cluster is None else ():
            backend.teardown(version)


def test_an_applied_plan_is_followed_by_every_router_and_by_callers_who_are_not_keyed(platform: Platform) -> None:
    platform.prepare("old", "new")
    for plan in (ALONE, PLAN):
        platform.backend.apply(plan)
        assert [router.plan for router in platform.routers] == [plan, plan]
        assert platform.follows(plan)
    if platform.cluster is not None:
        served = platform.cluster.send_unkeyed(NAME, 2000)
        assert 430 <= served.count("new") <= 570
        seen = platform.backend.observe().resource
        assert seen.unkeyed == {"old": served.count("old"), "new": served.count("new")}
        assert seen.weights == {"old": 0.75, "new": 0.25}


@pytest.mark.parametrize("platform", PLATFORMS[1:], indirect=True)
def test_a_caller_who_names_an_arm_reaches_that_arm_whatever_the_weights(platform: Platform) -> None:
    assert platform.cluster is not None
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    arms = {arm.version: name for name, arm in platform.cluster.operator.wanted_arms()}
    assert [platform.cluster.send_keyed(arms["old"]) for _ in range(50)] == ["old"] * 50
    assert [platform.cluster.send_keyed(arms["new"]) for _ in range(50)] == ["new"] * 50
    assert not platform.backend.observe().resource.unkeyed


def test_a_router_without_a_plan_is_seen_as_such(platform: Platform) -> None:
    assert [(view.reachable, view.plan) for view in platform.backend.observe().routers] == [(True, None)] * 2


def test_renewing_keeps_the_fence_and_writes_nothing_to_the_cluster(platform: Platform) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    version = platform.cluster.store.last if platform.cluster else 0
    later = msgspec.structs.replace(PLAN, expires_at=NOW + timedelta(seconds=99))
    platform.backend.apply(later)
    assert platform.routers[0].plan == later
    assert platform.cluster is None or platform.cluster.store.last == version


def test_an_older_fence_is_refused_by_routers_and_cluster_alike(platform: Platform) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    with pytest.raises(Fenced, match="refused plan 4"):
        platform.backend.apply(ALONE)
    assert platform.follows(PLAN)
    if platform.cluster is not None:
        with platform.make([]) as blind, pytest.raises(Fenced, match="follows plan 5, ours is 4"):
            blind.apply(ALONE)
        assert platform.follows(PLAN)


def test_a_plan_that_nobody_renews_is_seen_as_expired_and_the_weight_is_0(platform: Platform, clock: Clock) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    clock.now = NOW + timedelta(seconds=60)
    assert [view.expired for view in platform.backend.observe().routers] == [True, True]
    assert [router.weight(clock()) for router in platform.routers] == [0.0, 0.0]


def test_broken_glass_on_one_router_is_discovered(platform: Platform, clock: Clock) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    httpx.post(
        f"{platform.addresses[1]}/v1/router/break-glass",
        json={"rollout_id": str(ROLLOUT), "reason": "it swears"},
        headers={"Authorization": f"Bearer {KEY}"},
    ).raise_for_status()
    assert platform.backend.observe().broken_glass == {ROLLOUT}
    assert platform.routers[1].weight(clock()) == 0.0


def test_a_dead_router_keeps_the_plan_neither_from_the_others_nor_from_the_cluster(platform: Platform) -> None:
    platform.prepare("old", "new")
    with platform.make([NOWHERE, platform.addresses[0]]) as backend:
        with pytest.raises(Retryable, match=r"not everywhere: http://127\.0\.0\.1:9"):
            backend.apply(PLAN)
        assert platform.routers[0].plan == PLAN
        seen = backend.observe()
        assert [view.reachable for view in seen.routers] == [False, True]
        assert seen.resource_carries(PLAN, 0.01)


def test_a_wrong_key_is_an_error_of_the_configuration(platform: Platform) -> None:
    with platform.make(platform.addresses, key="wrong") as backend, pytest.raises(ConfigError, match="HONE_ADMIN_KEY"):
        backend.apply(PLAN)


def test_a_version_is_loaded_and_unloaded_as_often_as_asked(platform: Platform) -> None:
    platform.prepare("old")
    for _ in range(2):
        platform.prepare("new")
        assert platform.backend.observe().models == {"old", "new"}
    for _ in range(2):
        platform.backend.teardown("new")
        assert platform.backend.observe().models == {"old"}


def test_a_promotion_moves_all_traffic_before_the_old_version_goes(platform: Platform) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    promoted = TrafficPlan(fence=6, stable="new", expires_at=PLAN.expires_at)
    if platform.cluster is not None:
        with pytest.raises(Retryable, match=r"old still has a share of 0[.]75"):
            platform.backend.teardown("old")
    platform.backend.apply(promoted)
    assert platform.follows(promoted)
    platform.backend.teardown("old")
    assert platform.backend.observe().models == {"new"}
    assert platform.follows(promoted)


def test_a_rollback_takes_the_share_of_every_caller(platform: Platform) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    back = TrafficPlan(fence=6, stable="old", expires_at=PLAN.expires_at)
    platform.backend.apply(back)
    assert platform.follows(back)
    assert platform.backend.observe().resource_is_without("new")
    if platform.cluster is not None:
        assert set(platform.cluster.send_unkeyed(NAME, 500)) == {"old"}


def test_what_comes_past_the_gateways_can_be_split_alone_under_the_same_fence(platform: Platform) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    platform.backend.split_past(msgspec.structs.replace(PLAN, canary=None, canary_weight=0.0))
    assert [router.plan for router in platform.routers] == [PLAN, PLAN]
    assert platform.backend.observe().resource_is_without("new")
    if platform.cluster is not None:
        assert set(platform.cluster.send_unkeyed(NAME, 200)) == {"old"}
        with pytest.raises(Fenced, match="follows plan 5, ours is 4"):
            platform.backend.split_past(ALONE)
    platform.backend.apply(PLAN)
    assert platform.follows(PLAN)


def test_what_serves_the_models_may_be_away_and_the_routers_still_hear(platform: Platform) -> None:
    platform.prepare("old", "new")
    platform.backend.apply(PLAN)
    back = TrafficPlan(fence=6, stable="old", expires_at=PLAN.expires_at)
    if platform.cluster is None:
        with LocalTraffic(platform.addresses, NOWHERE, KEY) as backend:
            backend.apply(back)
            assert backend.observe().models == frozenset()
            with pytest.raises(Retryable, match="does not answer"):
                backend.prepare("new", "/nowhere")
        return
    platform.cluster.faults.away = True
    with pytest.raises(Retryable, match=r"not everywhere.*does not answer"):
        platform.backend.apply(back)
    seen = platform.backend.observe()
    assert (seen.models, seen.resource_carries(back, 1.0), seen.resource_is_without("new")) == (set(), False, False)
    assert [router.plan for router in platform.routers] == [back, back]


def test_a_version_that_does_not_become_ready_is_not_loaded(platform: Platform, tmp_path: Path) -> None:
    if platform.cluster is not None:
        platform.cluster.arms.failing.add("broken")  # type: ignore[attr-defined]
    with pytest.raises(Retryable, match=r"broken: 422|broken is deployed and not ready yet"):
        platform.backend.prepare("broken", str(tmp_path))
    assert platform.backend.observe().models == frozenset()


def test_every_backend_says_what_it_can_do(platform: Platform) -> None:
    can = platform.backend.capabilities()
    assert (can.sticky, can.shadow, can.expires) == (True, True, True)
    assert can.streaming == (platform.cluster is None)
