from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, Conflict, Fenced
from hone.rollout import Phase, Policy, Transition, parse_policy
from hone.store.audit import first_broken
from hone.store.engine import make_engine, make_sessions, migrate
from hone.store.leases import release_lease, renew_lease, require_lease, take_lease
from hone.store.models import get_alias
from hone.store.rollout_units import arm_health, close_units, count_assignments, list_units
from hone.store.rollouts import (
    count_transitions,
    get_rollout,
    list_transitions,
    live_rollout,
    mark_applied,
    request_action,
    transition,
)
from hone.store.switches import FREEZE, is_on, set_switch
from hone.store.tables import AuditRow, RolloutOutcomeRow
from tests.support.rollouts import (
    POLICY,
    SPACE,
    START,
    add_answer,
    add_models,
    add_thumb,
    at,
    enter_canary,
    start_rollout,
)

RULES: Policy = parse_policy(POLICY)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_sessions(engine)


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    with sessions() as session:
        add_models(session)
        yield session


def step(session: Session, rollout_id: UUID, epoch: int, phase: Phase, **fields: Any) -> int:
    change = Transition(phase, fields.pop("stage", 0), fields.pop("weight", 0.0), "because")
    return transition(session, rollout_id, epoch=epoch, change=change, actor="controller", now=at(5), **fields)


# Start ---------------------------------------------------------------------------------------------------------------


def test_a_rollout_starts_with_its_policy_frozen_in_the_row(session: Session) -> None:
    row = get_rollout(session, start_rollout(session))
    assert (row.phase, row.epoch, row.weight) == ("created", 0, 0.0)
    assert parse_policy(row.policy) == RULES
    assert row.policy_hash == RULES.digest()


@pytest.mark.parametrize("status", ["candidate", "rejected", "inconclusive", "imported"])
def test_a_model_that_did_not_pass_its_gates_meets_no_traffic(sessions: sessionmaker[Session], status: str) -> None:
    with sessions() as session:
        add_models(session, canary_status=status)
        with pytest.raises(Conflict, match=f"new is {status}: it must pass its gates"):
            start_rollout(session)


