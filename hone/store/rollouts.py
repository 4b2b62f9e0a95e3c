"""Rollouts: their rows and transitions. Every change is conditional on the epoch, so that of two writers one wins."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from hone.errors import ConfigError, Conflict
from hone.ids import uuid7
from hone.rollout import FINAL, Action, Phase, Policy, Transition, asked, parse_policy, watch_policy
from hone.store.audit import append_audit
from hone.store.models import STABLE, get_alias, set_alias
from hone.store.rollout_ledger import next_entry, write_entry
from hone.store.switches import FREEZE, is_on
from hone.store.tables import ModelVersionRow, RolloutRow, RolloutTransitionRow

SERVABLE = ("passed", "overridden")
"""Statuses of a model version that may meet traffic: it passed its gates, or a person overrode them."""
LOCK = 0x726F6C6C6F7574  # "rollout"


def create_rollout(
    session: Session,
    *,
    canary_version: str,
    stable_version: str,
    policy: Mapping[str, Any],
    started_by: str,
    now: datetime,
) -> UUID:
    """Start the rollout of `canary_version` against `stable_version`; the controller takes it from there.

    The policy is frozen in the row, with its hash, and so is the level that its ledger gives to this rollout. The
    caller owns the transaction.

    Raises:
        ConfigError: the policy is not valid, or that of a reverse watch, which nobody starts by hand.
        Conflict: another rollout is live, the platform is frozen, the canary did not pass its gates, or `stable` is
            another version.
    """
    rules = parse_policy(policy)
    if rules.reverse:
        raise ConfigError("reverse = true is for the watch that hone starts after a promotion: set bake_s instead")
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    refuse_start(session, canary_version, stable_version)
    entry = next_entry(session, rules, now)
    rollout_id = add_rollout(session, canary_version, stable_version, rules, entry.alpha, started_by, now)
    write_entry(session, rollout_id, entry, now)
    detail = {"canary": canary_version, "stable": stable_version, "policy_hash": rules.digest()}
    detail |= {"ledger": entry.ledger, "number": str(entry.number), "alpha": f"{entry.alpha:.6g}"}
    append_audit(session, started_by, "rollout.create", f"rollout:{rollout_id}", "", detail, now)
    return rollout_id


def start_watch(session: Session, promoted: RolloutRow, started_by: str, now: datetime) -> UUID:
    """Start the reverse watch of a promotion: its canary is the model that was stable. The caller owns the transaction.

    It takes part in no ledger: what it promotes was stable before.
    """
    rules = watch_policy(parse_policy(promoted.policy))
    before, after = promoted.stable_version, promoted.canary_version
    rollout_id = add_rollout(session, before, after, rules, rules.alpha, started_by, now, watches=promoted.rollout_id)
    detail = {"canary": before, "stable": after, "watches": str(promoted.rollout_id)}
    append_audit(session, started_by, "rollout.watch", f"rollout:{rollout_id}", "", detail, now)
    return rollout_id


def add_rollout(
    session: Session,
    canary_version: str,
    stable_version: str,
    rules: Policy,
    alpha: float,
    started_by: str,
    now: datetime,
    watches: UUID | None = None,
) -> UUID:
    """Write the row of a new rollout."""
    rollout_id = uuid7()
    session.add(
        RolloutRow(
            rollout_id=rollout_id,
            canary_version=canary_version,
            stable_version=stable_version,
            policy=rules.model_dump(mode="json"),
            policy_hash=rules.digest(),
            alpha=alpha,
            watches=watches,
            phase=Phase.CREATED,
            stage=0,
            weight=0.0,
            epoch=0,
            applied_epoch=0,
            evidence={},
            reason="",
            started_by=started_by,
            created_at=now,
            stage_started_at=now,
        )
    )
    session.flush()
    return rollout_id


def policy_of(row: RolloutRow) -> Policy:
    """Return the rollout's frozen policy, with the level that the ledger gave it in place of the whole budget."""
    return parse_policy(row.policy).model_copy(update={"alpha": row.alpha})


def refuse_start(session: Session, canary_version: str, stable_version: str) -> None:
    """Raise Conflict, with the remedy, if a rollout of these versions may not start now."""
    if is_on(session, FREEZE):
        raise Conflict("the platform is frozen: no rollout starts before `hone unfreeze`")
    if (live := live_rollout(session)) is not None:
        raise Conflict(f"rollout {live.rollout_id} is live ({live.phase}): wait for its end, or roll it back")
    if canary_version == stable_version:
        raise Conflict(f"{canary_version} is stable already: there is nothing to roll out")
    status = session.scalar(select(ModelVersionRow.status).where(ModelVersionRow.model_version == canary_version))
    if status not in SERVABLE:
        raise Conflict(
            f"model {canary_version} is {status or 'not registered'}: it must pass its gates, or be overridden by a "
            "person with a reason, before it meets traffic"
        )
    alias = get_alias(session, STABLE)
    if alias is None or alias.model_version != stable_version:
        found = alias.model_version if alias else "unset"
        raise Conflict(f"stable is {found}, not {stable_version}: start the rollout against what is served")


