"""What the controller relies on, against the real gateway routes and the real runtime."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import pytest

from hone.errors import ConfigError, Fenced, Retryable
from hone.records import TrafficPlan
from serving.router import Router
from serving.traffic.backend import TrafficBackend
from serving.traffic.local import LocalTraffic
from tests.support.platform import KEY, Clock, make_router, router_app
from tests.support.web import serving

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
ROLLOUT = UUID(int=7)
PLAN = TrafficPlan(
    fence=5,
    stable="old",
    canary="new",
    canary_weight=0.25,
    rollout_id=ROLLOUT,
    stage=0,
    expires_at=NOW + timedelta(seconds=60),
)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def routers(tmp_path: Path) -> list[Router]:
    return [make_router(tmp_path / name) for name in "ab"]


@pytest.fixture
def addresses(routers: list[Router], clock: Clock) -> Iterator[list[str]]:
    with serving(router_app(routers[0], clock)) as first, serving(router_app(routers[1], clock)) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A runtime that serves nothing yet, and a directory with a model."""
    from serving.runtime.app import runtime_app
    from tests.support.tiny_model import make_tiny_model

    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    with serving(runtime_app({})) as url:
        yield url, directory


@pytest.fixture
def backend(addresses: list[str]) -> Iterator[TrafficBackend]:
    with LocalTraffic(addresses, NOWHERE, KEY) as backend:
        yield backend


def test_every_router_follows_an_applied_plan(backend: TrafficBackend, routers: list[Router]) -> None:
    backend.apply(PLAN)
    assert [router.plan for router in routers] == [PLAN, PLAN]
    seen = backend.observe()
    assert [(view.reachable, view.plan, view.expired) for view in seen.routers] == [(True, PLAN, False)] * 2


def test_a_router_without_a_plan_is_seen_as_such(backend: TrafficBackend) -> None:
    assert [(view.reachable, view.plan) for view in backend.observe().routers] == [(True, None)] * 2


def test_renewing_keeps_the_fence_and_an_older_fence_is_refused(backend: TrafficBackend, routers: list[Router]) -> None:
    backend.apply(PLAN)
    later = msgspec.structs.replace(PLAN, expires_at=NOW + timedelta(seconds=99))
    backend.apply(later)
    with pytest.raises(Fenced, match="refused plan 4"):
        backend.apply(msgspec.structs.replace(PLAN, fence=4))
    assert routers[0].plan == later


def test_a_plan_that_nobody_renews_is_seen_as_expired_and_the_weight_is_0(
    backend: TrafficBackend, routers: list[Router], clock: Clock
) -> None:
    backend.apply(PLAN)
    clock.now = NOW + timedelta(seconds=60)
    assert [view.expired for view in backend.observe().routers] == [True, True]
    assert [router.weight(clock()) for router in routers] == [0.0, 0.0]


def test_broken_glass_on_one_router_is_discovered(
    backend: TrafficBackend, addresses: list[str], routers: list[Router], clock: Clock
) -> None:
    backend.apply(PLAN)
    httpx.post(
        f"{addresses[1]}/v1/router/break-glass",
        json={"rollout_id": str(ROLLOUT), "reason": "it swears"},
        headers={"Authorization": f"Bearer {KEY}"},
    ).raise_for_status()
    assert backend.observe().broken_glass == {ROLLOUT}
    assert routers[1].weight(clock()) == 0.0


def test_a_dead_router_does_not_keep_the_plan_from_the_others(addresses: list[str], routers: list[Router]) -> None:
    with LocalTraffic([NOWHERE, addresses[0]], NOWHERE, KEY) as backend:
        with pytest.raises(Retryable, match=r"not everywhere: http://127\.0\.0\.1:9"):
            backend.apply(PLAN)
        assert routers[0].plan == PLAN
        assert [view.reachable for view in backend.observe().routers] == [False, True]


def test_a_wrong_key_is_an_error_of_the_configuration(addresses: list[str]) -> None:
    with LocalTraffic(addresses, NOWHERE, "wrong") as backend, pytest.raises(ConfigError, match="HONE_ADMIN_KEY"):
        backend.apply(PLAN)


def test_a_runtime_that_is_away_serves_no_models_and_loads_none(backend: TrafficBackend) -> None:
    assert backend.observe().models == frozenset()
    with pytest.raises(Retryable, match="does not answer"):
        backend.prepare("new", "/nowhere")


def test_a_version_is_loaded_and_unloaded_as_often_as_asked(runtime: tuple[str, Path]) -> None:
    url, directory = runtime
    with LocalTraffic([], url, KEY) as backend:
        for _ in range(2):
            backend.prepare("new", str(directory))
            assert backend.observe().models == {"new"}
        for _ in range(2):
            backend.teardown("new")
            assert backend.observe().models == frozenset()


def test_a_directory_without_a_model_is_not_loaded(runtime: tuple[str, Path], tmp_path: Path) -> None:
    with LocalTraffic([], runtime[0], KEY) as backend:
        with pytest.raises(Retryable, match="did not load broken: 422"):
            backend.prepare("broken", str(tmp_path))
        assert backend.observe().models == frozenset()


def test_the_local_backend_says_what_it_can_do(backend: TrafficBackend) -> None:
    can = backend.capabilities()
    assert (can.sticky, can.shadow, can.expires, can.streaming) == (True, True, True, True)
