"""The controller on real Postgres, real routers over HTTP and the real runtime; users are drawn by the real router."""

from collections.abc import Callable
from datetime import datetime

import pytest
from sqlalchemy import delete, text

from hone.errors import Fenced, Retryable
from hone.records import TrafficPlan
from hone.rollout import Phase, parse_policy
from hone.store.models import set_alias
from hone.store.rollout_units import list_units
from hone.store.rollouts import list_transitions, request_action
from hone.store.switches import FREEZE, set_switch
from hone.store.tables import ModelAliasRow
from serving.controller import CLOCK_SLACK_S, Controller
from serving.tally import fold, start_tally
from serving.traffic.local import LocalTraffic
from tests.support.rollout_world import PLAN_TTL_S, World, begin, better, same, worse
from tests.support.rollouts import at


class Crash(BaseException):
    """The process dies here."""


def test_without_a_rollout_stable_is_loaded_and_every_plan_is_renewed(world: World, controller: Controller) -> None:
    for _ in range(2):
        controller.look(world.clock.now)
        world.wait(5)
    assert [router.plan and router.plan.stable for router in world.routers] == ["old", "old"]
    assert world.routers[0].plan is not None
    assert world.routers[0].plan.expires_at == at(5 + PLAN_TTL_S)
    assert controller.backend.observe().models == {"old"}


def test_the_stable_model_of_the_settings_is_served_until_a_registered_one_is_stable(world: World) -> None:
    with world.sessions.begin() as session:
        session.execute(delete(ModelAliasRow))
    with world.backend() as backend:
        controller = world.controller(backend, stable_model="vendor")
        controller.look(world.clock.now)
        assert [router.plan and router.plan.stable for router in world.routers] == ["vendor", "vendor"]
        assert backend.observe().models == frozenset(), "nothing is loaded for it"
        with world.sessions.begin() as session:
            set_alias(session, "stable", "old", expected_generation=None)
        controller.look(world.clock.now)
        assert [router.plan and router.plan.stable for router in world.routers] == ["old", "old"]


def test_a_better_canary_is_promoted_by_the_test_and_stable_moves(world: World, controller: Controller) -> None:
    rollout_id = begin(world)
    row = world.run(controller, better)
    assert row.phase == "promoted"
    assert row.reason.startswith("better: e-value")
    assert row.applied_epoch == row.epoch
    assert row.evidence["log_wealth_up"] >= row.evidence["log_target"]
    assert row.evidence["arms"]["canary"]["rated"] >= 20
    assert world.stable() == "new"
    assert [router.plan and router.plan.stable for router in world.routers] == ["new", "new"]
    assert world.weights() == [0.0, 0.0]
    controller.look(world.clock.now)
    assert controller.backend.observe().models == {"new"}, "the old stable is unloaded"
    with world.sessions() as session:
        steps = list_transitions(session, rollout_id)
    assert [step.epoch for step in steps] == list(range(1, len(steps) + 1))
    assert [step.to_phase for step in steps][-2:] == ["promoting", "promoted"]
    assert all(step.applied_at for step in steps), "each plan was seen in force before the next one"


def test_a_harmful_canary_is_rolled_back_and_unloaded(world: World, controller: Controller) -> None:
    begin(world)
    row = world.run(controller, worse)
    assert row.phase == "rolled_back"
    assert row.evidence["log_wealth_down"] >= row.evidence["log_target"]
    assert world.stable() == "old"
    assert world.weights() == [0.0, 0.0]
    controller.look(world.clock.now)
    assert controller.backend.observe().models == {"old"}


def test_an_undecided_rollout_ends_at_its_horizon_rolled_back(world: World, controller: Controller) -> None:
    rollout_id = begin(world, horizon_pairs=30)
    assert world.run(controller, same).phase == "rolled_back"
    with world.sessions() as session:
        assert [step.reason[:12] for step in list_transitions(session, rollout_id)[-2:]] == ["inconclusive"] * 2