def live_rollout(session: Session) -> RolloutRow | None:
    """Return the rollout that has not ended, as it stands in the database, or None."""
    query = select(RolloutRow).where(RolloutRow.phase.not_in(FINAL)).order_by(RolloutRow.created_at).limit(1)
    return session.scalars(query.execution_options(populate_existing=True)).first()


def get_rollout(session: Session, rollout_id: UUID) -> RolloutRow:
    """Return one rollout.

    Raises:
        LookupError: there is none with this id.
    """
    row = session.get(RolloutRow, rollout_id, populate_existing=True)
    if row is None:
        raise LookupError(f"no rollout {rollout_id}: `hone rollout list` shows those that are known")
    return row


def list_rollouts(session: Session, *, limit: int = 50) -> list[RolloutRow]:
    """Return rollouts, the newest first."""
    return list(session.scalars(select(RolloutRow).order_by(RolloutRow.created_at.desc()).limit(limit)))


def list_transitions(session: Session, rollout_id: UUID) -> list[RolloutTransitionRow]:
    """Return the rollout's transitions, the first one first."""
    query = select(RolloutTransitionRow).where(RolloutTransitionRow.rollout_id == rollout_id)
    return list(session.scalars(query.order_by(RolloutTransitionRow.epoch)))


def lock_rollout(session: Session, rollout_id: UUID) -> RolloutRow:
    """Return the rollout; nobody else changes it until the transaction ends.

    Raises:
        LookupError: there is none with this id.
    """
    query = select(RolloutRow).where(RolloutRow.rollout_id == rollout_id).with_for_update()
    row = session.scalars(query.execution_options(populate_existing=True)).first()
    if row is None:
        raise LookupError(f"no rollout {rollout_id}: `hone rollout list` shows those that are known")
    return row


def count_transitions(session: Session) -> int:
    """Return how many transitions all rollouts ever made: it only grows, and orders the plans that follow from them."""
    return session.scalar(select(func.count()).select_from(RolloutTransitionRow)) or 0


def transition(
    session: Session,
    rollout_id: UUID,
    *,
    epoch: int,
    change: Transition,
    actor: str,
    now: datetime,
    evidence: Mapping[str, Any] | None = None,
) -> int:
    """Move the rollout from `epoch` to the next one; return that. The caller owns the transaction.

    Promoting moves the alias `stable` to the canary in the same transaction, and rolling back from there moves it
    back. The transition's row is the intent that the controller carries out.

    Raises:
        Conflict: the rollout has ended or has another epoch by now, or `stable` is not what it was: roll back.
        LookupError: there is no such rollout.
    """
    row = lock_rollout(session, rollout_id)
    before = Phase(row.phase)
    if row.epoch != epoch or before in FINAL:
        raise Conflict(f"rollout {rollout_id} is {before} at epoch {row.epoch}, not live at {epoch}: read it again")
    values = {"phase": change.phase, "stage": change.stage, "weight": change.weight, "reason": change.reason}
    values |= {"epoch": epoch + 1, "stage_started_at": now, "ended_at": now if change.phase in FINAL else None}
    values |= {} if evidence is None else {"evidence": dict(evidence)}
    session.execute(
        update(RolloutRow).where(RolloutRow.rollout_id == rollout_id, RolloutRow.epoch == epoch).values(values)
    )
    session.add(
        RolloutTransitionRow(
            rollout_id=rollout_id,
            epoch=epoch + 1,
            from_phase=before,
            to_phase=change.phase,
            stage=change.stage,
            weight=change.weight,
            reason=change.reason,
            actor=actor,
            created_at=now,
        )
    )
    session.flush()
    if change.phase is Phase.PROMOTING:
        move_stable(session, row.stable_version, row.canary_version, rollout_id, actor, change.reason, now)
    elif change.phase is Phase.ROLLING_BACK and before is Phase.PROMOTING:
        move_stable(session, row.canary_version, row.stable_version, rollout_id, actor, change.reason, now)
    return epoch + 1


