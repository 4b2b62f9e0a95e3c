"""The ledger of false promotions: each rollout's number and level, written once when it starts."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from hone.rollout import Ledger, Policy
from hone.rollout_ledger import level
from hone.store.tables import RolloutLedgerRow

# Proven by the test: a person's promotion has another first word.
COUNT_PROVEN = """
SELECT count(DISTINCT t.rollout_id) FROM rollout_transition t JOIN rollout_ledger l USING (rollout_id)
WHERE l.ledger = :ledger AND t.to_phase = 'promoting' AND split_part(t.reason, ':', 1) IN ('better', 'not_worse')
"""

ENTRIES = """
SELECT l.number, l.rollout_id, l.ledger, l.budget, l.alpha, l.created_at, r.canary_version AS canary, r.phase,
       (r.evidence->>'e_value')::float8 AS e_value,
       EXISTS (SELECT FROM rollout_transition t WHERE t.rollout_id = l.rollout_id AND t.to_phase = 'promoting'
               AND split_part(t.reason, ':', 1) IN ('better', 'not_worse')) AS proven
FROM rollout_ledger l JOIN rollout r USING (rollout_id) ORDER BY l.created_at DESC, l.number DESC LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """The place of a rollout in its ledger."""

    ledger: Ledger
    budget: float
    number: int
    num_promoted: int
    "Of those before it, proven by the test."
    alpha: float


def next_entry(session: Session, policy: Policy, now: datetime) -> Entry:
    """Return the entry that a rollout gets that starts now. The caller keeps others from starting meanwhile."""
    row = RolloutLedgerRow
    query = select(func.count()).select_from(row).where(row.ledger == policy.ledger)
    if policy.ledger is Ledger.MONTHLY:
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        query = query.where(row.created_at >= month)
    number = (session.scalar(query) or 0) + 1
    proven = 0
    if policy.ledger is Ledger.E_LOND:
        proven = session.scalar(text(COUNT_PROVEN), {"ledger": policy.ledger}) or 0
    alpha = level(policy.ledger, policy.alpha, number=number, num_promoted=proven)
    return Entry(policy.ledger, policy.alpha, number, proven, alpha)


def write_entry(session: Session, rollout_id: UUID, entry: Entry, now: datetime) -> None:
    """Write the rollout into its ledger; it is never changed. The caller owns the transaction."""
    session.add(
        RolloutLedgerRow(
            rollout_id=rollout_id,
            ledger=entry.ledger,
            number=entry.number,
            budget=entry.budget,
            num_promoted=entry.num_promoted,
            alpha=entry.alpha,
            created_at=now,
        )
    )
    session.flush()


def list_entries(session: Session, *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the rollouts with their levels, the newest first."""
    return [dict(row) for row in session.execute(text(ENTRIES), {"limit": limit}).mappings()]


def entry_of(session: Session, rollout_id: UUID) -> RolloutLedgerRow | None:
    """Return the rollout's entry; a reverse watch, and a rollout older than the ledger, has none."""
    return session.get(RolloutLedgerRow, rollout_id)
