"""The controller over Seldon: real Postgres, a real router, and a strict cluster that fails on request."""

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid5

import pytest
from sqlalchemy.orm import Session, sessionmaker

from examples.cluster.api import Cluster
from examples.cluster.faults import Fault
from hone.errors import Retryable
from hone.settings import Settings
from hone.store.engine import make_engine, make_sessions
from hone.store.models import get_alias
from hone.store.rollouts import get_rollout, request_action
from hone.store.tables import RolloutRow
from serving.controller import Controller
from serving.looking import look_once
from serving.router import Router
from serving.traffic.seldon import SeldonTraffic
from serving.traffic.seldon_v2 import SeldonV2
from tests.support.kubernetes import CLUSTERS, NAME, seldon_backend
from tests.support.platform import Clock, make_router, router_app
from tests.support.rollouts import SPACE, START, add_answer, add_models, add_thumb, start_rollout
from tests.support.web import serving

Sessions = sessionmaker[Session]


class World:
    """One gateway, a cluster, a database, and a crowd that votes by its arm."""

    def __init__(self, sessions: Sessions, router: Router, cluster: Cluster, backend: SeldonTraffic, clock: Clock):
        self.sessions, self.router, self.cluster, self.backend, self.clock = sessions, router, cluster, backend, clock
        values = {"mode": "active", "rollout": {"interval_s": 1, "plan_ttl_s": 60.0}}
        self.controller = Controller(sessions, backend, Settings(**values))  # type: ignore[arg-type]
        with sessions.begin() as session:
            add_models(session)
        self.look()
        with sessions.begin() as session:
            self.rollout_id: UUID = start_rollout(session, now=clock.now)
        self.users, self.rng = 0, random.Random(5)

    def look(self) -> None:
        self.controller.look(self.clock.now)

    def row(self) -> RolloutRow:
        with self.sessions() as session:
            return get_rollout(session, self.rollout_id)

    def stable(self) -> str:
        with self.sessions() as session:
            alias = get_alias(session, "stable")
            assert alias is not None
            return alias.model_version

    def chat(self, number: int, likes: Callable[[str], float]) -> None:
        """New users, each drawn by the router and rating once, over ten seconds; others come past the gateways."""
        with self.sessions.begin() as session:
            for offset in range(number):
                self.users += 1
                user, second = f"user {self.users}", (self.clock.now - START).total_seconds() + 10 * offset / number
                decision = self.router.decide(uuid5(SPACE, user), self.clock.now)
                assert decision is not None
                fields = {"track": decision.track, "stage": decision.stage, "propensity": decision.propensity}
                answer = add_answer(session, decision.rollout_id, user, second, **fields)
                add_thumb(session, answer, user, 1.0 if self.rng.random() < likes(decision.track) else -1.0, second + 1)
        self.cluster.send_unkeyed(NAME, 20)
        self.clock.now += timedelta(seconds=10)

    def run(self, likes: Callable[[str], float]) -> RolloutRow:
        for _ in range(40):
            self.look()
            if (row := self.row()).ended_at is not None:
                return row
            self.chat(40, likes)
        raise AssertionError(f"not ended: {self.row().phase}, {self.row().evidence}")

    def order(self, action: str) -> None:
        with self.sessions.begin() as session:
            request_action(session, self.rollout_id, action, actor="ann", reason="a test", now=self.clock.now)


@pytest.fixture(params=CLUSTERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["seldon_v1", "seldon_v2"])
def world(
    request: pytest.FixtureRequest, kind: str, new_cluster: Callable[..., Cluster], sessions: Sessions, tmp_path: Path
) -> Iterator[World]:
    clock, router = Clock(START), make_router(tmp_path)
    options = {"clock": lambda: (clock.now - START).total_seconds()}
    cluster = new_cluster(kind, **options)
    with serving(router_app(router, clock)) as url, seldon_backend(request.param, cluster, [url], **options) as backend:
        yield World(sessions, router, cluster, backend, clock)


def better(track: str) -> float:
    return 0.95 if track == "canary" else 0.4


def worse(track: str) -> float:
    return 0.1 if track == "canary" else 0.8