def request_action(
    session: Session, rollout_id: UUID, action: Action | str, *, actor: str, reason: str, now: datetime
) -> int:
    """Do what a person asks of a live rollout; return the new epoch. Audited; the caller owns the transaction.

    Raises:
        Conflict: the rollout's phase does not allow it, or the platform is frozen and would be promoted.
        LookupError: there is no such rollout.
        ValueError: the action is none, or its reason is empty.
    """
    action = Action(action)
    if not reason.strip():
        raise ValueError(f"{action} needs a reason: say why, it is kept in the audit log")
    row = lock_rollout(session, rollout_id)
    if action is Action.APPROVE:
        return approve(session, row, actor=actor, reason=reason, now=now)
    reverse = row.watches is not None
    if action is Action.PROMOTE and not reverse and is_on(session, FREEZE):
        raise Conflict("the platform is frozen: nothing is promoted before `hone unfreeze`")
    change = asked(action, Phase(row.phase), row.stage, row.weight, reverse=reverse)
    change = replace(change, reason=f"operator: {reason}")
    epoch = transition(session, rollout_id, epoch=row.epoch, change=change, actor=actor, now=now)
    append_audit(session, actor, f"rollout.{action}", f"rollout:{rollout_id}", reason, {"epoch": epoch}, now)
    return epoch


def approve(session: Session, row: RolloutRow, *, actor: str, reason: str, now: datetime) -> int:
    """Let a rollout that waits for a person meet traffic, audited; return its epoch, which stays. The row is locked.

    Raises:
        Conflict: its policy asks for no approval, somebody gave it already, or it is not waiting any more.
    """
    asked(Action.APPROVE, Phase(row.phase), row.stage, row.weight)
    if not row.policy["approval"]:
        raise Conflict(f"rollout {row.rollout_id} needs no approval: its policy has approval = false")
    if row.approved_at is not None:
        raise Conflict(f"rollout {row.rollout_id} was approved by {row.approved_by} already: nothing is left to do")
    row.approved_by, row.approved_at = actor, now
    session.flush()
    append_audit(session, actor, "rollout.approve", f"rollout:{row.rollout_id}", reason, {"epoch": row.epoch}, now)
    return row.epoch


def move_stable(
    session: Session, before: str, after: str, rollout_id: UUID, actor: str, reason: str, now: datetime
) -> None:
    """Point `stable` from `before` to `after`, by compare-and-set, and audit it.

    Raises:
        Conflict: it points elsewhere by now.
    """
    alias = get_alias(session, STABLE)
    if alias is None or alias.model_version != before:
        found = alias.model_version if alias else "unset"
        raise Conflict(f"stable is {found}, not {before}: it was moved during rollout {rollout_id}")
    set_alias(session, STABLE, after, expected_generation=alias.generation)
    detail = {"from": before, "to": after, "rollout": str(rollout_id)}
    append_audit(session, actor, "alias.move", f"alias:{STABLE}", reason, detail, now)


def last_ended(session: Session) -> RolloutRow | None:
    """Return the rollout that ended last, or None."""
    query = select(RolloutRow).where(RolloutRow.ended_at.is_not(None)).order_by(RolloutRow.ended_at.desc()).limit(1)
    return session.scalars(query).first()


def save_evidence(session: Session, rollout_id: UUID, *, epoch: int, evidence: Mapping[str, Any]) -> None:
    """Keep the evidence of the last look for display; does nothing when the rollout has another epoch by now."""
    row = update(RolloutRow).where(RolloutRow.rollout_id == rollout_id, RolloutRow.epoch == epoch)
    session.execute(row.values(evidence=dict(evidence)))


def mark_applied(session: Session, rollout_id: UUID, *, epoch: int, now: datetime) -> None:
    """Note that the plan of `epoch` was seen in force on every router; once is enough."""
    session.execute(
        update(RolloutRow)
        .where(RolloutRow.rollout_id == rollout_id, RolloutRow.epoch == epoch)
        .values(applied_epoch=epoch)
    )
    session.execute(
        update(RolloutTransitionRow)
        .where(RolloutTransitionRow.rollout_id == rollout_id, RolloutTransitionRow.epoch == epoch)
        .where(RolloutTransitionRow.applied_at.is_(None))
        .values(applied_at=now)
    )


def model_directories(session: Session, versions: Sequence[str]) -> dict[str, str]:
    """Return where the weights of the versions are; unknown ones are left out."""
    query = select(ModelVersionRow.model_version, ModelVersionRow.directory)
    return {v: d for v, d in session.execute(query.where(ModelVersionRow.model_version.in_(versions)))}
