"""How a chat is said to an arm behind Seldon, and how its answer becomes OpenAI's again."""

from typing import Any

import msgspec
import pytest

from serving.gateway.seldon import LineV1, LineV2, as_events, attempt

CHAT = {"messages": [{"role": "user", "content": "Wie geht’s?"}], "temperature": 0.5}
ANSWER: dict[str, Any] = {
    "id": "t",
    "created": 1,
    "model": "hone",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Gut."}, "finish_reason": "stop"}],
    "usage": {"total_tokens": 9},
}
V1 = LineV1("hone-chat", "hone", "http://{service}.{namespace}:8000")
V2 = LineV2("hone", "http://seldon-mesh.{namespace}/")


def test_v1_names_the_service_of_one_version_and_never_the_split() -> None:
    call = V1.call("m-1", CHAT, "token")
    assert call.url == "http://hone-chat-m-1.hone:8000/api/v1.0/predictions"
    assert call.body == {"jsonData": CHAT, "meta": {"tags": {"answer_id": "token"}}}


def test_v2_names_the_model_in_path_and_header_and_never_the_experiment() -> None:
    call = V2.call("m-1", CHAT, "token")
    assert call.url == "http://seldon-mesh.hone/v2/models/chat-m-1/infer"
    assert call.headers == {"seldon-model": "chat-m-1"}
    (tensor,) = call.body["inputs"]
    assert (tensor["datatype"], tensor["shape"], msgspec.json.decode(tensor["data"][0])) == ("BYTES", [1], CHAT)
    assert call.body["parameters"] == {"answer_id": "token"}


def test_both_read_the_completion_out_of_their_protocol() -> None:
    text = msgspec.json.encode(ANSWER).decode()
    outputs = [{"name": "other", "data": ["x"]}, {"name": "chat_response", "data": [text]}]
    assert V1.read({"jsonData": ANSWER, "meta": {}}) == ANSWER
    assert V2.read({"model_name": "chat-m-1", "outputs": outputs}) == ANSWER


@pytest.mark.parametrize(
    "raw", [b"", b"no JSON", b"[]", b"{}", b'{"outputs": []}', b'{"outputs": [{"name": "chat_response"}]}']
)
def test_an_answer_of_another_shape_is_none(raw: bytes) -> None:
    assert attempt(V1.read, raw) is None
    assert attempt(V2.read, raw) is None


def test_refusals_keep_the_arms_own_words() -> None:
    assert attempt(V1.refusal, b'{"status": {"code": 422, "info": "too long"}}') == "too long"
    assert attempt(V2.refusal, b'{"error": "too long"}') == "too long"


@pytest.mark.parametrize("usage", [False, True])
def test_a_whole_answer_becomes_a_stream_of_one_chunk(usage: bool) -> None:
    lines = as_events(ANSWER, usage=usage).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [msgspec.json.decode(line.removeprefix("data: ")) for line in lines[:-2]]
    assert {event["id"] for event in events} == {"t"}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[0]["choices"][0]["delta"]["content"] == "Gut."
    assert events[1]["choices"][0]["finish_reason"] == "stop"
    assert [event.get("usage") for event in events[2:]] == ([{"total_tokens": 9}] if usage else [])
