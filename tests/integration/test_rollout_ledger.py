"""The ledger, approvals, reverse watches and the measures of guardrails, on real Postgres."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.errors import ConfigError, Conflict
from hone.ids import uuid7
from hone.rollout import Phase, Policy, Transition, parse_policy
from hone.store.engine import make_engine, make_sessions, migrate
from hone.store.models import get_alias
from hone.store.rollout_duels import Duel, list_duels
from hone.store.rollout_ledger import entry_of, list_entries, next_entry
from hone.store.rollout_units import close_units, count_late, list_units
from hone.store.rollouts import get_rollout, policy_of, request_action, start_watch, transition
from hone.store.tables import AuditRow, PreferencePairRow, ResponseScoreRow
from tests.support.rollouts import POLICY, SPACE, START, add_answer, add_models, add_thumb, at, start_rollout

E_LOND = POLICY | {"ledger": "e-lond"}
MONTHLY = POLICY | {"ledger": "monthly"}


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    migrate(database_url)
    engine = make_engine(database_url)
    with make_sessions(engine)() as session:
        add_models(session)
        yield session
    engine.dispose()


def end(session: Session, rollout_id: UUID, phase: Phase, reason: str) -> None:
    epoch = get_rollout(session, rollout_id).epoch
    final = Phase.PROMOTED if phase is Phase.PROMOTING else Phase.ROLLED_BACK
    for number, to in enumerate((phase, final)):
        change = Transition(to, 0, 0.0, reason)
        transition(session, rollout_id, epoch=epoch + number, change=change, actor="controller", now=at(5))
    session.execute(text("UPDATE model_alias SET model_version = 'old'"))
    session.expire_all()


def test_successive_rollouts_get_their_levels_from_what_the_test_has_promoted_before(session: Session) -> None:
    levels = []
    endings = [(Phase.ROLLING_BACK, "harm: x"), (Phase.PROMOTING, "better: x"), (Phase.PROMOTING, "operator: x")]
    for phase, reason in [*endings, (Phase.ROLLING_BACK, "inconclusive: x")]:
        rollout_id = start_rollout(session, E_LOND)
        levels.append(get_rollout(session, rollout_id).alpha)
        end(session, rollout_id, phase, reason)
    assert levels == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 * 2 / 12, 0.05 * 2 / 20]), "a person's does not count"
    shown = list_entries(session)
    assert [entry["number"] for entry in shown] == [4, 3, 2, 1]
    assert [entry["proven"] for entry in shown] == [False, False, True, False]


def test_the_level_is_frozen_in_the_row_and_judges_the_rollout(session: Session) -> None:
    row = get_rollout(session, start_rollout(session, E_LOND))
    assert policy_of(row).alpha == row.alpha == pytest.approx(0.025)
    assert parse_policy(row.policy).alpha == 0.05, "the policy itself is kept as it was given"
    entry = entry_of(session, row.rollout_id)
    assert entry is not None
    assert (entry.ledger, entry.number, entry.budget) == ("e-lond", 1, 0.05)


def test_a_monthly_ledger_begins_anew_with_each_month_and_ledgers_do_not_share_numbers(session: Session) -> None:
    for policy in (MONTHLY, E_LOND, MONTHLY):
        end(session, start_rollout(session, policy), Phase.ROLLING_BACK, "harm: x")
    monthly = parse_policy(MONTHLY)
    assert next_entry(session, monthly, at(60)).number == 3
    assert next_entry(session, monthly, datetime(2026, 4, 1, tzinfo=UTC)).number == 1
    assert next_entry(session, parse_policy(E_LOND), at(60)).number == 2


# Approval and the reverse watch --------------------------------------------------------------------------------


def test_a_person_approves_once_with_an_audit_row_and_the_horizon_starts_then(session: Session) -> None:
    rollout_id = start_rollout(session, POLICY | {"approval": True})
    request_action(session, rollout_id, "approve", actor="ann", reason="the gates look right", now=at(500))
    row = get_rollout(session, rollout_id)
    assert (row.approved_by, row.approved_at, row.phase) == ("ann", at(500), "created")
    audit = session.query(AuditRow).where(AuditRow.action == "rollout.approve").one()
    assert (audit.actor, audit.reason) == ("ann", "the gates look right")
    with pytest.raises(Conflict, match="approved by ann already"):
        request_action(session, rollout_id, "approve", actor="bob", reason="me too", now=at(501))


def test_what_needs_no_approval_cannot_be_approved(session: Session) -> None:
    rollout_id = start_rollout(session)
    with pytest.raises(Conflict, match="needs no approval"):
        request_action(session, rollout_id, "approve", actor="ann", reason="why not", now=at(5))


def test_a_watch_that_finds_the_new_model_worse_moves_stable_back_with_an_audit_row(session: Session) -> None:
    promoted = start_rollout(session, POLICY | {"bake_s": 60})
    step = Transition(Phase.PROMOTING, 0, 0.0, "better: x")
    transition(session, promoted, epoch=0, change=step, actor="controller", now=at(5))
    done = Transition(Phase.PROMOTED, 0, 0.0, "better: x")
    transition(session, promoted, epoch=1, change=done, actor="controller", now=at(6))
    watch = start_watch(session, get_rollout(session, promoted), "controller", at(6))
    row = get_rollout(session, watch)
    assert (row.canary_version, row.stable_version, row.watches, row.alpha) == ("old", "new", promoted, 0.05)
    assert entry_of(session, watch) is None, "it promotes nothing new"
    back = Transition(Phase.PROMOTING, 0, 0.0, "worse: x")
    transition(session, watch, epoch=0, change=back, actor="controller", now=at(9))
    alias = get_alias(session, "stable")
    assert alias is not None
    assert alias.model_version == "old"
    moves = session.query(AuditRow).where(AuditRow.action == "alias.move").order_by(AuditRow.audit_id).all()
    assert (moves[-1].reason, moves[-1].detail["to"]) == ("worse: x", "old")


def test_nobody_starts_a_watch_by_hand(session: Session) -> None:
    with pytest.raises(ConfigError, match="set bake_s instead"):
        start_rollout(session, POLICY | {"reverse": True})


# Measures -------------------------------------------------------------------------------------------------------------

METRICS = ("refused", "regenerated", "length", "reward", "outcome:solved")


def guarded(**fields: Any) -> Policy:
    metrics = [{"metric": name, "max_rise": 0.05} for name in METRICS]
    return parse_policy(POLICY | {"guardrails": {"metrics": metrics, "length_chars": 100}} | fields)


def measured(session: Session, policy: Policy, rollout_id: UUID) -> list[dict[str, float]]:
    add_answer(session, None, "later", 100)
    close_units(session, rollout_id, policy, since=START, now=at(200))
    return [dict(unit.measures) for unit in list_units(session, rollout_id)]


def test_first_answers_are_measured_when_their_users_are_closed(session: Session) -> None:
    rollout_id = start_rollout(session)
    ann = add_answer(session, rollout_id, "ann", 1, completion="I'm sorry, but I cannot help with that.")
    bob = add_answer(session, rollout_id, "bob", 2, completion="x" * 250)
    session.add(ResponseScoreRow(response_id=bob, scorer="rm", score=0.0))
    add_thumb(session, uuid5(SPACE, "conversation bob"), "bob", 0.75, 4, slot="outcome:solved")
    session.flush()
    first, second = measured(session, guarded(), rollout_id)
    assert first == {"refused": 1.0, "regenerated": 0.0, "length": 0.39}
    assert second == {"refused": 0.0, "regenerated": 0.0, "length": 1.0, "reward": 0.5, "outcome:solved": 0.75}
    assert ann != bob


@pytest.mark.parametrize(
    ("second", "fields", "expected"),
    [
        pytest.param(5, {}, 1.0, id="another answer of the turn"),
        pytest.param(15, {}, 0.0, id="one after the window"),
        pytest.param(5, {"turn_id": UUID(int=9)}, 0.0, id="another turn"),
        pytest.param(5, {"track": "replay"}, 0.0, id="a replay"),
        pytest.param(5, {"idempotency_key": UUID(int=7)}, 0.0, id="the same request again"),
    ],
)
def test_a_regeneration_is_another_answer_of_the_first_turn(
    session: Session, second: float, fields: dict[str, Any], expected: float
) -> None:
    rollout_id = start_rollout(session)
    turn = uuid7()
    add_answer(session, rollout_id, "ann", 1, turn_id=turn, idempotency_key=UUID(int=7))
    add_answer(session, rollout_id, "ann", second, **({"turn_id": turn} | fields))
    (found,) = measured(session, guarded(), rollout_id)
    assert found["regenerated"] == expected


@pytest.mark.parametrize(("goal", "expected"), [("reward", 0.5), ("signal:quality", 0.25), ("thumbs", 1.0)])
def test_the_goal_may_be_thumbs_a_reward_or_a_named_score(session: Session, goal: str, expected: float) -> None:
    rollout_id = start_rollout(session)
    answer = add_answer(session, rollout_id, "ann", 1)
    session.add(ResponseScoreRow(response_id=answer, scorer="rm", score=0.0))
    add_thumb(session, answer, "ann", 1.0, 2)
    add_thumb(session, answer, "ann", 0.25, 2, slot="signal:quality")
    measured(session, guarded(goal=goal), rollout_id)
    assert [unit.value for unit in list_units(session, rollout_id)] == [expected]


@pytest.mark.parametrize("goal", ["thumbs", "outcome:solved"])
def test_an_outcome_after_the_window_is_counted_as_late_and_changes_nothing(session: Session, goal: str) -> None:
    rollout_id = start_rollout(session)
    on_time, late, _ = (add_answer(session, rollout_id, user, 1) for user in ("ann", "bob", "silent"))
    add_thumb(session, on_time, "ann", 1.0, 3, slot=goal)
    measured(session, guarded(goal=goal), rollout_id)
    assert count_late(session, rollout_id, goal) == 0
    add_thumb(session, late, "bob", 1.0, 300, slot=goal)
    assert count_late(session, rollout_id, goal) == 1
    assert sorted(unit.value is None for unit in list_units(session, rollout_id)) == [False, True, True]


# Duels ----------------------------------------------------------------------------------------------------------------


def duel(session: Session, rollout_id: UUID, user: str, *, second: str, prefers: str | None, **fields: Any) -> None:
    """A first answer of one arm, a regenerate by the other one, and what the person preferred."""
    turn, first = uuid7(), "stable" if second == "canary" else "canary"
    one = add_answer(session, rollout_id, user, 1, track=first, turn_id=turn)
    two = add_answer(session, rollout_id, user, 5, track=second, turn_id=turn, duel=True, **fields)
    if prefers is None:
        return
    chosen, rejected = (two, one) if prefers == second else (one, two)
    session.add(
        PreferencePairRow(
            turn_id=turn,
            source="choice",
            chosen_id=chosen,
            rejected_id=rejected,
            user_id=uuid5(SPACE, user),
            weight=1.0,
            signed=True,
            active=True,
        )
    )
    session.flush()


def test_duels_are_read_with_their_order_and_the_pair_that_the_platform_derived(session: Session) -> None:
    rollout_id = start_rollout(session)
    duel(session, rollout_id, "ann", second="canary", prefers="canary")
    duel(session, rollout_id, "bob", second="stable", prefers="canary")
    duel(session, rollout_id, "cleo", second="canary", prefers=None)
    duel(session, rollout_id, "dan", second="canary", prefers="canary", fallback=True)
    found = list_duels(session, rollout_id, until=at(60))
    assert found == [Duel(True, 1), Duel(False, -1), Duel(True, 0)]
    assert list_duels(session, rollout_id, until=at(4)) == []


def test_only_the_first_duel_of_a_user_counts_and_no_duel_is_a_unit(session: Session) -> None:
    rollout_id = start_rollout(session)
    for _ in range(3):
        duel(session, rollout_id, "ann", second="canary", prefers="canary")
    assert len(list_duels(session, rollout_id, until=at(60))) == 1
    measured(session, guarded(), rollout_id)
    assert [unit.track for unit in list_units(session, rollout_id)] == ["stable"], "the first answer's arm"
