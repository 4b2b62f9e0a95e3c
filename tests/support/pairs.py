"""Stored responses, feedback and pairs for tests of datasets: what ingest would have left in Postgres."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy.orm import Session

from hone.store.tables import FeedbackEventRow, FeedbackStateRow, PreferencePairRow, ResponseRow, UnaryLabelRow
from tests.support.training import SPACE, candidate, person, question

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def add_answer(session: Session, name: str, turn: int, text: str, **fields: Any) -> UUID:
    values: dict[str, Any] = {
        "response_id": uuid5(SPACE, name),
        "conversation_id": uuid5(SPACE, f"conversation {turn}"),
        "turn_id": uuid5(SPACE, f"turn {turn}"),
        "user_id": person(turn),
        "messages": [{"role": "user", "content": question(turn)}],
        "completion": text,
        "model_version": "m-base",
        "track": "stable",
        "propensity": 1.0,
        "fallback": False,
        "parameters": {},
        "finish_reason": "stop",
        "completed": True,
        "latency_ms": 1.0,
        "eval_only": False,
        "created_at": NOW,
    }
    row = ResponseRow(**(values | fields))
    session.add(row)
    session.flush()
    return row.response_id


def add_event(session: Session, kind: str, response_id: UUID, turn: int, **fields: Any) -> UUID:
    """An act of the turn's person, as event and as their last word."""
    event_id = uuid5(SPACE, f"{kind} {response_id}")
    shared = {"user_id": person(turn), "turn_id": uuid5(SPACE, f"turn {turn}"), "rejected": [], "reasons": []}
    shared |= {"value": None, "text": None, "occurred_at": NOW, "event_id": event_id, "signed": True} | fields
    session.add(FeedbackEventRow(kind=kind, response_id=response_id, received_at=NOW, **shared))
    session.add(FeedbackStateRow(subject_id=response_id, slot=kind, **shared))
    session.flush()
    return event_id


def add_pair(session: Session, turn: int, *, answer: dict[str, Any] | None = None, **fields: Any) -> PreferencePairRow:
    """Two answers to the turn's question, a thumb up and the pair that follows; `answer` changes both answers."""
    texts = candidate(turn)
    chosen = add_answer(session, f"chosen {turn}", turn, texts.chosen, **(answer or {}))
    rejected = add_answer(session, f"rejected {turn}", turn, texts.rejected, **(answer or {}))
    add_event(session, "thumbs", chosen, turn, value=1.0)
    values: dict[str, Any] = {
        "turn_id": uuid5(SPACE, f"turn {turn}"),
        "source": "thumbs",
        "chosen_id": chosen,
        "rejected_id": rejected,
        "user_id": person(turn),
        "weight": 0.8,
        "signed": True,
        "active": True,
    }
    row = PreferencePairRow(**(values | fields))
    session.add(row)
    session.flush()
    return row


def add_edit(session: Session, turn: int, text: str) -> PreferencePairRow:
    """An answer and its correction by the turn's person."""
    answer = add_answer(session, f"edited {turn}", turn, candidate(turn).rejected)
    event_id = add_event(session, "edit", answer, turn, text=text)
    row = PreferencePairRow(
        turn_id=uuid5(SPACE, f"turn {turn}"),
        source="edit",
        chosen_id=answer,
        rejected_id=answer,
        user_id=person(turn),
        body_event_id=event_id,
        weight=1.0,
        signed=True,
        active=True,
    )
    session.add(row)
    session.flush()
    return row


def add_label(session: Session, turn: int, *, good: bool, **fields: Any) -> UnaryLabelRow:
    """An answer and the thumb of the turn's person."""
    texts = candidate(turn)
    answer = add_answer(session, f"rated {turn}", turn, texts.chosen if good else texts.rejected)
    add_event(session, "thumbs", answer, turn, value=1.0 if good else -1.0)
    values: dict[str, Any] = {
        "response_id": answer,
        "user_id": person(turn),
        "turn_id": uuid5(SPACE, f"turn {turn}"),
        "label": good,
        "weight": 1.0,
        "reasons": [],
        "signed": True,
        "active": True,
    }
    row = UnaryLabelRow(**(values | fields))
    session.add(row)
    session.flush()
    return row
