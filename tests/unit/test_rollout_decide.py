"""Each row: a rollout, what is known, and the verdict."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.errors import ConfigError, Conflict
from hone.rollout import FINAL, Action, ArmHealth, Phase, Policy, asked, parse_policy
from serving.rollout import decide, intended_plan
from serving.rollout_evidence import Evidence, Rollout

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
POLICY = parse_policy(
    {
        "min_canary_users": 250,
        "horizon_pairs": 5000,
        "horizon_s": 86_400,
        "bake_s": 60,
        "stages": [
            {"weight": 0.05, "min_users": 100, "min_dwell_s": 600},
            {"weight": 0.25, "min_users": 200},
            {"weight": 0.5, "min_users": 400},
        ],
    }
)
SHADOWED = POLICY.model_copy(update={"shadow_s": 300.0})
CALM = Evidence(
    num_pairs=0,
    log_up=0.0,
    log_down=0.0,
    canary_users=(0, 0, 0),
    sample_ratio_log_e=0.0,
    propensity_log_e=0.0,
    health={},
    ready=True,
    unready_s=0.0,
    in_force=True,
    withdrawn=False,
)
PROVEN = replace(CALM, log_up=math.log(20) + 0.01, num_pairs=260, canary_users=(100, 160, 90))
FAILING = {"canary": ArmHealth(100, 30, 80.0), "stable": ArmHealth(300, 3, 80.0)}
SLOW = {"canary": ArmHealth(100, 0, 400.0), "stable": ArmHealth(300, 0, 100.0)}
SHADOW_SEEN = {"shadow": ArmHealth(100, 0, 90.0)}


def rollout(phase: Phase, stage: int = 0, age_s: float = 1000.0) -> Rollout:
    stage = 0 if phase in (Phase.CREATED, Phase.SHADOW) else stage
    weight = POLICY.stages[stage].weight if phase in (Phase.CANARY, Phase.PAUSED) else 0.0
    begun = START - timedelta(seconds=age_s)
    return Rollout(UUID(int=1), phase, stage, weight, 3, "said before", begun, begun)


CASES = [
    ("a loaded canary gets its first stage", rollout(Phase.CREATED), CALM, ("canary", 0, 0.05, "ready")),
    ("a canary that is still loading waits", rollout(Phase.CREATED, 0, 10), replace(CALM, ready=False), None),
    (
        "a canary that never loads is rolled back",
        rollout(Phase.CREATED, 0, 901),
        replace(CALM, ready=False),
        ("rolling_back", 0, 0.0, "not_ready"),
    ),
    (
        "users, time and readiness advance one stage",
        rollout(Phase.CANARY),
        replace(CALM, canary_users=(100, 0, 0)),
        ("canary", 1, 0.25, "advance"),
    ),
    ("too few users wait", rollout(Phase.CANARY), replace(CALM, canary_users=(99, 0, 0)), None),
    (
        "too short a time waits",
        rollout(Phase.CANARY, 0, 599),
        replace(CALM, canary_users=(500, 0, 0)),
        None,
    ),
    (
        "a plan that is not in force everywhere waits",
        rollout(Phase.CANARY),
        replace(CALM, canary_users=(500, 0, 0), in_force=False),
        None,
    ),
    ("no data at all waits", rollout(Phase.CANARY), CALM, None),
    ("the last stage waits for the test", rollout(Phase.CANARY, 2), replace(CALM, canary_users=(100, 200, 900)), None),
    ("proof in a wide stage promotes", rollout(Phase.CANARY, 1), PROVEN, ("promoting", 1, 0.0, "better")),
    ("proof in a narrow stage only advances", rollout(Phase.CANARY), PROVEN, ("canary", 1, 0.25, "advance")),
    (
        "proof by too few users in wide stages waits",
        rollout(Phase.CANARY, 2),
        replace(PROVEN, canary_users=(9000, 160, 89)),
        None,
    ),
    (
        "wealth just below the target waits",
        rollout(Phase.CANARY, 2),
        replace(PROVEN, log_up=math.log(20) - 0.01),
        None,
    ),
    (
        "proof while arms vote unalike waits",
        rollout(Phase.CANARY, 2),
        replace(PROVEN, propensity_log_e=math.log(1000) + 0.01),
        None,
    ),
    ("proof while a router does not follow waits", rollout(Phase.CANARY, 2), replace(PROVEN, in_force=False), None),
    (
        "proof with broken sample ratio is rolled back",
        rollout(Phase.CANARY, 2),
        replace(PROVEN, sample_ratio_log_e=math.log(1000) + 0.01),
        ("rolling_back", 2, 0.0, "sample_ratio"),
    ),
    (
        "harm is rolled back",
        rollout(Phase.CANARY),
        replace(CALM, log_down=math.log(20) + 0.01),
        ("rolling_back", 0, 0.0, "harm"),
    ),
    (
        "harm is rolled back while paused",
        rollout(Phase.PAUSED),
        replace(CALM, log_down=9.0),
        ("rolling_back", 0, 0.0, "harm"),
    ),
    (
        "failing answers are rolled back",
        rollout(Phase.CANARY),
        replace(CALM, health=FAILING),
        ("rolling_back", 0, 0.0, "errors"),
    ),
    (
        "failures as frequent as stable's are no reason",
        rollout(Phase.CANARY),
        replace(CALM, health=FAILING | {"stable": ArmHealth(300, 90, 80.0)}),
        None,
    ),
    (
        "a slow canary is rolled back",
        rollout(Phase.CANARY),
        replace(CALM, health=SLOW),
        ("rolling_back", 0, 0.0, "latency"),
    ),
    (
        "a slow canary of few answers waits",
        rollout(Phase.CANARY),
        replace(CALM, health=SLOW | {"canary": ArmHealth(99, 0, 400.0)}),
        None,
    ),
    (
        "a canary that stays away is rolled back",
        rollout(Phase.CANARY),
        replace(CALM, ready=False, unready_s=31),
        ("rolling_back", 0, 0.0, "not_ready"),
    ),
    (
        "a canary that is away for a moment does not advance",
        rollout(Phase.CANARY),
        replace(CALM, ready=False, unready_s=5, canary_users=(500, 0, 0)),
        None,
    ),
    (
        "break-glass wins over proof",
        rollout(Phase.CANARY, 2),
        replace(PROVEN, broken_glass=True),
        ("rolling_back", 2, 0.0, "break_glass"),
    ),
    (
        "another stable model ends the comparison",
        rollout(Phase.CANARY, 2),
        replace(PROVEN, stable_moved=True),
        ("rolling_back", 2, 0.0, "stable_moved"),
    ),
    (
        "undecided at the horizon of pairs is rolled back",
        rollout(Phase.CANARY, 2),
        replace(CALM, num_pairs=5000, log_up=2.9, canary_users=(100, 200, 4700)),
        ("rolling_back", 2, 0.0, "inconclusive"),
    ),
    (
        "undecided at the horizon of time is rolled back, also without any data",
        rollout(Phase.CANARY, 0, 86_400),
        CALM,
        ("rolling_back", 0, 0.0, "inconclusive"),
    ),
    ("proof at the horizon still promotes", rollout(Phase.CANARY, 2, 90_000), PROVEN, ("promoting", 2, 0.0, "better")),
    ("a paused rollout waits, whatever is proven", rollout(Phase.PAUSED, 2), PROVEN, None),
    ("a paused rollout outlives its horizon", rollout(Phase.PAUSED, 2, 90_000), CALM, None),
    ("a frozen platform waits", rollout(Phase.CANARY, 2), replace(PROVEN, held=True), None),
    ("a frozen platform starts nothing", rollout(Phase.CREATED), replace(CALM, held=True), None),
    ("promoting waits for the routers", rollout(Phase.PROMOTING, 2), replace(PROVEN, in_force=False), None),
    ("promoting ends promoted", rollout(Phase.PROMOTING, 2), PROVEN, ("promoted", 2, 0.0, "said before")),
    (
        "a new stable that goes away before routers follow is rolled back",
        rollout(Phase.PROMOTING, 2, 40),
        replace(PROVEN, ready=False, unready_s=31),
        ("rolling_back", 2, 0.0, "not_ready"),
    ),
    ("rolling back waits for the routers", rollout(Phase.ROLLING_BACK), PROVEN, None),
    (
        "rolling back ends rolled back",
        rollout(Phase.ROLLING_BACK),
        replace(CALM, withdrawn=True),
        ("rolled_back", 0, 0.0, "said before"),
    ),
    ("promoted is final", rollout(Phase.PROMOTED), replace(PROVEN, log_down=99, withdrawn=True), None),
    ("rolled back is final", rollout(Phase.ROLLED_BACK), replace(PROVEN, withdrawn=True), None),
]


@pytest.mark.parametrize(("given", "evidence", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_decide(given: Rollout, evidence: Evidence, expected: tuple[str, int, float, str] | None) -> None:
    change = decide(given, evidence, POLICY, START)
    found = change and (change.phase, change.stage, change.weight, change.reason.split(":")[0])
    assert found == expected


def test_shadow_comes_first_where_the_policy_asks_for_it() -> None:
    change = decide(rollout(Phase.CREATED), CALM, SHADOWED, START)
    assert change is not None
    assert (change.phase, change.weight) == (Phase.SHADOW, 0.0)


@pytest.mark.parametrize(
    ("age_s", "health", "phase"),
    [
        pytest.param(299, SHADOW_SEEN, None, id="too short a time waits"),
        pytest.param(300, {}, None, id="shadow answers that nobody stored wait"),
        pytest.param(300, SHADOW_SEEN, Phase.CANARY, id="time and answers begin the first stage"),
    ],
)
def test_shadow_ends(age_s: float, health: dict[str, ArmHealth], phase: Phase | None) -> None:
    change = decide(rollout(Phase.SHADOW, 0, age_s), replace(CALM, health=health), SHADOWED, START)
    assert (change and change.phase) == phase


numbers = st.floats(-50, 50)
healths = st.builds(ArmHealth, st.integers(0, 1000), st.integers(0, 400), st.none() | st.floats(0, 1e4))
evidences = st.builds(
    Evidence,
    num_pairs=st.integers(0, 6000),
    log_up=numbers,
    log_down=numbers,
    canary_users=st.tuples(*[st.integers(0, 900)] * 3),
    sample_ratio_log_e=numbers,
    propensity_log_e=numbers,
    health=st.dictionaries(st.sampled_from(["canary", "stable", "shadow"]), healths),
    ready=st.booleans(),
    unready_s=st.floats(0, 100),
    in_force=st.booleans(),
    withdrawn=st.booleans(),
    held=st.booleans(),
    broken_glass=st.booleans(),
    stable_moved=st.booleans(),
)
rollouts = st.builds(rollout, st.sampled_from(list(Phase)), st.integers(0, 2), st.floats(0, 2e5))
policies = st.sampled_from([POLICY, SHADOWED])


@given(rollouts, evidences, policies)
def test_whatever_is_known_a_verdict_keeps_the_invariants(given: Rollout, evidence: Evidence, policy: Policy) -> None:
    change = decide(given, evidence, policy, START)
    if given.phase in FINAL:
        assert change is None
        return
    if change is None:
        return
    forward = change.phase in (Phase.SHADOW, Phase.CANARY, Phase.PROMOTING)
    assert change.weight in (0.0, policy.stages[change.stage].weight)
    assert change.phase is Phase.CANARY or change.weight == 0.0
    assert change.stage - given.stage in (0, 1)
    if forward:
        assert evidence.ready
        assert not (evidence.held or evidence.broken_glass or evidence.stable_moved)
        assert given.phase is not Phase.PAUSED
    if change.phase is Phase.PROMOTING:
        assert evidence.log_up >= math.log(20)
        assert given.phase is Phase.CANARY
        assert given.weight >= 0.25
    if change.phase is Phase.ROLLED_BACK:
        assert given.phase is Phase.ROLLING_BACK


@given(rollouts, st.booleans(), st.integers(0, 1 << 40))
def test_a_plan_never_gives_the_canary_more_than_its_stage(given: Rollout, held: bool, fence: int) -> None:
    plan = intended_plan(given, canary="new", stable="old", held=held, fence=fence, expires_at=START)
    assert plan.stable == "old"
    assert plan.canary_weight <= POLICY.stages[given.stage].weight
    if held or given.phase in (*FINAL, Phase.ROLLING_BACK, Phase.PROMOTING, Phase.CREATED):
        assert (plan.canary, plan.canary_weight, plan.shadow, plan.rollout_id) == (None, 0.0, False, None)


def test_a_plan_of_a_canary_stage_names_everything_that_a_router_needs() -> None:
    plan = intended_plan(rollout(Phase.CANARY, 1), canary="new", stable="old", held=False, fence=7, expires_at=START)
    assert (plan.canary, plan.canary_weight, plan.stage, plan.rollout_id) == ("new", 0.25, 1, UUID(int=1))


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("phase", sorted(FINAL))
def test_nobody_moves_a_rollout_that_has_ended(action: Action, phase: Phase) -> None:
    with pytest.raises(Conflict, match=f"cannot {action} a rollout that is {phase}"):
        asked(action, phase, 1, 0.0)


def test_a_rollout_paused_in_shadow_resumes_in_shadow() -> None:
    assert asked(Action.RESUME, Phase.PAUSED, 0, 0.0).phase is Phase.SHADOW
    assert asked(Action.RESUME, Phase.PAUSED, 1, 0.25).phase is Phase.CANARY


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"stages": []}, "stages", id="no stage"),
        pytest.param({"stages": [{"weight": 0.05, "min_users": 1}]}, "below promote_weight", id="it can never promote"),
        pytest.param({"stages": [{"weight": 0.6, "min_users": 1}]}, "stages.0.weight", id="more than half"),
        pytest.param(
            {"stages": [{"weight": 0.5}]},
            "stages.0.min_users is missing: set it, see docs/rollout.md",
            id="a missing key",
        ),
        pytest.param({"stagse": []}, "stagse = .* did you mean stages", id="an unknown key"),
        pytest.param({"goal": "likes", "stages": [{"weight": 0.5, "min_users": 1}]}, "goal", id="an unknown goal"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_policy(values)
