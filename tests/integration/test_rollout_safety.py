"""What the controller does by itself beside the verdict: it watches promotions, pauses, and guards measures."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select

from hone.records import TrafficPlan
from hone.store.rollouts import get_rollout, list_transitions, live_rollout, request_action
from hone.store.tables import AuditRow, RolloutRow
from serving.controller import Controller
from tests.support.rollout_world import World, begin, better, same

WATCHED = {"bake_s": 300.0, "holdback": 0.2}


def watch_of(world: World, promoted: UUID) -> RolloutRow:
    with world.sessions() as session:
        found = session.scalars(select(RolloutRow).where(RolloutRow.watches == promoted)).one()
        session.expunge(found)
        return found


def promote(world: World, controller: Controller) -> UUID:
    """A rollout that is promoted, and the first look at its watch."""
    rollout_id = begin(world, **WATCHED)
    for _ in range(40):
        controller.look(world.clock.now)
        with world.sessions() as session:
            if get_rollout(session, rollout_id).phase == "promoted":
                return rollout_id
        world.chat(40, likes=better)
    raise AssertionError("not promoted")


def chat_until_the_watch_ends(world: World, controller: Controller, rollout_id: UUID, old: float, new: float) -> str:
    """The crowd likes the two models so; return how the watch ended."""
    for _ in range(40):
        controller.look(world.clock.now)
        row = watch_of(world, rollout_id)
        if row.ended_at is not None:
            return row.phase
        world.chat(60, likes=lambda track: old if track == "canary" else new)
    raise AssertionError(f"the watch did not end: {row.evidence}")


def test_a_promotion_is_watched_and_kept_where_the_former_model_is_no_better(
    world: World, controller: Controller
) -> None:
    rollout_id = promote(world, controller)
    plan = world.routers[0].plan
    assert plan is not None
    assert (plan.stable, plan.canary, plan.canary_weight, plan.reverse) == ("new", "old", 0.2, True)
    assert controller.backend.observe().models == {"old", "new"}
    assert chat_until_the_watch_ends(world, controller, rollout_id, old=0.6, new=0.6) == "rolled_back"
    assert watch_of(world, rollout_id).reason.startswith("baked")
    assert world.stable() == "new"
    controller.look(world.clock.now)
    assert controller.backend.observe().models == {"new"}, "the former model is unloaded when the watch is over"


def test_a_promotion_that_turns_out_worse_is_undone_by_its_watch(world: World, controller: Controller) -> None:
    rollout_id = promote(world, controller)
    assert chat_until_the_watch_ends(world, controller, rollout_id, old=0.95, new=0.2) == "promoted"
    assert watch_of(world, rollout_id).reason.startswith("worse: the former model is better")
    assert world.stable() == "old"
    assert [router.plan and router.plan.stable for router in world.routers] == ["old", "old"]
    with world.sessions() as session:
        moves = session.scalars(select(AuditRow).where(AuditRow.action == "alias.move")).all()
        assert [move.detail["to"] for move in moves] == ["new", "old"]
        assert get_rollout(session, rollout_id).phase == "promoted", "history is not rewritten"
        assert live_rollout(session) is None


def test_broken_glass_in_a_watch_goes_back_to_the_former_model_at_once(world: World, controller: Controller) -> None:
    rollout_id = promote(world, controller)
    watch = watch_of(world, rollout_id)
    world.routers[0].break_glass(watch.rollout_id)
    decision = world.routers[0].decide(UUID(int=1), world.clock.now)
    assert decision is not None
    assert decision.model_version == "old"
    controller.look(world.clock.now)
    assert watch_of(world, rollout_id).phase == "promoted"
    assert world.stable() == "old"


def test_a_router_that_leaves_its_plan_gets_it_again_and_stays(world: World, controller: Controller) -> None:
    begin(world)
    controller.look(world.clock.now)
    stray(world)
    controller.look(world.clock.now)
    assert world.weights() == [0.25, 0.25]
    controller.look(world.clock.now)
    assert world.row().phase == "canary"


def test_a_router_that_keeps_leaving_its_plan_pauses_the_rollout(world: World, controller: Controller) -> None:
    rollout_id = begin(world)
    controller.look(world.clock.now)
    phases = []
    for _ in range(3):
        stray(world)
        controller.look(world.clock.now)
        phases.append(world.row().phase)
    assert phases == ["canary", "canary", "paused"], "two looks send the plan again, the third one pauses"
    assert world.row().reason.startswith("drift")
    with world.sessions.begin() as session:
        request_action(session, rollout_id, "resume", actor="ann", reason="mended", now=world.clock.now)
    controller.look(world.clock.now)
    controller.look(world.clock.now)
    assert world.row().phase == "canary"


def stray(world: World) -> None:
    """Somebody sets another weight at the second router."""
    router = world.routers[1]
    assert router.plan is not None
    router.plan = TrafficPlan(
        fence=router.plan.fence, stable="old", expires_at=world.clock.now + timedelta(seconds=600)
    )


def test_feedback_that_stops_pauses_the_rollout_and_the_weight_stays(world: World, controller: Controller) -> None:
    begin(world, stale_s=100)
    controller.look(world.clock.now)
    world.chat(8, likes=same)
    for _ in range(12):
        controller.look(world.clock.now)
        world.wait(10)
    assert world.row().phase == "paused"
    assert world.row().reason.startswith("stale: no rated user for")
    assert world.weights() == [0.25, 0.25]


@pytest.mark.parametrize(("approve", "weight"), [(False, 0.0), (True, 0.25)])
def test_a_rollout_that_needs_approval_gets_traffic_only_after_it(
    world: World, controller: Controller, approve: bool, weight: float
) -> None:
    rollout_id = begin(world, approval=True)
    controller.look(world.clock.now)
    if approve:
        with world.sessions.begin() as session:
            request_action(session, rollout_id, "approve", actor="ann", reason="looks right", now=world.clock.now)
    for _ in range(2):
        controller.look(world.clock.now)
    assert controller.backend.observe().models == {"old", "new"}, "it is loaded while it waits"
    assert world.weights() == [weight, weight]


def test_a_measure_that_gets_worse_rolls_back_a_canary_that_people_like(world: World, controller: Controller) -> None:
    rollout_id = begin(world, guardrails={"metrics": [{"metric": "length", "max_rise": 0.1}], "length_chars": 100})
    for _ in range(20):
        controller.look(world.clock.now)
        if world.row().ended_at is not None:
            break
        world.chat(40, likes=same, completions={"canary": "x" * 90, "stable": "x" * 10})
    assert world.row().phase == "rolled_back"
    with world.sessions() as session:
        reasons = [step.reason for step in list_transitions(session, rollout_id)]
    assert reasons[-1].startswith("guardrail: length rose by more than 0.1")