def test_a_better_canary_is_promoted_and_takes_all_callers_with_it(world: World) -> None:
    row = world.run(better)
    assert row.phase == "promoted"
    assert row.reason.startswith("better: e-value")
    assert world.stable() == "new"
    world.look()
    seen = world.backend.observe()
    assert seen.models == {"new"}, "the old stable is gone from the cluster"
    assert seen.resource is not None
    assert seen.resource.weights == {"new": 1.0}
    assert set(world.cluster.send_unkeyed(NAME, 100)) == {"new"}


def test_a_harmful_canary_is_rolled_back_and_leaves_the_cluster(world: World) -> None:
    row = world.run(worse)
    assert row.phase == "rolled_back"
    world.look()
    assert world.backend.observe().models == {"old"}
    assert set(world.cluster.send_unkeyed(NAME, 100)) == {"old"}


@pytest.mark.parametrize("fault", [None, Fault.CONFLICT, Fault.LOST_ANSWER])
def test_a_rollback_is_done_within_two_looks_whatever_meets_its_write(world: World, fault: Fault | None) -> None:
    world.look()
    world.chat(40, better)
    world.look()
    assert (world.row().phase, world.router.weight(world.clock.now)) == ("canary", 0.25)
    world.order("rollback")
    if fault is not None:
        world.cluster.faults.add(fault)
    looks = 0
    while world.row().phase != "rolled_back" or not world.backend.observe().resource_is_without("new"):
        looks += 1
        assert looks <= 2
        world.look()
    assert world.router.weight(world.clock.now) == 0.0


def test_without_its_api_server_a_rollback_empties_the_gateways_and_stays_open(world: World) -> None:
    world.look()
    assert world.router.weight(world.clock.now) == 0.25
    world.order("rollback")
    world.cluster.faults.away = True
    for _ in range(3):
        with pytest.raises(Retryable, match="does not answer"):
            world.look()
        assert (world.row().phase, world.router.weight(world.clock.now)) == ("rolling_back", 0.0)
    assert "new" in world.cluster.send_unkeyed(NAME, 100), "a custom resource does not expire"
    world.cluster.faults.away = False
    world.look()
    assert world.row().phase == "rolled_back"
    assert set(world.cluster.send_unkeyed(NAME, 100)) == {"old"}


@pytest.mark.parametrize("end", ["its glass is broken", "its plan ran out"])
def test_without_a_database_the_canary_leaves_the_cluster_as_it_leaves_the_gateways(world: World, end: str) -> None:
    world.look()
    there, nowhere = world.sessions, make_sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:9/none"))
    world.controller.sessions = nowhere
    look_once(world.controller, world.clock.now)
    assert "new" in world.cluster.send_unkeyed(NAME, 100), "the plan is in force: nothing is taken out"
    if end == "its plan ran out":
        world.clock.now += timedelta(seconds=61)
    else:
        world.router.break_glass(world.rollout_id)
    look_once(world.controller, world.clock.now)
    assert world.router.weight(world.clock.now) == 0.0
    assert set(world.cluster.send_unkeyed(NAME, 100)) == {"old"}
    world.controller.sessions = there
    world.look()
    assert world.row().phase == ("rolled_back" if end == "its glass is broken" else "canary")
    assert ("new" in world.cluster.send_unkeyed(NAME, 100)) == (end == "its plan ran out")


def test_a_canary_that_does_not_become_ready_gets_nobody(world: World) -> None:
    world.cluster.arms.failing.add("new")  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(Retryable, match="new is deployed and not ready yet"):
            world.look()
        world.clock.now += timedelta(seconds=30)
        assert world.row().phase == "created"
        assert set(world.cluster.send_unkeyed(NAME, 50)) == {"old"}


def test_what_the_cluster_does_not_carry_is_not_promoted(world: World) -> None:
    world.backend.prepare("new", "/models/new")
    world.cluster.faults.forgets = True
    is_v2 = isinstance(world.backend, SeldonV2)
    for _ in range(12):
        world.look()
        world.chat(40, better)
    assert (world.row().phase, world.row().stage) == (("promoted", 1) if is_v2 else ("paused", 0))
    assert is_v2 or set(world.cluster.send_unkeyed(NAME, 100)) == {"old"}
