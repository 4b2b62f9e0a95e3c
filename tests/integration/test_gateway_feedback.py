"""Feedback through the real gateway into a broker: who may say what, and what an acknowledgement is worth."""

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from hone import ids
from hone.errors import ConfigError
from hone.records import FeedbackKind, Reason, Response
from hone.settings import Settings
from hone.store.keys import Scope, create_key, revoke_key
from hone.tokens import Claims, parse_keys
from serving.gateway.app import open_gateway
from serving.gateway.exchange import storable
from serving.gateway.publisher import Publisher
from serving.gateway.recorder import Recorder, Spill
from tests.support.events import response
from tests.support.gateway import IDENTITY_KEY, TOKEN_KEYS, ForeignServer, Served, broker, gateway, records
from tests.support.web import serving

IDENTITY = bytes.fromhex(IDENTITY_KEY)
ANN = ids.user_id(IDENTITY, "ann")
UP = {"kind": "thumbs", "value": 1}


@pytest.fixture(scope="module")
def upstream_url() -> Iterator[str]:
    with serving(ForeignServer(["Open ", "the page."])) as url:
        yield url


@pytest.fixture
def served(tmp_path: Path, upstream_url: str) -> Iterator[Served]:
    with gateway(tmp_path, upstream_url) as served:
        yield served


def test_an_acknowledged_thumb_is_in_the_broker_with_the_ids_of_its_answer(served: Served) -> None:
    token, event_id, then = served.answer_id(), uuid4(), datetime.now(UTC) - timedelta(hours=1)
    more = {"event_id": str(event_id), "reasons": ["wrong", "too long"], "occurred_at": then.isoformat()}
    answer = served.tell({"response_id": token, "kind": "thumbs", "value": -1, **more}, **{"X-User-Id": "ann"})
    assert (answer.status_code, answer.json()) == (202, {"event_ids": [str(event_id)]})
    (event,) = served.feedback(1)
    claims = parse_keys(TOKEN_KEYS).verify(token, datetime.now(UTC))
    assert (event.event_id, event.kind, event.value) == (event_id, FeedbackKind.THUMBS, -1)
    assert event.reasons == (Reason.WRONG, Reason.TOO_LONG)
    assert (event.response_id, event.conversation_id, event.turn_id, event.user_id) == (
        claims.response_id,
        claims.conversation_id,
        claims.turn_id,
        ANN,
    )
    assert (event.occurred_at, event.signed) == (then, True)


def test_feedback_that_names_no_user_is_the_tokens_users(served: Served) -> None:
    assert served.tell({"response_id": served.answer_id("ann"), **UP}).status_code == 202
    assert served.feedback(1)[0].user_id == ANN


