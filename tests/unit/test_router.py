"""Who is answered by which model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.errors import Conflict
from hone.records import Track, TrafficPlan
from serving.router import Decision, Regenerate, bucket, open_router, route

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROLLOUT = UUID(int=77)
KEY = b"k" * 32
NONE: frozenset[UUID] = frozenset()
weights = st.floats(0, 1)


def plan(
    weight: float, *, fence: int = 1, shadow: bool = False, rollout: UUID = ROLLOUT, duels: float = 0
) -> TrafficPlan:
    return TrafficPlan(
        fence=fence,
        stable="old",
        canary="new",
        canary_weight=weight,
        shadow=shadow,
        rollout_id=rollout,
        stage=2,
        duel_share=duels,
        expires_at=NOW + timedelta(minutes=15),
    )


@given(st.uuids(), weights, weights)
def test_a_user_of_the_canary_keeps_it_while_the_weight_grows(user: UUID, one: float, other: float) -> None:
    low, high = sorted((one, other))
    before = route(plan(low), user, key=KEY, broken=NONE, now=NOW)
    after = route(plan(high), user, key=KEY, broken=NONE, now=NOW)
    assert before.track is Track.STABLE or after.track is Track.CANARY


@pytest.mark.parametrize("weight", [0.01, 0.25, 0.5])
def test_the_canary_answers_the_share_of_users_that_the_plan_says(weight: float) -> None:
    users = [UUID(int=i) for i in range(20_000)]
    share = sum(bucket(KEY, ROLLOUT, user) < weight for user in users) / len(users)
    assert share == pytest.approx(weight, abs=4 * (weight * (1 - weight) / len(users)) ** 0.5)


def test_another_rollout_tries_other_users() -> None:
    users = [UUID(int=i) for i in range(2000)]
    both = sum(bucket(KEY, ROLLOUT, user) < 0.5 and bucket(KEY, UUID(int=78), user) < 0.5 for user in users) / len(
        users
    )
    assert both == pytest.approx(0.25, abs=0.05)


@given(st.uuids(), weights)
def test_the_propensity_is_the_chance_of_the_arm_that_was_chosen(user: UUID, weight: float) -> None:
    decision = route(plan(weight), user, key=KEY, broken=NONE, now=NOW)
    assert decision.propensity == (weight if decision.track is Track.CANARY else 1 - weight)
    assert (decision.rollout_id, decision.stage) == (ROLLOUT, 2)


def test_the_canary_falls_back_to_stable_and_stable_to_nobody() -> None:
    assert route(plan(1.0), UUID(int=1), key=KEY, broken=NONE, now=NOW).fallback == "old"
    assert route(plan(0.0), UUID(int=1), key=KEY, broken=NONE, now=NOW).fallback is None


def test_a_plan_past_its_time_serves_stable_outside_of_the_rollout() -> None:
    late = route(plan(1.0, shadow=True), UUID(int=1), key=KEY, broken=NONE, now=NOW + timedelta(hours=1))
    assert (late.track, late.model_version, late.rollout_id, late.shadow) == (Track.STABLE, "old", None, None)


def test_shadow_copies_go_to_the_canary_only_for_requests_that_stable_answers() -> None:
    assert route(plan(0.0, shadow=True), UUID(int=1), key=KEY, broken=NONE, now=NOW).shadow == "new"
    assert route(plan(1.0, shadow=True), UUID(int=1), key=KEY, broken=NONE, now=NOW).shadow is None


def test_broken_glass_wins_over_every_later_plan_and_survives_a_restart(tmp_path: Path) -> None:
    router = open_router(tmp_path, KEY, "old", NOW)
    router.take(plan(1.0), NOW)
    router.break_glass(ROLLOUT)
    router.take(plan(1.0, fence=9), NOW)
    reopened = open_router(tmp_path, KEY, "old", NOW)
    reopened.take(plan(1.0, fence=10), NOW)
    for each in (router, reopened):
        decision = each.decide(UUID(int=1), NOW)
        assert decision is not None
        assert decision.track is Track.STABLE
        assert each.weight(NOW) == 0.0


def test_broken_glass_of_one_rollout_leaves_the_next_one_alone(tmp_path: Path) -> None:
    router = open_router(tmp_path, KEY, "old", NOW)
    router.break_glass(ROLLOUT)
    router.take(plan(1.0, rollout=UUID(int=78)), NOW)
    decision = router.decide(UUID(int=1), NOW)
    assert decision is not None
    assert decision.track is Track.CANARY


def test_an_older_fence_is_refused_and_the_same_fence_renews(tmp_path: Path) -> None:
    router = open_router(tmp_path, KEY, None, NOW)
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
        pytest.param({"duel_share": 2.0}, "duel_share", id="a share of duels above one"),
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
        open_router(tmp_path, KEY, None, NOW).take(TrafficPlan(**(fields | broken)), NOW)


def test_without_a_plan_nobody_is_answered(tmp_path: Path) -> None:
    assert open_router(tmp_path, KEY, None, NOW).decide(UUID(int=1), NOW) is None


def regenerates(weight: float, duels: float, *, number: int = 20_000) -> list[tuple[Decision, Decision]]:
    """Each user's first answer of a turn and what answers its regenerate."""
    split, found = plan(weight, duels=duels), []
    for i in range(number):
        first = route(split, UUID(int=i), key=KEY, broken=NONE, now=NOW)
        again = Regenerate(UUID(int=i + 10**6), ROLLOUT, first.track)
        found.append((first, route(split, UUID(int=i), key=KEY, broken=NONE, now=NOW, again=again)))
    return found


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


