"""Switches of the whole platform; each change is audited."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.store.audit import append_audit
from hone.store.tables import SwitchRow

FREEZE = "freeze"
"""While on, no retraining starts, no rollout starts or advances, and live canaries have weight 0."""


def is_on(session: Session, name: str) -> bool:
    """Return whether the switch is on; one that was never set is off."""
    return bool(session.scalar(select(SwitchRow.is_on).where(SwitchRow.name == name)))


def set_switch(session: Session, name: str, on: bool, *, actor: str, reason: str, now: datetime) -> None:
    """Set the switch and write it to the audit log, even where it stood so already. The caller owns the transaction."""
    values = {"is_on": on, "reason": reason, "actor": actor, "updated_at": now}
    session.execute(
        insert(SwitchRow).values(name=name, **values).on_conflict_do_update(index_elements=["name"], set_=values)
    )
    append_audit(session, actor, f"switch.{'on' if on else 'off'}", f"switch:{name}", reason, {}, now)
