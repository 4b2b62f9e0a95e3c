"""Who is answered by which model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.errors import Conflict
from hone.records import Track, TrafficPlan
from serving.router import bucket, open_router, route

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROLLOUT = UUID(int=77)
NONE: frozenset[UUID] = frozenset()
weights = st.floats(0, 1)


def plan(weight: float, *, fence: int = 1, shadow: bool = False, rollout: UUID = ROLLOUT) -> TrafficPlan:
    return TrafficPlan(
        fence=fence,
        stable="old",
        canary="new",
        canary_weight=weight,
        shadow=shadow,
        rollout_id=rollout,
        stage=2,
        expires_at=NOW + timedelta(minutes=15),
    )


@given(st.uuids(), weights, weights)
def test_a_user_of_the_canary_keeps_it_while_the_weight_grows(user: UUID, one: float, other: float) -> None:
    low, high = sorted((one, other))
    before = route(plan(low), user, broken=NONE, now=NOW)
    after = route(plan(high), user, broken=NONE, now=NOW)
    assert before.track is Track.STABLE or after.track is Track.CANARY


@pytest.mark.parametrize("weight", [0.01, 0.25, 0.5])
def test_the_canary_answers_the_share_of_users_that_the_plan_says(weight: float) -> None:
    users = [UUID(int=i) for i in range(20_000)]
    share = sum(bucket(ROLLOUT, user) < weight for user in users) / len(users)
    assert share == pytest.approx(weight, abs=4 * (weight * (1 - weight) / len(users)) ** 0.5)


def test_another_rollout_tries_other_users() -> None:
    users = [UUID(int=i) for i in range(2000)]
    both = sum(bucket(ROLLOUT, user) < 0.5 and bucket(UUID(int=78), user) < 0.5 for user in users) / len(users)
    assert both == pytest.approx(0.25, abs=0.05)


@given(st.uuids(), weights)
def test_the_propensity_is_the_chance_of_the_arm_that_was_chosen(user: UUID, weight: float) -> None:
    decision = route(plan(weight), user, broken=NONE, now=NOW)
    assert decision.propensity == (weight if decision.track is Track.CANARY else 1 - weight)
    assert (decision.rollout_id, decision.stage) == (ROLLOUT, 2)


def test_the_canary_falls_back_to_stable_and_stable_to_nobody() -> None:
    assert route(plan(1.0), UUID(int=1), broken=NONE, now=NOW).fallback == "old"
    assert route(plan(0.0), UUID(int=1), broken=NONE, now=NOW).fallback is None


def test_a_plan_past_its_time_serves_stable_outside_of_the_rollout() -> None:
    late = route(plan(1.0, shadow=True), UUID(int=1), broken=NONE, now=NOW + timedelta(hours=1))
    assert (late.track, late.model_version, late.rollout_id, late.shadow) == (Track.STABLE, "old", None, None)


def test_shadow_copies_go_to_the_canary_only_for_requests_that_stable_answers() -> None:
    assert route(plan(0.0, shadow=True), UUID(int=1), broken=NONE, now=NOW).shadow == "new"
    assert route(plan(1.0, shadow=True), UUID(int=1), broken=NONE, now=NOW).shadow is None


def test_broken_glass_wins_over_every_later_plan_and_survives_a_restart(tmp_path: Path) -> None:
    router = open_router(tmp_path, "old", NOW)
    router.take(plan(1.0), NOW)
    router.break_glass(ROLLOUT)
    router.take(plan(1.0, fence=9), NOW)
    reopened = open_router(tmp_path, "old", NOW)
    reopened.take(plan(1.0, fence=10), NOW)
    for each in (router, reopened):
        decision = each.decide(UUID(int=1), NOW)
        assert decision is not None
        assert decision.track is Track.STABLE
        assert each.weight(NOW) == 0.0


def test_broken_glass_of_one_rollout_leaves_the_next_one_alone(tmp_path: Path) -> None:
    router = open_router(tmp_path, "old", NOW)
    router.break_glass(ROLLOUT)
    router.take(plan(1.0, rollout=UUID(int=78)), NOW)
    decision = router.decide(UUID(int=1), NOW)
    assert decision is not None
    assert decision.track is Track.CANARY


def test_an_older_fence_is_refused_and_the_same_fence_renews(tmp_path: Path) -> None:
    router = open_router(tmp_path, None, NOW)
    router.take(plan(0.5, fence=4), NOW)
    router.take(plan(0.25, fence=4), NOW)
    with pytest.raises(Conflict, match="fence 3 is older than 4"):
        router.take(plan(1.0, fence=3), NOW)
    assert router.weight(NOW) == 0.25


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        pytest.param({"canary_weight": 1.5}, "canary_weight", id="a weight above one"),
        pytest.param({"canary_weight": float("nan")}, "canary_weight", id="a weight that is no number"),
        pytest.param({"canary": None}, "canary", id="weight without a canary"),
        pytest.param({"rollout_id": None}, "rollout_id", id="weight without a rollout"),
        pytest.param({"expires_at": NOW.replace(tzinfo=None)}, "expires_at", id="a time without a zone"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(tmp_path: Path, broken: dict[str, object], names: str) -> None:
    fields: dict[str, object] = {
        "fence": 1,
        "stable": "old",
        "canary": "new",
        "canary_weight": 0.5,
        "rollout_id": ROLLOUT,
        "expires_at": NOW,
    }
    with pytest.raises(ValueError, match=names):
        open_router(tmp_path, None, NOW).take(TrafficPlan(**(fields | broken)), NOW)


def test_without_a_plan_nobody_is_answered(tmp_path: Path) -> None:
    assert open_router(tmp_path, None, NOW).decide(UUID(int=1), NOW) is None
