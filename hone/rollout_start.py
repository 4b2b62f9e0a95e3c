"""Starting a rollout by hand, from the command line or from Airflow, and seeing how it ends."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from hone.errors import Conflict
from hone.rollout import FINAL, Phase
from hone.settings import Settings, read_toml
from hone.store.audit import append_audit
from hone.store.engine import make_engine, make_sessions
from hone.store.models import stable_model
from hone.store.rollouts import create_rollout, get_rollout


def begin(settings: Settings, model_version: str, *, actor: str, reason: str, policy: Path | None = None) -> str:
    """Create the rollout of a version against the stable one, audited, in one transaction; return its id.

    Raises:
        Conflict: another rollout is live, the platform is frozen, or the version did not pass its gates.
    """
    now = datetime.now(UTC)
    with make_sessions(make_engine(settings.database_url, pool_size=1)).begin() as session:
        rollout_id = create_rollout(
            session,
            canary_version=model_version,
            stable_version=stable_model(session).model_version,
            policy=read_toml(policy or settings.rollout.policy),
            started_by=actor,
            now=now,
        )
        append_audit(session, actor, "rollout.start", f"rollout:{rollout_id}", reason, {"canary": model_version}, now)
    return str(rollout_id)


def has_ended(settings: Settings, rollout_id: str) -> bool:
    """Say whether the rollout was promoted; a rolled-back one raises, so that a DAG run shows it.

    Raises:
        Conflict: it was rolled back; the message holds the reason.
    """
    with make_sessions(make_engine(settings.database_url, pool_size=1))() as session:
        row = get_rollout(session, UUID(rollout_id))
        if row.phase == Phase.ROLLED_BACK:
            raise Conflict(f"rollout {rollout_id} was rolled back: {row.reason}")
        return row.phase in FINAL
