"""The registry: versions named by their weights, the aliases that point to them, and who let what pass."""

from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.errors import Conflict, NotEnoughData
from hone.off_policy import Family
from hone.store.audit import append_audit
from hone.store.tables import EvaluationRow, ModelAliasRow, ModelVersionRow
from hone.weights import model_version_of, weights_digest

STABLE = "stable"
TRAFFIC_STATUSES = frozenset({"passed", "overridden", "imported"})
MIN_REASON_LETTERS = 10


def register_model(
    session: Session,
    *,
    digest: str,
    directory: Path,
    status: str = "candidate",
    parent: str | None = None,
    run_id: str | None = None,
    dataset_id: str | None = None,
) -> str:
    """Make sure that these weights are registered; return their version. What is there already stays as it is."""
    values = {
        "model_version": model_version_of(digest),
        "digest": digest,
        "directory": str(directory),
        "status": status,
        "parent": parent,
        "run_id": run_id,
        "dataset_id": dataset_id,
    }
    session.execute(insert(ModelVersionRow).values(values).on_conflict_do_nothing())
    return model_version_of(digest)


def import_model(session: Session, directory: Path) -> str:
    """Register a model that was not trained here, such as the first base; return its version.

    Raises:
        ConfigError: the directory holds no safetensors.
    """
    directory = directory.absolute()
    return register_model(session, digest=weights_digest(directory), directory=directory, status="imported")


def get_model(session: Session, model_version: str) -> ModelVersionRow:
    """Return the version's row.

    Raises:
        Conflict: it is not registered.
    """
    row = session.get(ModelVersionRow, model_version, populate_existing=True)
    if row is None:
        raise Conflict(f"model {model_version} is not registered: see `hone models list`")
    return row


def may_reach_traffic(row: ModelVersionRow) -> bool:
    """Say whether the version passed its gates, was let through by an audited override, or is an imported base."""
    return row.status in TRAFFIC_STATUSES


def set_verdict(session: Session, model_version: str, status: str) -> None:
    """Turn a candidate into `passed`, `rejected` or `inconclusive`; one that is none any more keeps its own."""
    session.execute(
        update(ModelVersionRow)
        .where(ModelVersionRow.model_version == model_version, ModelVersionRow.status == "candidate")
        .values(status=status)
    )


HELD_BACK = ("candidate", "rejected", "inconclusive", "imported")
"""What only an override lets into a rollout; an operator may make an imported version stable without one."""


def override_gates(session: Session, model_version: str, actor: str, reason: str, now: datetime) -> None:
    """Let a version that did not pass reach traffic; the audit log keeps who, why, and what the gates had said.

    Raises:
        Conflict: the version is unknown, or is not one that its gates hold back, or the reason says nothing.
    """
    status_before = get_model(session, model_version).status
    if sum(c.isalpha() for c in reason) < MIN_REASON_LETTERS:
        raise Conflict(f"reason {reason!r} is too short: say in at least {MIN_REASON_LETTERS} letters why it may pass")
    changed = session.execute(
        update(ModelVersionRow)
        .where(ModelVersionRow.model_version == model_version, ModelVersionRow.status.in_(HELD_BACK))
        .values(status="overridden")
        .returning(ModelVersionRow.model_version)
    ).first()
    if changed is None:
        raise Conflict(f"model {model_version} is {status_before}: only {', '.join(HELD_BACK)} versions are overridden")
    verdicts = session.execute(
        select(EvaluationRow.gate, EvaluationRow.verdict).where(EvaluationRow.model_version == model_version)
    )
    detail = {"status_before": status_before, "gates": {gate: verdict for gate, verdict in verdicts}}
    append_audit(session, actor, "override_gates", model_version, reason, detail, now)


def get_alias(session: Session, alias: str) -> ModelAliasRow | None:
    """Return where the alias points, or None."""
    return session.get(ModelAliasRow, alias, populate_existing=True)


def stable_model(session: Session) -> ModelVersionRow:
    """Return the version that the alias `stable` names.

    Raises:
        NotEnoughData: no model is stable yet.
    """
    alias = get_alias(session, STABLE)
    if alias is None:
        raise NotEnoughData("no model is stable yet: add one with `hone models add DIR --stable`")
    return get_model(session, alias.model_version)


def family_of(session: Session, base: str | None = None) -> Family | None:
    """Return the base (default: the stable version) and every version's parent; None: nothing is stable."""
    alias = get_alias(session, STABLE) if base is None else None
    version = base or (alias.model_version if alias else None)
    if version is None:
        return None
    rows = session.execute(select(ModelVersionRow.model_version, ModelVersionRow.parent))
    return Family(version, {row.model_version: row.parent for row in rows})


def set_alias(session: Session, alias: str, model_version: str, *, expected_generation: int | None) -> int:
    """Point the alias to a version and return its new generation.

    Args:
        expected_generation: the generation that the caller has read; None: there is no such alias yet.

    Raises:
        Conflict: somebody else changed the alias since.
    """
    if expected_generation is None:
        values = {"alias": alias, "model_version": model_version, "generation": 1}
        statement = insert(ModelAliasRow).values(values).on_conflict_do_nothing().returning(ModelAliasRow.generation)
        generation = session.scalar(statement)
    else:
        generation = session.scalar(
            update(ModelAliasRow)
            .where(ModelAliasRow.alias == alias, ModelAliasRow.generation == expected_generation)
            .values(model_version=model_version, generation=expected_generation + 1, updated_at=func.now())
            .returning(ModelAliasRow.generation)
        )
    if generation is None:
        raise Conflict(f"alias {alias} is no longer at generation {expected_generation}: read it again")
    return generation
