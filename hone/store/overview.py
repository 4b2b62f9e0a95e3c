"""What people look at: the state of the whole loop in one dict, and counts of pairs and traffic. Reads only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from hone.capture import threshold_log
from hone.rollout import Phase
from hone.settings import Settings
from hone.store.capture import read_capture
from hone.store.dead_letters import count_dead_letters
from hone.store.models import STABLE, get_alias
from hone.store.pairs import backlog
from hone.store.requests import count_new_labels, count_new_pairs, counting_since, on_policy_versions
from hone.store.rollouts import last_ended, live_rollout
from hone.store.switches import FREEZE, is_on
from hone.store.tables import (
    EvaluationRow,
    ModelVersionRow,
    PreferencePairRow,
    ResponseRow,
    RetrainRequestRow,
    RolloutRow,
    SwitchRow,
    TrainingRunRow,
)
from hone.store.unpaired import recent_unanswered
from hone.trigger import Look, Switches, look

Facts = dict[str, Any]


def overview(session: Session, settings: Settings, now: datetime) -> Facts:
    """Return the state of the loop as plain values, ready for JSON: None where there is nothing yet."""
    number, age_s = backlog(session, now)
    return {
        "mode": settings.mode,
        "freeze": describe_freeze(session),
        "pairs": asdict(trigger_view(session, settings, now)) | {"counting_since": counting_since(session)},
        "requests": describe_requests(session),
        "last_run": describe_last_run(session),
        "stable": describe_stable(session),
        "rollout": describe_rollout(live_rollout(session)),
        "last_rollout": describe_rollout(last_ended(session)),
        "capture": describe_capture(session, now),
        "dirty_turns": {"num": number, "oldest_s": age_s},
        "dead_letters": count_dead_letters(session, waiting_only=True),
        "orphans": asdict(recent_unanswered(session, now)),
    }


def trigger_view(session: Session, settings: Settings, now: datetime) -> Look:
    """Return what the trigger sees now: labels count for KTO, for `auto` whichever there are more of, else pairs."""
    counters = {"kto": (count_new_labels,), "auto": (count_new_pairs, count_new_labels)}
    found = [
        counter(session, now, settings.trigger.max_user_pairs, on_policy_versions(session, settings.trigger))
        for counter in counters.get(settings.trigger.method, (count_new_pairs,))
    ]
    counts = max(found, key=lambda one: one.num_pairs)
    return look(counts, settings.trigger, Switches(settings.mode == "active", is_on(session, FREEZE)))


def describe_capture(session: Session, now: datetime) -> list[Facts]:
    """Return how each kind of feedback comes in, and whether it fell silent."""
    found = read_capture(session, now)
    threshold = threshold_log(len(found))
    return [{**asdict(capture), "is_broken": capture.is_broken(threshold)} for capture in found]


def describe_freeze(session: Session) -> Facts | None:
    """Return who froze the platform, when and why, or None."""
    row = session.get(SwitchRow, FREEZE, populate_existing=True)
    if row is None or not row.is_on:
        return None
    return {"since": row.updated_at, "actor": row.actor, "reason": row.reason}


def describe_requests(session: Session) -> list[Facts]:
    """Return the requests that are open or claimed, the oldest first."""
    row = RetrainRequestRow
    query = select(row).where(row.status.in_(("open", "claimed"))).order_by(row.created_at)
    return [
        {
            "request_id": request.request_id,
            "status": request.status,
            "method": request.method,
            "reason": request.reason,
            "dag_run_id": request.dag_run_id,
            "created_at": request.created_at,
        }
        for request in session.scalars(query)
    ]


def describe_last_run(session: Session) -> Facts | None:
    """Return the run that began last, the version that it made, and what the gates said of it."""
    run = session.scalars(select(TrainingRunRow).order_by(TrainingRunRow.started_at.desc()).limit(1)).first()
    if run is None:
        return None
    model = session.scalars(select(ModelVersionRow).where(ModelVersionRow.run_id == run.run_id)).first()
    gates = select(EvaluationRow).where(EvaluationRow.run_id == run.run_id).order_by(EvaluationRow.gate)
    return {
        "run_id": run.run_id,
        "status": run.status,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "detail": run.detail,
        "model_version": model.model_version if model else None,
        "model_status": model.status if model else None,
        "gates": [{"gate": g.gate, "verdict": g.verdict, "reason": g.reason} for g in session.scalars(gates)],
    }


def describe_stable(session: Session) -> Facts | None:
    """Return the version that serves, or None."""
    alias = get_alias(session, STABLE)
    if alias is None:
        return None
    model = session.get(ModelVersionRow, alias.model_version)
    return {
        "model_version": alias.model_version,
        "since": alias.updated_at,
        "parent": model.parent if model else None,
        "contains_erased": bool(model and model.contains_erased),
    }


def describe_rollout(row: RolloutRow | None) -> Facts | None:
    """Return a rollout with the evidence of its last look."""
    if row is None:
        return None
    evidence: Mapping[str, Any] = row.evidence
    return {
        "rollout_id": row.rollout_id,
        "canary": row.canary_version,
        "stable": row.stable_version,
        "watches": row.watches,
        "waits_for_approval": row.phase == Phase.CREATED and row.policy["approval"] and row.approved_at is None,
        "phase": row.phase,
        "stage": row.stage,
        "num_stages": len(row.policy["stages"]),
        "weight": row.weight,
        "reason": row.reason,
        "in_force": row.applied_epoch == row.epoch,
        "num_pairs": evidence.get("num_pairs", 0),
        "horizon_pairs": row.policy["horizon_pairs"],
        "e_value": evidence.get("e_value"),
        "e_target": 1 / row.alpha,
        "effect": evidence.get("effect"),
        "effect_low": evidence.get("effect_low"),
        "effect_high": evidence.get("effect_high"),
        "canary_users": evidence.get("canary_users_by_stage"),
        "created_at": row.created_at,
        "stage_started_at": row.stage_started_at,
        "ended_at": row.ended_at,
    }


def count_pairs(session: Session) -> list[Facts]:
    """Return one row for each source: active pairs, retracted ones, people behind the active ones, mean weight."""
    pair = PreferencePairRow
    query = select(
        pair.source,
        func.count().filter(pair.active).label("active"),
        func.count().filter(~pair.active).label("retracted"),
        func.count(pair.user_id.distinct()).filter(pair.active).label("people"),
        func.avg(pair.weight).filter(pair.active).label("mean_weight"),
    )
    return [dict(row._mapping) for row in session.execute(query.group_by(pair.source).order_by(pair.source))]


def newest_pairs(session: Session, limit: int) -> list[Facts]:
    """Return the pairs that changed last, the newest first. No text is in it."""
    pair = PreferencePairRow
    query = (
        select(
            pair.updated_at,
            pair.source,
            pair.weight,
            pair.active,
            pair.signed,
            ResponseRow.model_version.label("rejected_model"),
            pair.turn_id,
        )
        .outerjoin(ResponseRow, ResponseRow.response_id == pair.rejected_id)
        .order_by(pair.rev.desc())
        .limit(limit)
    )
    return [dict(row._mapping) for row in session.execute(query)]


# The same rows as a rollout's test counts: a user's own thumb on an answer, or a named outcome in [0, 1].
TRAFFIC = """
SELECT count(DISTINCT user_id) AS users, avg(value) AS mean, min(occurred_at) AS first
FROM (
    SELECT state.user_id, state.occurred_at,
           CASE WHEN state.slot = 'thumbs' THEN (state.value + 1) / 2 ELSE state.value END AS value
    FROM feedback_state AS state
    LEFT JOIN response ON response.response_id = state.subject_id
    WHERE state.slot = :goal AND state.signed AND state.occurred_at > :since
      AND (state.slot <> 'thumbs' OR state.value <> 0)
      AND response.track IS DISTINCT FROM 'replay' AND response.track IS DISTINCT FROM 'shadow'
) AS rated WHERE value BETWEEN 0 AND 1
"""


@dataclass(frozen=True)
class GoalTraffic:
    """Who rated a goal of late, replays left out."""

    num_users: int
    stretch: timedelta
    "In which they did: the window, or the time since the first rating where that is shorter; an hour at least."
    mean: float | None
    "Of what they said; None where nobody did."

    @property
    def users_per_day(self) -> float:
        """Return the rate."""
        return self.num_users / (self.stretch / timedelta(days=1))


def goal_traffic(session: Session, goal: str, window: timedelta, now: datetime) -> GoalTraffic:
    """Return who rated the goal within the window."""
    row = session.execute(text(TRAFFIC), {"goal": goal, "since": now - window}).one()
    if not row.users:
        return GoalTraffic(0, window, None)
    return GoalTraffic(row.users, max(now - row.first, timedelta(hours=1)), float(row.mean))