@pytest.mark.parametrize("weight", [0.25, 0.4, 0.5, 0.75])
def test_duels_are_as_often_in_one_order_as_in_the_other_and_leave_the_canary_its_weight(weight: float) -> None:
    pairs = regenerates(weight, 0.5)
    duels = [(first, again) for first, again in pairs if again.duel]
    error = 4 * (0.25 / len(duels)) ** 0.5
    assert len(duels) > 1000
    assert all(first.track is not again.track for first, again in duels)
    assert share([first.track is Track.STABLE for first, _ in duels]) == pytest.approx(0.5, abs=error)
    assert share([again.track is Track.CANARY for _, again in pairs]) == pytest.approx(weight, abs=0.015)


@pytest.mark.parametrize("weight", [0.25, 0.5])
def test_the_propensity_of_a_duel_is_how_often_such_a_regenerate_becomes_one(weight: float) -> None:
    pairs = regenerates(weight, 0.5)
    for track in (Track.STABLE, Track.CANARY):
        again = [again for first, again in pairs if first.track is track]
        (propensity,) = {decision.propensity for decision in again if decision.duel}
        assert share([decision.duel for decision in again]) == pytest.approx(propensity, abs=0.03)


@pytest.mark.parametrize(("weight", "duels"), [(0.24, 1.0), (0.5, 0.0), (1.0, 1.0)])
def test_there_are_no_duels_at_small_weights_nor_unless_the_plan_asks_for_them(weight: float, duels: float) -> None:
    assert not any(again.duel for _, again in regenerates(weight, duels, number=500))


def test_a_regenerate_of_another_rollouts_answer_or_of_another_arms_is_no_duel() -> None:
    split = plan(0.5, duels=1.0)
    for i in range(200):
        own = route(split, UUID(int=i), key=KEY, broken=NONE, now=NOW)
        elsewhere = Track.STABLE if own.track is Track.CANARY else Track.CANARY
        for rollout, track in ((UUID(int=78), own.track), (ROLLOUT, elsewhere)):
            again = Regenerate(UUID(int=i), rollout, track)
            assert route(split, UUID(int=i), key=KEY, broken=NONE, now=NOW, again=again) == own


def test_who_does_not_know_the_key_cannot_tell_the_arm() -> None:
    users = [UUID(int=i) for i in range(2000)]
    same = share([(bucket(KEY, ROLLOUT, user) < 0.5) == (bucket(b"guess", ROLLOUT, user) < 0.5) for user in users])
    assert same == pytest.approx(0.5, abs=0.05)
