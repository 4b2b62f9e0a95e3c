"""Units of a rollout: a user is assigned with the first answer under it, and closed once the window has passed.

All arms are closed by the same rule, after the same time, in batches of one statement each. Time here is the time of
stored rows: while ingest stands still nobody is closed, and so nobody counts as silent whose vote is still on its way.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, select, text
from sqlalchemy.orm import Session

from hone.ids import NOBODY
from hone.rollout import ArmCounts, ArmHealth, Policy, Unit
from hone.store.rollout_measures import closing_parts, query_of
from hone.store.tables import RolloutOutcomeRow

LATE_S = 3600
"""A first answer that is stored this much later than those of other users is not seen."""


WATERMARK = "SELECT created_at FROM response WHERE created_at <= :now ORDER BY created_at DESC LIMIT 1"

# Only users who were drawn by lot: a plan without a draw (shadow, expired) has propensity 1 or no rollout.
ASSIGN = """
INSERT INTO rollout_assignment (rollout_id, user_id, track, stage, weight, response_id, assigned_at)
SELECT DISTINCT ON (user_id) rollout_id, user_id, CASE WHEN fallback THEN 'canary' ELSE track END, stage,
       (CAST(:weights AS float8[]))[stage + 1], response_id, created_at
FROM response
WHERE rollout_id = :rollout_id AND created_at >= :since AND created_at <= :until
  AND track IN ('stable', 'canary') AND (propensity < 1 OR fallback) AND NOT duel AND completed
  AND stage >= 0 AND stage < cardinality(CAST(:weights AS float8[])) AND user_id <> :nobody
ORDER BY user_id, created_at, response_id
ON CONFLICT (rollout_id, user_id) DO NOTHING
"""

CLOSE = """
INSERT INTO rollout_outcome (rollout_id, user_id, position, track, stage, value, measures, closed_at)
SELECT a.rollout_id, a.user_id,
       :last + row_number() OVER (ORDER BY a.assigned_at, a.user_id), a.track, a.stage, goal.value, {measures},
       a.assigned_at + make_interval(secs => :window_s)
FROM rollout_assignment a
JOIN response r ON r.response_id = a.response_id AND NOT r.fallback
{joins}
WHERE a.rollout_id = :rollout_id AND a.assigned_at <= :until - make_interval(secs => :window_s)
  AND NOT EXISTS (SELECT FROM rollout_outcome o WHERE o.rollout_id = a.rollout_id AND o.user_id = a.user_id)
"""

LATE = """
SELECT count(*) FROM rollout_outcome o
JOIN rollout_assignment a ON a.rollout_id = o.rollout_id AND a.user_id = o.user_id
JOIN response r ON r.response_id = a.response_id AND NOT r.fallback
JOIN LATERAL ({goal}) goal ON goal.value IS NOT NULL
WHERE o.rollout_id = :rollout_id AND o.value IS NULL
"""

COUNTS = """
SELECT stage, weight, count(*) FILTER (WHERE track = 'canary') AS canary,
       count(*) FILTER (WHERE track = 'stable') AS stable
FROM rollout_assignment WHERE rollout_id = :rollout_id GROUP BY stage, weight ORDER BY stage
"""

HEALTH = """
SELECT CASE WHEN fallback THEN 'canary' ELSE track END AS arm, count(*) AS num,
       count(*) FILTER (WHERE fallback OR NOT completed) AS num_failed,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) FILTER (WHERE completed AND NOT fallback) AS p95
FROM response WHERE rollout_id = :rollout_id AND created_at > :since GROUP BY 1
"""


def close_units(session: Session, rollout_id: UUID, policy: Policy, *, since: datetime, now: datetime) -> int:
    """Assign users who were first answered, and close those whose window has passed; return how many closed.

    `since` is when the rollout began. One writer at a time: the caller holds the rollout's row (`lock_rollout`) and
    owns the transaction. Closed units are never changed, and their positions have no gaps.
    """
    watermark = session.scalar(text(WATERMARK), {"now": now})
    if watermark is None:
        return 0
    until = watermark - timedelta(seconds=policy.settle_s)
    assign_users(session, rollout_id, policy, since=since, until=until)
    last = session.scalar(
        text("SELECT coalesce(max(position), 0) FROM rollout_outcome WHERE rollout_id = :id"), {"id": rollout_id}
    )
    values = {"rollout_id": rollout_id, "last": last, "until": until, "window_s": policy.outcome_window_s}
    joins, measures, own = closing_parts(policy.goal, policy.guardrails)
    return count_changed(session, CLOSE.format(joins=joins, measures=measures), values | own)


def assign_users(session: Session, rollout_id: UUID, policy: Policy, *, since: datetime, until: datetime) -> int:
    """Write down the arm and stage in which each new user up to `until` was first answered; return how many."""
    newest = session.scalar(
        text("SELECT max(assigned_at) FROM rollout_assignment WHERE rollout_id = :id"), {"id": rollout_id}
    )
    since = since if newest is None else max(since, newest - timedelta(seconds=LATE_S))
    weights = [stage.weight for stage in policy.stages]
    values = {"rollout_id": rollout_id, "since": since, "until": until, "weights": weights, "nobody": NOBODY}
    return count_changed(session, ASSIGN, values)


def count_changed(session: Session, statement: str, values: Mapping[str, Any]) -> int:
    """Execute the statement and return how many rows it wrote."""
    number: int = session.execute(text(statement), values).rowcount  # type: ignore[attr-defined]
    return number


def list_units(session: Session, rollout_id: UUID, *, after: int = 0) -> list[Unit]:
    """Return the closed units with a position greater than `after`, in order."""
    row = RolloutOutcomeRow
    query = select(row.position, row.track, row.stage, row.value, row.closed_at, row.measures)
    query = query.where(row.rollout_id == rollout_id, row.position > after).order_by(row.position)
    return [Unit(*values) for values in session.execute(query)]


def count_assignments(session: Session, rollout_id: UUID) -> list[ArmCounts]:
    """Return how many users each stage assigned to each arm."""
    rows = session.execute(text(COUNTS), {"rollout_id": rollout_id}).mappings()
    return [ArmCounts(**row) for row in rows]


def count_late(session: Session, rollout_id: UUID, goal: str) -> int:
    """Return how many users gave the goal's outcome only after they had been closed: no test counts them."""
    query, own = query_of(goal, "goal")
    found: int = session.execute(text(LATE.format(goal=query)), {"rollout_id": rollout_id, **own}).scalar_one()
    return found


def arm_health(session: Session, rollout_id: UUID, *, since: datetime) -> dict[str, ArmHealth]:
    """Return answers, failures and latency of each track since `since`."""
    rows = session.execute(text(HEALTH), {"rollout_id": rollout_id, "since": since}).mappings()
    return {row["arm"]: health(row) for row in rows}


def health(row: RowMapping) -> ArmHealth:
    """Return one row of the health query as a record."""
    return ArmHealth(row["num"], row["num_failed"], row["p95"])