def test_a_batch_is_taken_whole_or_not_at_all(served: Served) -> None:
    token = served.answer_id()
    good = {"response_id": token, **UP}
    refused = served.tell({"events": [good, {"response_id": token, "kind": "thumbs", "value": 3}]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "events[1].value")
    taken = served.tell({"events": [good, {"response_id": token, "kind": "comment", "value": "nice"}]})
    assert [str(event.event_id) for event in served.feedback(2)] == taken.json()["event_ids"]


def test_the_same_idempotency_key_gives_the_same_event(served: Served) -> None:
    token = served.answer_id()
    tries = [served.tell({"response_id": token, **UP}, **{"Idempotency-Key": key}) for key in ("k", "k", "l")]
    one, two, other = (answer.json()["event_ids"][0] for answer in tries)
    assert one == two != other


def forged(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "E")


def expired() -> str:
    claims = Claims(UUID(int=1), UUID(int=2), UUID(int=3), ANN, datetime.now(UTC) - timedelta(seconds=2))
    return parse_keys(TOKEN_KEYS).mint(claims)


REFUSALS: list[Any] = [
    pytest.param(lambda token: {"response_id": token, **UP}, {"X-User-Id": "bob"}, 403, id="another user's answer"),
    pytest.param(lambda token: {"response_id": expired(), **UP}, {}, 403, id="an expired id"),
    pytest.param(lambda token: {"response_id": forged(token), **UP}, {}, 403, id="a forged id"),
    pytest.param(lambda token: {"response_id": token[:-3], **UP}, {}, 404, id="a shortened id"),
    pytest.param(lambda token: {"response_id": "chatcmpl-123", **UP}, {}, 404, id="an id of another server"),
    pytest.param(lambda token: {"response_id": token, "kind": "thumbs", "value": 5}, {}, 422, id="a thumb of five"),
    pytest.param(lambda token: {"kind": "edit", "value": "x"}, {}, 422, id="an edit of nothing"),
    pytest.param(
        lambda token: {"response_id": token, "kind": "choice", "value": {"rejected": [token]}},
        {},
        422,
        id="a choice of an answer over itself",
    ),
    pytest.param(
        lambda token: {"kind": "outcome", "conversation_id": "c1", "value": {"name": "resolved", "value": 1}},
        {},
        401,
        id="an outcome of a conversation without a key",
    ),
]


@pytest.mark.parametrize(("body", "headers", "status"), REFUSALS)
def test_what_may_not_be_said_is_refused_with_a_problem_and_reaches_no_broker(
    served: Served, body: Any, headers: dict[str, str], status: int
) -> None:
    answer = served.tell(body(served.answer_id()), **headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]
    assert served.feedback(0) == []


def test_an_answer_to_other_messages_cannot_lose_a_choice(served: Served) -> None:
    one = served.answer_id()
    other = served.answer_id(messages=[{"role": "user", "content": "something else"}])
    answer = served.tell({"response_id": one, "kind": "choice", "value": {"rejected": [other]}})
    assert (answer.status_code, "same messages" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"{not json", 400, id="no JSON"),
        pytest.param(b'{"value": "' + b"x" * 70_000 + b'"}', 413, id="a body over the limit"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(served: Served, body: bytes, status: int) -> None:
    answer = httpx.post(f"{served.url}/v1/feedback", content=body)
    assert (answer.status_code, answer.json()["status"]) == (status, status)


def test_a_body_without_a_length_is_counted_while_it_is_read(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    assert httpx.post(f"{served.url}/v1/feedback", content=endless()).status_code == 413


def test_an_outcome_of_a_conversation_or_user_needs_a_key_and_meets_the_ids_of_chats(served: Served) -> None:
    chat = served.http.post(
        "/v1/chat/completions",
        json={"model": "hone", "messages": [{"role": "user", "content": "hi"}]},
        headers={"X-User-Id": "ann", "X-Conversation-Id": "c1"},
    )
    claims = parse_keys(TOKEN_KEYS).verify(chat.json()["id"], datetime.now(UTC))
    of_conversation = {"kind": "outcome", "conversation_id": "c1", "value": {"name": "resolved", "value": 1}}
    of_user = {"kind": "outcome", "user": "ann", "value": {"name": "retained", "value": 0}}
    answer = served.http.post("/v1/feedback", json={"events": [of_conversation, of_user]})
    assert answer.status_code == 202
    one, two = sorted(served.feedback(2), key=lambda event: event.name or "")
    assert (one.conversation_id, one.user_id, one.response_id) == (claims.conversation_id, ids.NOBODY, None)
    assert (two.conversation_id, two.user_id, two.name, two.value) == (None, ANN, "retained", 0)


def test_feedback_is_refused_while_the_broker_is_away_and_may_come_again(tmp_path: Path, upstream_url: str) -> None:
    with gateway(tmp_path, upstream_url, bootstrap="127.0.0.1:9", produce_timeout_s=0.5) as served:
        answer = served.tell({"response_id": served.answer_id(), **UP})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "same event_id" in answer.json()["detail"]


def test_answers_given_while_the_broker_is_away_reach_it_later(tmp_path: Path, upstream_url: str) -> None:
    with gateway(tmp_path, upstream_url, bootstrap="127.0.0.1:9", produce_timeout_s=0.5) as served:
        tokens = [served.answer_id(), served.answer_id()]
    assert Spill(tmp_path / "spill").size() > 0
    with gateway(tmp_path, upstream_url) as served:
        found = {response.response_id for response in served.responses(2)}
        deadline = time.monotonic() + 5
        while Spill(tmp_path / "spill").size() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert found == {parse_keys(TOKEN_KEYS).verify(token, datetime.now(UTC)).response_id for token in tokens}
    assert Spill(tmp_path / "spill").size() == 0


async def replay(bootstrap: str, spill: Spill, timeout_s: float) -> bool:
    publisher = Publisher(bootstrap, timeout_s=timeout_s)
    done = await Recorder(publisher, spill).replay_once()
    await publisher.flush(0.1)
    await publisher.close()
    return done


def test_a_replay_that_fails_leaves_the_file_for_the_next_one(tmp_path: Path, upstream_url: str) -> None:
    with gateway(tmp_path, upstream_url, bootstrap="127.0.0.1:9", produce_timeout_s=0.5) as served:
        served.answer_id()
    spill = Spill(tmp_path / "spill")
    assert not asyncio.run(replay("127.0.0.1:9", spill, 0.5))
    with spill.replaying.open("ab") as stream:
        stream.write(b'{"torn')
    with broker() as bootstrap:
        assert asyncio.run(replay(bootstrap, spill, 10))
        assert spill.size() == 0
        assert len(records(bootstrap, "hone.responses.v1", dict, 1)) == 1


def test_tensorzero_and_langfuse_clients_are_understood_and_their_events_are_unsigned(served: Served) -> None:
    token, response_id = served.answer_id(), uuid4()
    claims = parse_keys(TOKEN_KEYS).verify(token, datetime.now(UTC))
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/feedback", {"inference_id": str(response_id), "metric_name": "liked", "value": True}),
        ("/feedback", {"inference_id": token, "metric_name": "demonstration", "value": "better"}),
        ("/feedback", {"episode_id": str(uuid4()), "metric_name": "csat", "value": 4.5}),
        ("/api/public/scores", {"traceId": token, "name": "user-feedback", "value": 0, "comment": "bad"}),
        ("/feedback", {"inference_id": token, "metric_name": "liked", "value": True, "dryrun": True}),
    ]
    for path, body in bodies:
        answer = served.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
    events = served.feedback(5)
    assert not any(event.signed for event in events)
    assert [event.kind.value for event in events] == ["thumbs", "edit", "outcome", "thumbs", "comment"]
    assert (events[0].response_id, events[0].user_id) == (response_id, ids.NOBODY)
    assert (events[1].response_id, events[1].user_id, events[1].text) == (claims.response_id, ANN, "better")
    assert (events[2].response_id, events[2].name, events[2].value) == (None, "csat", 4.5)
    assert events[3].value == -1
    assert httpx.post(f"{served.url}/feedback", json=bodies[0][1]).status_code == 401


def test_a_key_may_do_what_its_scopes_say_until_it_is_revoked(
    tmp_path: Path, upstream_url: str, store_url: str, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        key = create_key(session, "app", frozenset({Scope.CHAT}))
    with gateway(tmp_path, upstream_url, database_url=store_url) as served:
        bearer = {"Authorization": f"Bearer {key}"}
        body = {"model": "hone", "messages": [{"role": "user", "content": "hi"}]}
        assert served.http.post("/v1/chat/completions", json=body, headers=bearer).status_code == 200
        refused = served.http.put("/v1/router/plan", json={}, headers=bearer)
        assert (refused.status_code, "rollout:write" in refused.json()["detail"]) == (403, True)
        assert served.http.get("/v1/rollouts", headers={"Authorization": "Bearer nope"}).status_code == 401
        with sessions.begin() as session:
            assert revoke_key(session, key[:10], datetime.now(UTC)) == "app"
        deadline = time.monotonic() + 8
        while (status := served.http.get("/v1/models", headers=bearer).status_code) == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert status == 401


def test_the_database_holds_no_key_that_can_be_used(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        key = create_key(session, "app", frozenset({Scope.CHAT}))
        stored = json.dumps(
            [list(row) for row in session.connection().exec_driver_sql("SELECT * FROM api_key")], default=str
        )
    assert key not in stored
    assert key[:12] in stored


def test_chat_needs_a_key_while_the_database_is_away_only_the_admin_key_works(served: Served) -> None:
    body = {"model": "hone", "messages": [{"role": "user", "content": "hi"}]}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 401
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer other"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert served.chat().status_code == 200


def test_on_loopback_without_an_admin_key_chat_is_open_and_a_key_for_the_rest_is_printed(
    tmp_path: Path, upstream_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(tmp_path, upstream_url, key="") as served:
        key = capsys.readouterr().out.split()[-1]
        assert served.chat().status_code == 200
        assert served.http.get("/v1/router/plan").status_code == 401
        bearer = {"Authorization": f"Bearer {key}"}
        assert served.http.get("/v1/router/plan", headers=bearer).status_code == 200


def test_browsers_of_allowed_origins_only_may_send_feedback(tmp_path: Path, upstream_url: str) -> None:
    with gateway(tmp_path, upstream_url, cors_origins=("https://app.example",)) as served:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            answer = served.http.options("/v1/feedback", headers={"Origin": origin, **asked})
            assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        pytest.param({"token_keys": ""}, "HONE_TOKEN_KEYS", id="no token key"),
        pytest.param({"identity_key": "xyz"}, "HONE_IDENTITY_KEY", id="an identity key that is no hex"),
        pytest.param({"kafka_bootstrap_servers": None}, "HONE_KAFKA_BOOTSTRAP_SERVERS", id="no broker"),
    ],
)
def test_a_gateway_does_not_start_without_what_it_needs(missing: dict[str, Any], names: str) -> None:
    whole = {"token_keys": TOKEN_KEYS, "identity_key": IDENTITY_KEY, "kafka_bootstrap_servers": "127.0.0.1:9"}
    with pytest.raises(ConfigError, match=names):
        open_gateway(Settings(**(whole | missing)), "127.0.0.1")


async def send_huge(bootstrap: str, spill: Spill) -> None:
    publisher = Publisher(bootstrap, timeout_s=2)
    recorder = Recorder(publisher, spill)
    recorder.record(lambda: response("huge", completion="x" * 2_000_000))
    recorder.record(lambda: response("small"))
    await recorder.drain()
    await publisher.close()


def test_a_record_that_kafka_will_never_take_does_not_hold_up_the_others(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill")
    with broker() as bootstrap:
        asyncio.run(send_huge(bootstrap, spill))
        (kept,) = records(bootstrap, "hone.responses.v1", Response, 1)
    assert kept.completion == "answer small"
    assert spill.size() == 0


def test_an_answer_too_long_to_store_is_cut_and_counts_as_incomplete() -> None:
    assert storable("ä" * 300_000) == ("ä" * 262_144, False)
    assert storable("a\x00b") == ("a\ufffdb", True)
