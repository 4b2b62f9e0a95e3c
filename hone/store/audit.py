"""The audit log: append-only, each row sealed with the hash of the one before."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hone.canonical import canonical_json, sha256_hex
from hone.store.tables import AuditRow

FIRST_HASH = "0" * 64
AUDIT_LOCK = 0x686F6E65_61756474
"""Key of the advisory lock that puts writers in a row until they commit."""


def append_audit(
    session: Session, actor: str, action: str, subject: str, reason: str, detail: Mapping[str, Any], now: datetime
) -> AuditRow:
    """Add what `actor` did, after everything committed so far. Blocks while another transaction appends."""
    session.execute(select(func.pg_advisory_xact_lock(AUDIT_LOCK)))
    previous = session.scalar(select(AuditRow.hash).order_by(AuditRow.audit_id.desc()).limit(1)) or FIRST_HASH
    row = AuditRow(
        actor=actor,
        action=action,
        subject=subject,
        reason=reason,
        detail=dict(detail),
        previous_hash=previous,
        hash="",
        at=now,
    )
    row.hash = seal(row)
    session.add(row)
    session.flush()
    return row


def seal(row: AuditRow) -> str:
    """Return the hash that the row must carry."""
    facts = [row.previous_hash, row.actor, row.action, row.subject, row.reason, row.detail, row.at.timestamp()]
    return sha256_hex(canonical_json(facts))


def first_broken(session: Session) -> int | None:
    """Return the id of the first row whose seal or predecessor does not fit, or None: nothing was changed or removed.

    A removed tail cannot be seen from the log alone; keep the last hash elsewhere to notice that.
    """
    previous = FIRST_HASH
    for row in session.scalars(select(AuditRow).order_by(AuditRow.audit_id)):
        if row.previous_hash != previous or row.hash != seal(row):
            return row.audit_id
        previous = row.hash
    return None
