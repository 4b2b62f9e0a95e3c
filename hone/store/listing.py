"""Lists for people: model versions, training runs and API keys, the newest first. Reads only."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hone.store.models import STABLE
from hone.store.tables import ApiKeyRow, ModelAliasRow, ModelVersionRow, TrainingRunRow

Facts = dict[str, Any]


def list_models(session: Session, limit: int) -> list[Facts]:
    """Return the newest versions; `stable` marks the one that serves."""
    model, alias = ModelVersionRow, ModelAliasRow
    query = (
        select(
            model.model_version,
            alias.alias.is_not(None).label("stable"),
            model.status,
            model.parent,
            model.run_id,
            model.contains_erased,
            model.created_at,
        )
        .outerjoin(alias, (alias.model_version == model.model_version) & (alias.alias == STABLE))
        .order_by(model.created_at.desc(), model.model_version)
        .limit(limit)
    )
    return [dict(row._mapping) for row in session.execute(query)]


def list_runs(session: Session, limit: int) -> list[Facts]:
    """Return the newest runs, each with the version that it made."""
    run, model = TrainingRunRow, ModelVersionRow
    query = (
        select(
            run.run_id,
            run.status,
            run.method,
            run.base_version,
            model.model_version,
            model.status.label("verdict"),
            run.started_at,
            run.finished_at,
        )
        .outerjoin(model, model.run_id == run.run_id)
        .order_by(run.started_at.desc(), run.run_id)
        .limit(limit)
    )
    return [dict(row._mapping) for row in session.execute(query)]


def list_keys(session: Session) -> list[Facts]:
    """Return every API key by its first characters; the key itself is nowhere."""
    row = ApiKeyRow
    facts = (row.prefix, row.name, row.scopes, row.requests_per_minute, row.created_at, row.revoked_at)
    query = select(*facts).order_by(row.created_at.desc())
    return [{**key._mapping, "scopes": " ".join(key.scopes)} for key in session.execute(query)]
