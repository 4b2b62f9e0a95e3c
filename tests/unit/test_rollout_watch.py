"""Verdicts of a reverse watch, of guarded measures, and pauses that the controller makes by itself."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.errors import ConfigError, Conflict
from hone.records import TrafficPlan
from hone.rollout import FINAL, Action, ArmHealth, Phase, Unit, asked, parse_policy, watch_policy
from serving.looking import without_rows
from serving.rollout import decide, intended_plan
from serving.rollout_evidence import Evidence, Rollout
from serving.router import route
from serving.tally import fold, start_tally
from serving.traffic.backend import ObservedTraffic, RouterView
from tests.unit.test_rollout_decide import CALM, FAILING, POLICY, PROVEN, SLOW, START, rollout

WATCH = watch_policy(POLICY)
STRONG = math.log(20) + 0.01
GUARDED = parse_policy(
    {
        "alpha": 0.05,
        "block_s": 60,
        "guardrails": {
            "metrics": [{"metric": "refused", "max_rise": 0.02}, {"metric": "outcome:solved", "max_fall": 0.05}]
        },
        "stages": [{"weight": 0.5, "min_users": 10}],
    }
)


def watch(phase: Phase = Phase.CANARY, age_s: float = 10.0, reason: str = "ready") -> Rollout:
    begun = START - timedelta(seconds=age_s)
    weight = WATCH.stages[0].weight if phase in (Phase.CANARY, Phase.PAUSED) else 0.0
    return Rollout(UUID(int=2), phase, 0, weight, 3, reason, begun, begun)


SEEN = replace(CALM, canary_users=(40,), num_pairs=40)
REVERSE = [
    ("the former model gets its share", watch(Phase.CREATED), SEEN, ("canary", "ready")),
    ("calm waits", watch(), SEEN, None),
    ("a former model that is better comes back", watch(), replace(SEEN, log_up=STRONG), ("promoting", "worse")),
    (
        "it comes back while a person has paused, too",
        watch(Phase.PAUSED),
        replace(SEEN, log_up=STRONG),
        ("promoting", "worse"),
    ),
    ("and while frozen", watch(), replace(SEEN, log_up=STRONG, held=True), ("promoting", "worse")),
    ("not one that is gone", watch(), replace(SEEN, log_up=STRONG, ready=False, unready_s=5), None),
    (
        "a former model that is worse ends the watch",
        watch(),
        replace(SEEN, log_down=STRONG),
        ("rolling_back", "better"),
    ),
    (
        "a new model that fails more is undone",
        watch(),
        replace(SEEN, health={"canary": FAILING["stable"], "stable": FAILING["canary"]}),
        ("promoting", "errors"),
    ),
    (
        "a new model that is far slower is undone",
        watch(),
        replace(SEEN, health={"canary": SLOW["stable"], "stable": SLOW["canary"]}),
        ("promoting", "latency"),
    ),
    (
        "a former model that fails ends the watch",
        watch(),
        replace(SEEN, health=FAILING),
        ("rolling_back", "errors"),
    ),
    (
        "a guarded measure that the new model spoils undoes it",
        watch(),
        replace(SEEN, guards={"refused rose by more than 0.02": math.log(100) + 0.01}),
        ("promoting", "guardrail"),
    ),
    ("broken glass goes back", watch(), replace(SEEN, broken_glass=True), ("promoting", "break_glass")),
    ("broken glass that brought it back stays", watch(Phase.PROMOTING), replace(SEEN, broken_glass=True), "promoted"),
    (
        "a stable that a person moved ends the watch",
        watch(),
        replace(SEEN, stable_moved=True),
        ("rolling_back", "stable_moved"),
    ),
    ("the time that is over is the good end", watch(age_s=60), SEEN, ("rolling_back", "baked")),
    ("the end of the watch waits for the routers", watch(Phase.ROLLING_BACK), SEEN, None),
    ("the return ends when routers follow", watch(Phase.PROMOTING), SEEN, "promoted"),
]


@pytest.mark.parametrize(("given", "evidence", "expected"), [pytest.param(*case[1:], id=case[0]) for case in REVERSE])
def test_a_reverse_watch(given: Rollout, evidence: Evidence, expected: tuple[str, str] | str | None) -> None:
    change = decide(given, evidence, WATCH, START)
    if isinstance(expected, str):
        assert change is not None
        assert change.phase == expected
        return
    assert (change and (change.phase, change.reason.split(":")[0])) == expected


def test_a_watch_bets_at_the_risk_of_harm_on_a_small_share_for_the_bake_time() -> None:
    assert (WATCH.alpha, WATCH.horizon_s, WATCH.stages[0].weight) == (POLICY.alpha_harm, POLICY.bake_s, 0.05)
    assert WATCH.reverse
    assert WATCH.bake_s == 0, "a watch is not watched"


def test_rolling_a_watch_back_means_the_former_model_and_promoting_it_keeps_the_new_one() -> None:
    assert asked(Action.ROLLBACK, Phase.CANARY, 0, 0.05, reverse=True).phase is Phase.PROMOTING
    assert asked(Action.PROMOTE, Phase.CANARY, 0, 0.05, reverse=True).phase is Phase.ROLLING_BACK
    with pytest.raises(Conflict, match="cannot rollback a rollout that is promoted"):
        asked(Action.ROLLBACK, Phase.PROMOTED, 0, 0.0, reverse=True)


@pytest.mark.parametrize("expires_in_s", [60, -60])
def test_broken_glass_of_a_watch_sends_everybody_to_the_former_model(expires_in_s: float) -> None:
    plan = intended_plan(
        watch(),
        canary="old",
        stable="new",
        held=False,
        fence=1,
        expires_at=START + timedelta(seconds=expires_in_s),
        reverse=True,
    )
    users = [UUID(int=n) for n in range(50)]
    broken = frozenset({UUID(int=2)})
    assert {route(plan, user, key=b"", broken=broken, now=START).model_version for user in users} == {"old"}
    assert plan.canary_weight == 0.05
    alone = without_rows(ObservedTraffic((RouterView("a", True, plan),), frozenset(), broken), START)
    assert alone is not None
    assert (alone.stable, alone.canary) == ("old", None), "callers past the gateways, without a database, too"


def test_a_plan_asks_for_duels_only_while_the_canary_answers() -> None:
    def share(phase: Phase) -> float:
        plan = intended_plan(
            rollout(phase, 1), canary="new", stable="old", held=False, fence=1, expires_at=START, duel_share=0.5
        )
        return plan.duel_share

    assert [share(phase) for phase in (Phase.CANARY, Phase.PAUSED, Phase.PROMOTING)] == [0.5, 0.0, 0.0]


def test_broken_glass_of_a_rollout_still_sends_everybody_to_stable() -> None:
    plan = TrafficPlan(
        fence=1, stable="old", canary="new", canary_weight=0.5, rollout_id=UUID(int=1), stage=0, expires_at=START
    )
    broken = frozenset({UUID(int=1)})
    assert route(plan, UUID(int=9), key=b"", broken=broken, now=START).model_version == "old"


# Pauses and approval --------------------------------------------------------------------------------------------------


def verdict(given: Rollout, evidence: Evidence, **policy: Any) -> tuple[str, float, str] | None:
    change = decide(given, evidence, POLICY.model_copy(update=policy), START)
    return change and (change.phase, change.weight, change.reason.split(":")[0])


def test_a_router_off_its_plan_gets_it_twice_again_and_then_the_rollout_pauses_at_its_weight() -> None:
    canary = rollout(Phase.CANARY, 1)
    assert verdict(canary, replace(CALM, in_force=False, drift_looks=2)) is None
    assert verdict(canary, replace(CALM, in_force=False, drift_looks=3)) == ("paused", 0.25, "drift")


def test_feedback_that_stops_pauses_and_what_is_proven_or_harmful_goes_first() -> None:
    silent = replace(CALM, silent_s=POLICY.stale_s + 1)
    assert verdict(rollout(Phase.CANARY, 1), silent) == ("paused", 0.25, "stale")
    assert verdict(rollout(Phase.SHADOW), silent) is None, "shadow answers get no feedback"
    assert verdict(rollout(Phase.CANARY, 1), replace(PROVEN, silent_s=1e9)) == ("promoting", 0.0, "better")
    assert verdict(rollout(Phase.CANARY, 1), replace(silent, log_down=STRONG)) == ("rolling_back", 0.0, "harm")


def test_at_the_horizon_a_pause_of_the_controller_ends_and_one_of_a_person_waits() -> None:
    paused = rollout(Phase.PAUSED, 1, POLICY.horizon_s + 1)
    assert verdict(replace(paused, reason="stale: no rated user"), CALM) == ("rolling_back", 0.0, "inconclusive")
    assert verdict(replace(paused, reason="operator: a look first"), CALM) is None


def test_a_rollout_that_needs_approval_waits_for_it_however_ready_it_is() -> None:
    created = rollout(Phase.CREATED, age_s=1e5)
    assert verdict(created, CALM, approval=True) is None
    assert verdict(created, replace(CALM, approved=True), approval=True) == ("canary", 0.05, "ready")


def test_a_canary_within_its_margin_is_promoted_as_not_worse_and_said_so() -> None:
    found = verdict(rollout(Phase.CANARY, 1), PROVEN, non_inferiority=0.02)
    assert found == ("promoting", 0.0, "not_worse")


numbers = st.floats(-50, 50)
found = st.builds(
    Evidence,
    num_pairs=st.integers(0, 6000),
    log_up=numbers,
    log_down=numbers,
    canary_users=st.tuples(st.integers(0, 900)),
    sample_ratio_log_e=numbers,
    propensity_log_e=numbers,
    health=st.dictionaries(
        st.sampled_from(["canary", "stable"]),
        st.builds(ArmHealth, st.integers(0, 1000), st.integers(0, 400), st.none() | st.floats(0, 1e4)),
    ),
    ready=st.booleans(),
    unready_s=st.floats(0, 100),
    in_force=st.booleans(),
    withdrawn=st.booleans(),
    held=st.booleans(),
    broken_glass=st.booleans(),
    stable_moved=st.booleans(),
    guards=st.dictionaries(st.just("refused rose"), numbers),
    drift_looks=st.integers(0, 5),
    silent_s=st.floats(0, 1e6),
)


@given(st.builds(watch, st.sampled_from(list(Phase)), st.floats(0, 200)), found)
def test_whatever_is_known_a_watch_never_gives_more_than_its_share_and_ends(given: Rollout, known: Evidence) -> None:
    change = decide(given, known, WATCH, START)
    if change is None or given.phase in FINAL:
        assert change is None
        return
    assert change.weight <= WATCH.holdback
    if change.phase is Phase.PROMOTING:
        assert not known.stable_moved
        assert known.broken_glass or known.ready
    if given.phase is Phase.PROMOTING:
        assert change.phase in (Phase.PROMOTED, Phase.ROLLING_BACK)
    if change.phase is Phase.CANARY:
        assert not known.held and not known.broken_glass


# Guarded measures -----------------------------------------------------------------------------------------------------


def users(number: int, **of_canary: float) -> list[Unit]:
    """Pairs of a stable and a canary user; `of_canary` are the canary's measures, stable's are their opposites."""
    of_stable = {name: 1.0 - value for name, value in of_canary.items()}
    made = []
    for n in range(number):
        made.append(Unit(2 * n + 1, "stable", 0, None, START, of_stable))
        made.append(Unit(2 * n + 2, "canary", 0, None, START, of_canary))
    return made


def guards_of(units: list[Unit]) -> dict[str, float]:
    return {guard.guard.complaint: guard.log_e() for guard in fold(start_tally(GUARDED), units, GUARDED).guards}


def test_a_measure_that_gets_worse_is_found_and_one_that_improves_or_is_unknown_is_not() -> None:
    worse = guards_of(users(60, refused=1.0))
    assert worse["refused rose by more than 0.02"] > math.log(100)
    assert worse["outcome:solved fell by more than 0.05"] == 0.0
    better = guards_of(users(60, **{"refused": 0.0, "outcome:solved": 1.0}))
    assert max(better.values()) < 0
    assert guards_of(users(60, **{"outcome:solved": 0.0}))["outcome:solved fell by more than 0.05"] > math.log(100)


def test_in_a_reverse_watch_the_new_model_is_the_stable_arm_of_a_measure() -> None:
    reverse = watch_policy(GUARDED.model_copy(update={"holdback": 0.5, "bake_s": 60.0}))
    tally = fold(start_tally(reverse), users(60, refused=0.0), reverse)
    assert tally.guards[0].log_e() > math.log(100)


def test_a_guard_fires_at_its_own_level_and_names_the_measure() -> None:
    evidence = replace(CALM, guards={"length rose by more than 0.1": math.log(100) + 0.01})
    change = decide(rollout(Phase.CANARY), evidence, POLICY, START)
    assert change is not None
    assert change.reason.startswith("guardrail: length rose by more than 0.1: e-value 101 of 100")
    assert verdict(rollout(Phase.CANARY), replace(CALM, guards={"length rose": math.log(99)})) is None


@pytest.mark.parametrize(
    "guard",
    [
        pytest.param({"metric": "refused"}, id="no margin"),
        pytest.param({"metric": "refused", "max_rise": 0.1, "max_fall": 0.1}, id="two margins"),
        pytest.param({"metric": "mood", "max_rise": 0.1}, id="an unknown measure"),
    ],
)
def test_a_guard_that_guards_nothing_is_refused(guard: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"guardrails\.metrics\.0"):
        parse_policy({"stages": [{"weight": 0.5, "min_users": 1}], "guardrails": {"metrics": [guard]}})


def test_the_new_rated_user_is_remembered_for_the_look_at_stale_feedback() -> None:
    later = datetime(2026, 3, 2, 10, tzinfo=UTC)
    units = [Unit(1, "stable", 0, 1.0, START), Unit(2, "canary", 0, 0.0, later), Unit(3, "canary", 0, None, later)]
    assert fold(start_tally(GUARDED), units, GUARDED).last_rated_at == later
    assert fold(start_tally(GUARDED), units[2:], GUARDED).last_rated_at is None