def test_without_traffic_nothing_advances(world: World, controller: Controller) -> None:
    begin(world)
    for _ in range(5):
        controller.look(world.clock.now)
        world.wait(30)
    assert (world.row().phase, world.row().stage) == ("canary", 0)


def test_the_stored_rows_replayed_give_the_evidence_of_the_verdict(world: World, controller: Controller) -> None:
    rollout_id = begin(world)
    row = world.run(controller, better)
    policy = parse_policy(row.policy)
    with world.sessions() as session:
        units = list_units(session, rollout_id)
    stored = [unit for unit in units if unit.position <= row.evidence["position"]]
    replayed = fold(start_tally(policy), stored, policy)
    assert float(replayed.up.log_wealth()[0]) == row.evidence["log_wealth_up"]
    assert replayed.up.num == row.evidence["num_pairs"]


def test_a_canary_that_cannot_be_loaded_never_meets_traffic(world: World, controller: Controller) -> None:
    with world.sessions.begin() as session:
        session.execute(text("UPDATE model_version SET directory = '/nowhere' WHERE model_version = 'new'"))
    begin(world, guardrails={"ready_timeout_s": 60})
    for _ in range(3):
        with pytest.raises(Retryable, match="did not load new"):
            controller.look(world.clock.now)
        assert world.weights() == [0.0, 0.0]
        world.wait(25)
    controller.look(world.clock.now)
    assert world.row().phase == "rolled_back"


def test_a_dead_controller_means_canary_weight_0(world: World, controller: Controller) -> None:
    begin(world)
    controller.look(world.clock.now)
    assert world.weights() == [0.25, 0.25]
    world.wait(PLAN_TTL_S)
    assert world.weights() == [0.0, 0.0]


def test_broken_glass_is_discovered_and_written_down(world: World, controller: Controller) -> None:
    rollout_id = begin(world)
    controller.look(world.clock.now)
    world.routers[1].break_glass(rollout_id)
    controller.look(world.clock.now)
    assert world.row().phase == "rolled_back"
    with world.sessions() as session:
        assert list_transitions(session, rollout_id)[-2].reason.startswith("break_glass")
    assert world.weights() == [0.0, 0.0]


def test_a_frozen_platform_takes_the_canary_out_and_gives_it_back(world: World, controller: Controller) -> None:
    begin(world)
    controller.look(world.clock.now)
    for on, weight in ((True, 0.0), (False, 0.25)):
        with world.sessions.begin() as session:
            set_switch(session, FREEZE, on, actor="ann", reason="incident", now=world.clock.now)
        controller.look(world.clock.now)
        assert world.weights() == [weight, weight]
    assert world.row().phase == "canary"


def test_observe_only_touches_no_traffic(world: World) -> None:
    begin(world)
    with world.backend() as backend:
        controller = world.controller(backend, mode="observe")
        for _ in range(3):
            controller.look(world.clock.now)
        assert world.weights() == [0.0, 0.0]
        assert world.row().phase == "created"


def test_what_a_person_asks_is_carried_out_at_the_next_look(world: World, controller: Controller) -> None:
    rollout_id = begin(world)
    controller.look(world.clock.now)
    with world.sessions.begin() as session:
        request_action(session, rollout_id, "pause", actor="ann", reason="a look first", now=world.clock.now)
    controller.look(world.clock.now)
    assert world.weights() == [0.25, 0.25]
    with world.sessions.begin() as session:
        request_action(session, rollout_id, "rollback", actor="ann", reason="not good", now=world.clock.now)
    controller.look(world.clock.now)
    assert world.weights() == [0.0, 0.0]
    assert world.row().phase == "rolled_back"


