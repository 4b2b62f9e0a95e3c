"""The gateway's routes over the database: lineage, rollouts, and the erasure of a person."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone import ids
from hone.store.audit import first_broken
from hone.store.erasure import ERASED, erase_user
from hone.store.events import store_events
from hone.store.keys import Scope, create_key
from hone.store.tables import (
    AuditRow,
    DatasetItemRow,
    DatasetRow,
    DeadLetterRow,
    ErasureRow,
    FeedbackEventRow,
    FeedbackStateRow,
    ModelVersionRow,
    PreferencePairRow,
    ResponseRow,
    RolloutRow,
    TrainingRunRow,
    UnaryLabelRow,
)
from hone.tokens import Claims, parse_keys
from tests.support.events import feedback, response, uid
from tests.support.gateway import IDENTITY_KEY, TOKEN_KEYS, Served, gateway
from tests.support.rollouts import add_models, enter_canary, start_rollout

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ANN, BOB = (ids.user_id(bytes.fromhex(IDENTITY_KEY), name) for name in ("ann", "bob"))


@pytest.fixture
def served(tmp_path: Path, store_url: str) -> Iterator[Served]:
    with gateway(tmp_path, "http://127.0.0.1:9", database_url=store_url) as served:
        yield served


def add_history(session: Session) -> tuple[UUID, UUID]:
    """Ann and Bob each chat and vote; a model is trained on both votes, and another one on top of it.

    Returns the answer that the younger model gave to Bob, and Ann's event.
    """
    said = {"ann": ANN, "bob": BOB}
    answers = [response(f"{who}-{i}", turn=who, user_id=user) for who, user in said.items() for i in (1, 2)]
    votes = [feedback("edit", f"{who}-1", user_id=user, text="better", turn_id=uid(who)) for who, user in said.items()]
    late = response("late", turn="late", user_id=BOB, model_version="m-young")
    store_events(session, [*answers, late], votes)
    sizes = {"num_train": 2, "num_dev": 0, "num_test": 0}
    session.add(DatasetRow(dataset_id="d1", kind="pairs", source="feedback", manifest={}, **sizes))
    session.flush()
    run = {"request_id": None, "dataset_id": "d1", "method": "dpo", "base_version": "base", "spec": {}}
    session.add(TrainingRunRow(run_id="r1", status="done", metrics={}, directory="/runs/r1", **run))
    session.flush()
    add_version(session, "base", None, None)
    add_version(session, "m-old", "base", "d1", run_id="r1")
    add_version(session, "m-young", "m-old", None)
    for position, (who, vote) in enumerate(zip(said, votes, strict=True)):
        row = {"row_id": who, "split": "train", "user_id": said[who], "event_ids": [vote.event_id]}
        session.add(DatasetItemRow(dataset_id="d1", position=position, body=f"{who} asked", **row))
        add_judgements(session, who, said[who], vote.event_id)
    session.add(dead_letter(1, ANN))
    session.add(dead_letter(2, BOB))
    session.flush()
    return late.response_id, votes[0].event_id


def add_version(session: Session, version: str, parent: str | None, dataset_id: str | None, **more: Any) -> None:
    fields = {"digest": version, "directory": version, "status": "passed", "parent": parent, "dataset_id": dataset_id}
    session.add(ModelVersionRow(model_version=version, **fields, **more))
    session.flush()


def add_judgements(session: Session, who: str, user: UUID, event_id: UUID) -> None:
    one = uid(f"{who}-1")
    pair = {"turn_id": uid(who), "source": "edit", "chosen_id": one, "rejected_id": one, "body_event_id": event_id}
    session.add(PreferencePairRow(**pair, user_id=user, weight=1.0, signed=True, active=True))
    label = {"response_id": one, "user_id": user, "turn_id": uid(who), "label": True, "weight": 1.0, "reasons": []}
    session.add(UnaryLabelRow(**label, signed=True, active=True))


def dead_letter(offset: int, user: UUID) -> DeadLetterRow:
    body = f'{{"user_id": "{user}", "text": "private"}}'.encode()
    where = {"incarnation": "i", "topic": "t", "partition": 0, "offset": offset}
    return DeadLetterRow(**where, key=None, body=body, reason="wrong_shape", detail="")


def test_lineage_leads_from_an_answer_to_the_events_that_trained_its_model(
    served: Served, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        _, event_id = add_history(session)
        store_events(session, [response("from-old", turn="t9", user_id=BOB, model_version="m-old")], [])
    found = served.http.get(f"/v1/lineage/{uid('from-old')}").json()
    assert (found["model"]["model_version"], found["model"]["run"]["method"]) == ("m-old", "dpo")
    assert (found["model"]["dataset"]["dataset_id"], found["model"]["dataset"]["num_events"]) == ("d1", 2)
    assert str(event_id) in [event["event_id"] for event in found["model"]["dataset"]["events"]]
    assert [ancestor["model_version"] for ancestor in found["ancestors"]] == ["base"]
    assert "better" not in str(found)


def test_an_answers_own_id_leads_to_its_lineage_even_after_it_expired(
    served: Served, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        late, _ = add_history(session)
    claims = Claims(late, uid("conversation"), uid("late"), BOB, NOW - timedelta(days=400))
    found = served.http.get(f"/v1/lineage/{parse_keys(TOKEN_KEYS).mint(claims)}").json()
    assert [ancestor["model_version"] for ancestor in found["ancestors"]] == ["m-old", "base"]
    assert served.http.get(f"/v1/lineage/{uuid4()}").status_code == 404
    assert served.http.get("/v1/lineage/nonsense").status_code == 404


def counts_of(session: Session, user: UUID) -> dict[str, int]:
    tables = {
        "events": FeedbackEventRow,
        "states": FeedbackStateRow,
        "rows": DatasetItemRow,
    }
    counts = {
        name: session.scalar(select(func.count()).select_from(table).where(table.user_id == user)) or 0
        for name, table in tables.items()
    }
    for name, judged in (("pairs", PreferencePairRow), ("labels", UnaryLabelRow)):
        active = select(func.count()).select_from(judged).where(judged.user_id == user, judged.active)
        counts[name] = session.scalar(active) or 0
    return counts


def test_erasing_a_person_reaches_everything_of_theirs_and_nothing_of_others(
    served: Served, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        add_history(session)
        before = counts_of(session, BOB)
    answer = served.http.delete("/v1/users/ann")
    assert answer.status_code == 200, answer.text
    expected = {"responses": 2, "feedback_events": 1, "feedback_states": 1, "dead_letters": 1}
    expected |= {"pairs": 1, "labels": 1, "models": 2, "dataset_rows": 1}
    assert answer.json() == {"user_id": str(ANN), "counts": expected}
    with sessions.begin() as session:
        assert counts_of(session, ANN) == dict.fromkeys(before, 0)
        assert counts_of(session, BOB) == before
        texts = {row.user_id: (row.messages, row.completion) for row in session.scalars(select(ResponseRow))}
        assert texts[ANN] == ([], ERASED)
        assert texts[BOB][1] != ERASED
        marked = select(ModelVersionRow.model_version).where(ModelVersionRow.contains_erased)
        assert set(session.scalars(marked)) == {"m-old", "m-young"}
        (kept,) = session.scalars(select(DeadLetterRow))
        assert str(BOB).encode() in (kept.body or b"")
        assert session.get_one(ErasureRow, ANN).completed_at is not None
        assert session.scalars(select(AuditRow.action)).all() == ["user.erase"]
        assert first_broken(session) is None


def test_erasing_a_person_twice_reaches_nothing_more(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_history(session)
        erase_user(session, ANN, actor="test", now=NOW)
        again = erase_user(session, ANN, actor="test", now=NOW)
        assert set(again.values()) == {0}
        assert session.get_one(ErasureRow, ANN).counts["responses"] == 2


def test_switched_off_pairs_get_a_later_revision(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_history(session)
        revisions = select(PreferencePairRow.user_id, PreferencePairRow.rev)
        before = dict(session.execute(revisions).all())
        erase_user(session, ANN, actor="test", now=NOW)
        after = dict(session.execute(revisions).all())
    assert after[ANN] > max(before.values())
    assert after[BOB] == before[BOB]


def test_a_person_acts_on_a_rollout_with_a_reason(served: Served, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_models(session)
        rollout_id = start_rollout(session)
        enter_canary(session, rollout_id)
    path = f"/v1/rollouts/{rollout_id}"
    assert served.http.post(f"{path}:pause", json={}).status_code == 422
    assert served.http.post(f"{path}:dance", json={"reason": "x"}).status_code == 422
    assert served.http.post(f"/v1/rollouts/{uuid4()}:pause", json={"reason": "x"}).status_code == 404
    answer = served.http.post(f"{path}:rollback", json={"reason": "people complain"})
    assert answer.status_code == 202, answer.text
    assert served.http.post(f"{path}:promote", json={"reason": "no, it is fine"}).status_code == 409
    (listed,) = served.http.get("/v1/rollouts").json()["rollouts"]
    with sessions() as session:
        row = session.get_one(RolloutRow, rollout_id)
        assert (listed["phase"], listed["epoch"]) == (row.phase, row.epoch)
        assert row.weight == 0
        said = session.scalars(select(AuditRow).where(AuditRow.action == "rollout.rollback")).one()
    assert (said.actor, said.reason) == ("admin", "people complain")


def test_without_a_database_these_routes_say_so_and_come_back(tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9") as served:
        answer = served.http.get("/v1/rollouts")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "database" in answer.json()["detail"]


def test_a_key_has_a_pace_of_its_own_or_that_of_the_settings(
    tmp_path: Path, store_url: str, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        chat = frozenset({Scope.CHAT})
        keys = [create_key(session, f"pace {pace}", chat, pace) for pace in (None, 12, 0)]
    with gateway(tmp_path, "http://127.0.0.1:9", database_url=store_url, key_requests_per_minute=6) as served:
        answers = [[ask_for_models(served, key) for _ in range(5)] for key in keys]
    taken = [[answer.status_code for answer in of_key].index(429) for of_key in answers[:2]]
    assert taken == [1, 2], "bursts of ten seconds' worth"
    assert [answer.status_code for answer in answers[2]] == [200] * 5
    refused = [of_key[-1] for of_key in answers[:2]]
    assert [9 <= int(answer.headers["retry-after"]) <= 10 for answer in refused[:1]] == [True]
    assert 3 <= int(refused[1].headers["retry-after"]) <= 5
    assert "more than 12 requests a minute" in refused[1].json()["detail"]
    assert refused[1].headers["content-type"] == "application/problem+json"


def ask_for_models(served: Served, key: str) -> httpx.Response:
    return served.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