def test_an_overridden_model_may_be_rolled_out(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        add_models(session, canary_status="overridden")
        assert live_rollout(session) is None
        assert start_rollout(session)


def test_an_unknown_model_is_refused(session: Session) -> None:
    with pytest.raises(Conflict, match="not registered"):
        start_rollout(session, canary_version="ghost")


def test_a_second_live_rollout_is_refused(session: Session) -> None:
    first = start_rollout(session)
    with pytest.raises(Conflict, match=f"rollout {first} is live"):
        start_rollout(session)


def test_no_rollout_starts_while_the_platform_is_frozen(session: Session) -> None:
    set_switch(session, FREEZE, True, actor="ann", reason="incident", now=START)
    with pytest.raises(Conflict, match="frozen"):
        start_rollout(session)
    set_switch(session, FREEZE, False, actor="ann", reason="over", now=START)
    assert not is_on(session, FREEZE)
    assert start_rollout(session)


def test_a_rollout_against_another_model_than_stable_is_refused(session: Session) -> None:
    session.execute(text("UPDATE model_alias SET model_version = 'new'"))
    session.execute(text("UPDATE model_version SET status = 'passed'"))
    with pytest.raises(Conflict, match="stable is new, not ghost"):
        start_rollout(session, canary_version="old", stable_version="ghost")


def test_a_wrong_policy_is_refused_with_its_key(session: Session) -> None:
    with pytest.raises(ConfigError, match="stages"):
        start_rollout(session, policy=POLICY | {"stages": [{"weight": 0.5, "min_users": 1}] * 2})


# Transitions ---------------------------------------------------------------------------------------------------------


def test_of_two_writers_with_one_epoch_only_one_wins(session: Session) -> None:
    rollout_id = start_rollout(session)
    assert enter_canary(session, rollout_id) == 1
    with pytest.raises(Conflict, match="at epoch 1, not live at 0"):
        step(session, rollout_id, 0, Phase.ROLLING_BACK)
    assert [row.epoch for row in list_transitions(session, rollout_id)] == [1]


def test_promoting_moves_stable_in_the_same_transaction_and_rolling_back_moves_it_back(session: Session) -> None:
    rollout_id = start_rollout(session)
    enter_canary(session, rollout_id)
    step(session, rollout_id, 1, Phase.PROMOTING)
    alias = get_alias(session, "stable")
    assert alias is not None
    assert (alias.model_version, alias.generation) == ("new", 2)
    step(session, rollout_id, 2, Phase.ROLLING_BACK)
    alias = get_alias(session, "stable")
    assert alias is not None
    assert (alias.model_version, alias.generation) == ("old", 3)


def test_a_promotion_is_refused_when_stable_was_moved_meanwhile(session: Session) -> None:
    rollout_id = start_rollout(session)
    enter_canary(session, rollout_id)
    session.execute(text("UPDATE model_alias SET model_version = 'new', generation = 7"))
    with pytest.raises(Conflict, match="stable is new, not old"):
        step(session, rollout_id, 1, Phase.PROMOTING)


@pytest.mark.parametrize("final", [Phase.ROLLED_BACK, Phase.PROMOTED])
def test_a_final_phase_takes_no_further_transition(session: Session, final: Phase) -> None:
    rollout_id = start_rollout(session)
    step(session, rollout_id, 0, final)
    assert get_rollout(session, rollout_id).ended_at == at(5)
    with pytest.raises(Conflict, match=f"is {final}"):
        step(session, rollout_id, 1, Phase.CANARY)


def test_the_applied_epoch_is_marked_once_and_only_for_the_epoch_in_force(session: Session) -> None:
    rollout_id = start_rollout(session)
    enter_canary(session, rollout_id)
    mark_applied(session, rollout_id, epoch=0, now=at(1))
    assert list_transitions(session, rollout_id)[0].applied_at is None
    mark_applied(session, rollout_id, epoch=1, now=at(2))
    mark_applied(session, rollout_id, epoch=1, now=at(3))
    session.expire_all()
    assert list_transitions(session, rollout_id)[0].applied_at == at(2)
    assert get_rollout(session, rollout_id).applied_epoch == 1
    assert count_transitions(session) == 1


def test_writers_at_once_make_one_rollout_and_one_transition(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_models(session)

    def start(_: int) -> UUID | None:
        try:
            with sessions.begin() as session:
                return start_rollout(session)
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        (rollout_id,) = (found for found in pool.map(start, range(4)) if found)

        def move(_: int) -> int | None:
            try:
                with sessions.begin() as session:
                    return enter_canary(session, rollout_id)
            except Conflict:
                return None

        assert sorted(pool.map(move, range(4)), key=str) == [1, None, None, None]
    with sessions() as session:
        assert [row.epoch for row in list_transitions(session, rollout_id)] == [1]


# What people ask -----------------------------------------------------------------------------------------------------


def test_a_person_pauses_resumes_and_rolls_back_and_the_log_keeps_it(session: Session) -> None:
    rollout_id = start_rollout(session)
    enter_canary(session, rollout_id)
    for action, phase, weight in (
        ("pause", "paused", 0.25),
        ("resume", "canary", 0.25),
        ("rollback", "rolling_back", 0.0),
    ):
        request_action(session, rollout_id, action, actor="ann", reason=f"to {action}", now=at(9))
        row = get_rollout(session, rollout_id)
        assert (row.phase, row.weight) == (phase, weight)
    said = session.scalars(select(AuditRow.reason).where(AuditRow.action.like("rollout.%")).order_by(AuditRow.audit_id))
    assert list(said)[1:] == ["to pause", "to resume", "to rollback"]
    assert first_broken(session) is None


def test_a_person_promotes_and_stable_moves(session: Session) -> None:
    rollout_id = start_rollout(session)
    enter_canary(session, rollout_id)
    request_action(session, rollout_id, "promote", actor="ann", reason="judged by hand", now=at(9))
    alias = get_alias(session, "stable")
    assert alias is not None
    assert alias.model_version == "new"


def test_what_the_phase_does_not_allow_is_refused(session: Session) -> None:
    rollout_id = start_rollout(session)
    with pytest.raises(Conflict, match="cannot promote a rollout that is created: it must be shadow or canary"):
        request_action(session, rollout_id, "promote", actor="ann", reason="hurry", now=at(9))
    with pytest.raises(ValueError, match="needs a reason"):
        request_action(session, rollout_id, "rollback", actor="ann", reason=" ", now=at(9))


def test_nobody_promotes_while_the_platform_is_frozen_but_rolling_back_works(session: Session) -> None:
    rollout_id = start_rollout(session)
    enter_canary(session, rollout_id)
    set_switch(session, FREEZE, True, actor="ann", reason="incident", now=START)
    with pytest.raises(Conflict, match="frozen"):
        request_action(session, rollout_id, "promote", actor="ann", reason="hurry", now=at(9))
    request_action(session, rollout_id, "rollback", actor="ann", reason="incident", now=at(9))
    assert get_rollout(session, rollout_id).phase == "rolling_back"


# Units ---------------------------------------------------------------------------------------------------------------


def close(session: Session, rollout_id: UUID, second: float, policy: Policy = RULES) -> int:
    return close_units(session, rollout_id, policy, since=START, now=at(second))


def test_a_user_is_closed_once_after_the_window_with_the_thumb_on_the_first_answer(session: Session) -> None:
    rollout_id = start_rollout(session)
    first = add_answer(session, rollout_id, "ann", 0, track="canary")
    second = add_answer(session, rollout_id, "ann", 2, track="canary")
    add_thumb(session, first, "ann", 1.0, 5)
    add_thumb(session, second, "ann", -1.0, 6)
    add_answer(session, rollout_id, "bob", 10.5)
    assert close(session, rollout_id, 60) == 0, "the window has not passed in stored time"
    add_answer(session, rollout_id, "cy", 11.5)
    assert close(session, rollout_id, 60) == 1
    assert close(session, rollout_id, 60) == 0
    (unit,) = list_units(session, rollout_id)
    assert (unit.position, unit.track, unit.stage, unit.value) == (1, "canary", 0, 1.0)
    assert unit.closed_at == at(10)


def test_while_ingest_stands_still_nobody_is_closed_as_silent(session: Session) -> None:
    rollout_id = start_rollout(session)
    add_answer(session, rollout_id, "ann", 0)
    assert close(session, rollout_id, 10_000) == 0


def test_who_is_silent_retracts_or_is_not_signed_is_closed_without_a_value(session: Session) -> None:
    rollout_id = start_rollout(session)
    for number, (user, fields) in enumerate(
        {"silent": None, "retracts": {"value": 0.0}, "unsigned": {"value": 1.0, "signed": False}}.items()
    ):
        answer = add_answer(session, rollout_id, user, number)
        if fields:
            add_thumb(session, answer, user, second=5, **fields)
    add_answer(session, None, "clock", 100)
    assert close(session, rollout_id, 100) == 3
    assert [unit.value for unit in list_units(session, rollout_id)] == [None, None, None]


def test_a_thumb_of_another_user_is_not_the_users_outcome(session: Session) -> None:
    rollout_id = start_rollout(session)
    answer = add_answer(session, rollout_id, "ann", 0)
    add_thumb(session, answer, "mallory", -1.0, 5)
    add_answer(session, None, "clock", 100)
    close(session, rollout_id, 100)
    assert list_units(session, rollout_id)[0].value is None


def test_only_users_who_were_drawn_by_lot_are_units(session: Session) -> None:
    rollout_id = start_rollout(session)
    for user, fields in {
        "shadowed": {"track": "shadow"},
        "replayed": {"track": "replay"},
        "before the draw": {"propensity": 1.0},
        "outside": {"rollout_id": None},
        "broken off": {"completed": False},
        "of no stage": {"stage": 2},
        "nobody": {"user_id": UUID(int=0)},
    }.items():
        add_answer(session, fields.pop("rollout_id", rollout_id), user, 1, **fields)
    add_answer(session, None, "clock", 100)
    assert close(session, rollout_id, 100) == 0
    assert count_assignments(session, rollout_id) == []


def test_a_fallback_counts_as_canary_in_the_sample_ratio_and_stays_out_of_the_comparison(session: Session) -> None:
    rollout_id = start_rollout(session)
    add_answer(session, rollout_id, "ann", 0, fallback=True, propensity=0.25)
    add_answer(session, rollout_id, "bob", 1)
    add_answer(session, None, "clock", 100)
    assert close(session, rollout_id, 100) == 1
    (counts,) = count_assignments(session, rollout_id)
    assert (counts.stage, counts.weight, counts.canary, counts.stable) == (0, 0.25, 1, 1)
    health = arm_health(session, rollout_id, since=at(-1))
    assert (health["canary"].num, health["canary"].num_failed) == (1, 1)
    assert (health["stable"].num, health["stable"].num_failed, health["stable"].p95_latency_ms) == (1, 0, 100.0)


def test_a_user_stays_in_the_arm_of_the_first_answer_when_the_weight_grows(session: Session) -> None:
    rollout_id = start_rollout(session)
    add_answer(session, rollout_id, "ann", 0)
    add_answer(session, rollout_id, "ann", 30, track="canary", stage=1, propensity=0.5)
    add_answer(session, None, "clock", 100)
    close(session, rollout_id, 100)
    (unit,) = list_units(session, rollout_id)
    assert (unit.track, unit.stage) == ("stable", 0)


def test_positions_follow_the_first_answers_without_gaps_over_many_looks(session: Session) -> None:
    rollout_id = start_rollout(session)
    for number in range(30):
        add_answer(session, rollout_id, f"user {number}", number, track="canary" if number % 4 == 0 else "stable")
    for second in (15, 25, 27, 60):
        close(session, rollout_id, second)
    add_answer(session, None, "clock", 100)
    close(session, rollout_id, 100)
    rows = session.execute(
        select(RolloutOutcomeRow.position, RolloutOutcomeRow.user_id).order_by(RolloutOutcomeRow.position)
    ).all()
    assert [tuple(row) for row in rows] == [(n + 1, uuid5(SPACE, f"user {n}")) for n in range(30)]


def test_a_named_outcome_on_answer_conversation_or_user_is_the_goal(session: Session) -> None:
    policy = RULES.model_copy(update={"goal": "outcome:resolved"})
    rollout_id = start_rollout(session)
    slot = "outcome:resolved"
    answers = {
        user: add_answer(session, rollout_id, user, n) for n, user in enumerate(["ann", "bob", "cy", "dee", "eve"])
    }
    add_thumb(session, answers["ann"], "ann", 0.25, 5, slot=slot)
    add_thumb(session, uuid5(SPACE, "conversation bob"), "backend", 0.5, 5, slot=slot)
    add_thumb(session, uuid5(SPACE, "cy"), "cy", 1.0, 5, slot=slot)
    add_thumb(session, uuid5(SPACE, "dee"), "dee", 1.0, -5, slot=slot)
    add_thumb(session, answers["eve"], "eve", 7.0, 5, slot=slot)
    add_answer(session, None, "clock", 100)
    close(session, rollout_id, 100, policy)
    assert [unit.value for unit in list_units(session, rollout_id)] == [0.25, 0.5, 1.0, None, None]


# Leases --------------------------------------------------------------------------------------------------------------


def test_a_lease_has_one_holder_and_its_epoch_fences_the_one_before(session: Session) -> None:
    first = take_lease(session, "work", "a", ttl_s=10, now=at(0))
    assert first is not None
    assert take_lease(session, "work", "b", ttl_s=10, now=at(9)) is None
    second = take_lease(session, "work", "b", ttl_s=10, now=at(10))
    assert second is not None
    assert second.epoch == first.epoch + 1
    with pytest.raises(Fenced, match="newer holder"):
        require_lease(session, first)
    with pytest.raises(Fenced):
        renew_lease(session, first, ttl_s=10, now=at(11))
    release_lease(session, first, now=at(11))
    require_lease(session, second)


def test_a_late_holder_renews_as_long_as_nobody_took_the_lease_and_release_frees_it(session: Session) -> None:
    lease = take_lease(session, "work", "a", ttl_s=10, now=at(0))
    assert lease is not None
    renew_lease(session, lease, ttl_s=10, now=at(500))
    assert take_lease(session, "work", "b", ttl_s=10, now=at(505)) is None
    release_lease(session, lease, now=at(505))
    assert take_lease(session, "work", "b", ttl_s=10, now=at(505) + timedelta(0)) is not None