def test_a_router_that_is_away_holds_the_rollback_open_until_its_plan_ran_out(world: World) -> None:
    rollout_id = begin(world)
    with world.backend() as backend:
        controller = world.controller(backend)
        controller.look(world.clock.now)
        with world.sessions.begin() as session:
            request_action(session, rollout_id, "rollback", actor="ann", reason="bad", now=world.clock.now)
        backend.gateways.addresses = (world.addresses[0], "http://127.0.0.1:9")
        for _ in range(2):
            with pytest.raises(Retryable, match="not everywhere"):
                controller.look(world.clock.now)
            assert world.row().phase == "rolling_back"
        world.wait(PLAN_TTL_S + CLOCK_SLACK_S)
        with pytest.raises(Retryable, match="not everywhere"):
            controller.look(world.clock.now)
        assert world.row().phase == "rolled_back"
        assert world.weights() == [0.0, 0.0]


# Two controllers, and one that dies -----------------------------------------------------------------------------------


def test_only_the_holder_of_the_lease_acts_and_a_zombie_is_fenced_everywhere(world: World) -> None:
    begin(world)
    with world.backend() as one, world.backend() as two:
        first, second = world.controller(one), world.controller(two)
        assert first.look(world.clock.now)
        assert not second.look(world.clock.now)
        world.wait(11)
        assert second.look(world.clock.now)
        with pytest.raises(Fenced, match="newer holder"):
            first.look(world.clock.now)
        stale = TrafficPlan(fence=1 << 32 | 99, stable="new", expires_at=at(9999))
        with pytest.raises(Fenced, match="newer controller"):
            one.apply(stale)


class DiesBeforeApplying(LocalTraffic):
    def apply(self, plan: TrafficPlan) -> None:
        raise Crash


class DiesAfterOneRouter(LocalTraffic):
    def apply(self, plan: TrafficPlan) -> None:
        self.gateways.send_one(self.gateways.addresses[0], plan)
        raise Crash


class DiesAfterApplying(LocalTraffic):
    def apply(self, plan: TrafficPlan) -> None:
        super().apply(plan)
        raise Crash


class DiesWhileLoading(LocalTraffic):
    def prepare(self, model_version: str, directory: str) -> None:
        raise Crash


class DiesWhileUnloading(LocalTraffic):
    def teardown(self, model_version: str) -> None:
        raise Crash


DEADLY = [DiesBeforeApplying, DiesAfterOneRouter, DiesAfterApplying, DiesWhileLoading, DiesWhileUnloading]


@pytest.mark.parametrize("likes", [better, worse])
def test_a_controller_that_dies_at_every_point_ends_as_one_that_lives(
    world: World, likes: Callable[[str], float]
) -> None:
    rollout_id = begin(world)
    for turn in range(60):
        kind = DEADLY[turn % len(DEADLY)]
        with world.backend(kind) as backend:
            try_look(world.controller(backend), world.clock.now)
        world.wait(11)
        with world.backend() as backend:
            if turn % 3 == 0:
                world.controller(backend).look(world.clock.now)
                world.wait(11)
        if world.row().ended_at is not None:
            break
        world.chat(40, likes=likes)
    row = world.row()
    assert row.phase == ("promoted" if likes is better else "rolled_back")
    assert world.stable() == ("new" if likes is better else "old")
    with world.backend() as backend:
        world.controller(backend).look(world.clock.now)
        seen = backend.observe()
        world.wait(1)
    assert [view.plan and view.plan.stable for view in seen.routers] == [world.stable()] * 2
    assert world.weights() == [0.0, 0.0]
    with world.sessions() as session:
        steps = list_transitions(session, rollout_id)
        positions = [unit.position for unit in list_units(session, rollout_id)]
    assert [step.epoch for step in steps] == list(range(1, row.epoch + 1))
    assert positions == list(range(1, len(positions) + 1))
    assert sum(step.to_phase == Phase.PROMOTING for step in steps) == (likes is better)


def try_look(controller: Controller, now: datetime) -> None:
    try:
        controller.look(now)
    except Crash:
        controller.lease = None
