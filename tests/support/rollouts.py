"""Rows of rollouts for tests: a registered pair of models, users who chat under a rollout, and their thumbs."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy.orm import Session

from hone.ids import uuid7
from hone.rollout import Phase, Transition
from hone.store.rollouts import create_rollout, transition
from hone.store.tables import FeedbackStateRow, ModelAliasRow, ModelVersionRow, ResponseRow

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
SPACE = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
POLICY: dict[str, Any] = {
    "ledger": "fixed",
    "min_canary_users": 20,
    "promote_weight": 0.25,
    "horizon_pairs": 300,
    "horizon_s": 3600,
    "outcome_window_s": 10,
    "settle_s": 1,
    "block_s": 60,
    "stages": [{"weight": 0.25, "min_users": 10}, {"weight": 0.5, "min_users": 20}],
}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def add_models(session: Session, *, canary_status: str = "passed") -> None:
    """Register `new` and `old`; `stable` is `old`."""
    for version, status in (("old", "imported"), ("new", canary_status)):
        session.add(
            ModelVersionRow(model_version=version, digest=version, directory=f"/models/{version}", status=status)
        )
    session.flush()
    session.add(ModelAliasRow(alias="stable", model_version="old", generation=1))
    session.flush()


def start_rollout(session: Session, policy: dict[str, Any] = POLICY, **fields: Any) -> UUID:
    values = {"canary_version": "new", "stable_version": "old", "started_by": "test", "now": START} | fields
    return create_rollout(session, policy=policy, **values)


def enter_canary(session: Session, rollout_id: UUID, *, epoch: int = 0, stage: int = 0, weight: float = 0.25) -> int:
    change = Transition(Phase.CANARY, stage, weight, "ready")
    return transition(session, rollout_id, epoch=epoch, change=change, actor="test", now=START)


def add_answer(session: Session, rollout_id: UUID | None, user: str, second: float, **fields: Any) -> UUID:
    """One answer for `user`: stable in stage 0 unless `fields` say otherwise."""
    track = fields.get("track", "stable")
    values: dict[str, Any] = {
        "response_id": uuid7(),
        "conversation_id": uuid5(SPACE, f"conversation {user}"),
        "turn_id": uuid7(),
        "user_id": uuid5(SPACE, user),
        "messages": [{"role": "user", "content": "Hello?"}],
        "completion": "Hello.",
        "model_version": "new" if track == "canary" else "old",
        "track": track,
        "rollout_id": rollout_id,
        "stage": None if rollout_id is None else 0,
        "propensity": 0.25 if track == "canary" else 0.75,
        "fallback": False,
        "parameters": {},
        "completed": True,
        "latency_ms": 100.0,
        "eval_only": False,
        "created_at": at(second),
    }
    row = ResponseRow(**(values | fields))
    session.add(row)
    session.flush()
    return row.response_id


def add_thumb(session: Session, subject: UUID, user: str, value: float, second: float, **fields: Any) -> None:
    values: dict[str, Any] = {
        "subject_id": subject,
        "slot": "thumbs",
        "user_id": uuid5(SPACE, user),
        "value": value,
        "rejected": [],
        "reasons": [],
        "occurred_at": at(second),
        "event_id": uuid7(),
        "signed": True,
    }
    session.add(FeedbackStateRow(**(values | fields)))
    session.flush()
