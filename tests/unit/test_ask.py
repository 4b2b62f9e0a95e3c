"""Who asks what: pseudonyms of users, conversations and turns, and what a model server gets to see."""

from typing import Any
from uuid import UUID

import msgspec
import pytest

from serving.gateway.ask import Ask, read_ask
from serving.http import Problem

KEY = b"identity-key-0123"
FIRST = UUID(int=1)
HI = [{"role": "user", "content": "hi"}]


def ask(body: dict[str, Any] | None = None, headers: dict[str, str] | None = None, response_id: UUID = FIRST) -> Ask:
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    fields = {"model": "hone", "messages": HI} | (body or {})
    return read_ask(msgspec.json.encode(fields), {"headers": pairs}, KEY, response_id)


def test_a_user_is_the_header_else_the_safety_identifier_else_the_user_field() -> None:
    ann = ask(headers={"X-User-Id": "ann"}).user_id
    assert ask({"safety_identifier": "ann", "user": "bob"}).user_id == ann
    assert ask({"user": "ann"}).user_id == ann
    assert ask({"user": "bob"}, {"X-User-Id": "ann"}).user_id == ann
    assert ask({"user": "bob"}).user_id != ann


def test_the_same_question_of_the_same_user_is_the_same_turn_of_the_same_conversation() -> None:
    one, two = ask({"user": "ann"}), ask({"user": "ann", "temperature": 0.3}, response_id=UUID(int=2))
    assert (one.conversation_id, one.turn_id) == (two.conversation_id, two.turn_id)


def test_two_users_with_the_same_question_have_two_conversations() -> None:
    assert ask({"user": "ann"}).turn_id != ask({"user": "bob"}).turn_id


def test_a_later_turn_belongs_to_the_conversation_of_the_first() -> None:
    more = [*HI, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]
    first, second = ask({"user": "ann"}), ask({"user": "ann", "messages": more})
    assert first.conversation_id == second.conversation_id
    assert first.turn_id != second.turn_id


def test_the_apps_own_conversation_wins_over_the_derived_one() -> None:
    named = ask({"user": "ann"}, {"X-Conversation-Id": "c1"})
    assert named.conversation_id == ask({"user": "ann", "metadata": {"conversation_id": "c1"}}).conversation_id
    assert named.conversation_id != ask({"user": "ann"}).conversation_id


def test_strangers_who_ask_the_same_are_not_one_who_asks_again() -> None:
    one, two = ask(response_id=UUID(int=1)), ask(response_id=UUID(int=2))
    assert one.user_id != two.user_id
    assert one.turn_id != two.turn_id


def test_a_stranger_is_one_person_within_a_named_conversation() -> None:
    headers = {"X-Conversation-Id": "c1"}
    one, two = ask(headers=headers, response_id=UUID(int=1)), ask(headers=headers, response_id=UUID(int=2))
    assert (one.user_id, one.turn_id) == (two.user_id, two.turn_id)


def test_a_model_server_gets_the_version_and_nothing_that_names_people() -> None:
    request = ask({"user": "ann", "metadata": {"a": "b"}, "safety_identifier": "x", "top_k": 3, "stream": True})
    sent = msgspec.json.decode(request.upstream_body("m-1"))
    assert sent == {"model": "m-1", "messages": HI, "top_k": 3, "stream": True}
    assert msgspec.json.decode(request.upstream_body("m-1", metadata=True)) == sent | {"metadata": {"a": "b"}}


def test_a_shadow_copy_does_not_stream() -> None:
    request = ask({"stream": True, "stream_options": {"include_usage": True}})
    assert msgspec.json.decode(request.upstream_body("m-1", stream=False)) == {
        "model": "m-1",
        "messages": HI,
        "stream": False,
    }


def test_texts_in_parts_are_joined_and_other_parts_leave_a_mark_of_their_own() -> None:
    def picture(url: str) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": "see "}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": parts}]

    one, two = ask({"user": "ann", "messages": picture("a")}), ask({"user": "ann", "messages": picture("b")})
    assert (one.messages[0].content or "").startswith("see [image_url ")
    assert one.turn_id != two.turn_id


def test_text_that_postgres_cannot_store_is_replaced_in_the_record_only() -> None:
    request = ask({"messages": [{"role": "user", "content": "a\x00b"}]})
    assert request.messages[0].content == "a\ufffdb"
    assert msgspec.json.decode(request.upstream_body("m"))["messages"][0]["content"] == "a\x00b"


def test_the_same_idempotency_key_names_a_retry_of_the_same_user_only() -> None:
    keys = {ask({"user": name}, {"Idempotency-Key": "k"}).idempotency_key for name in ("ann", "ann", "bob")}
    assert len(keys) == 2
    assert ask({"user": "ann"}).idempotency_key is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param({"n": 2}, "one answer a request", id="several answers at once"),
        pytest.param({"messages": []}, "length", id="no message"),
        pytest.param({"messages": "hi"}, "messages", id="messages that are a text"),
        pytest.param({"model": None}, "model", id="no model"),
        pytest.param({"user": "x" * 600}, "600 characters", id="an endless user name"),
    ],
)
def test_what_is_no_chat_request_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(Problem, match=says) as caught:
        ask(body)
    assert caught.value.status == 400
