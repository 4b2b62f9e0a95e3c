"""A team's own check of answers: what leaves, what is recorded, and what a hook does that is slow, away or broken."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from hone.ids import uuid7
from hone.metrics import GATEWAY_REQUESTS, HOOK_CALLS
from hone.records import Track
from hone.settings import Gateway as Limits
from serving.gateway.ask import read_ask
from serving.gateway.exchange import Exchange
from serving.gateway.hook import Hook, Judgement
from serving.gateway.sse import Summary
from serving.router import Decision
from tests.support.gateway import HI, ForeignServer, Served, gateway, lifespan
from tests.support.web import serving

ALLOW = b'{"allow": true}'
REPLACE = b'{"allow": false, "replacement": "I may not say that.", "reason": "medical advice"}'


class HookServer:
    """A hook that says what the test told it to."""

    def __init__(self, says: bytes, status: int = 200, delay_s: float = 0) -> None:
        self.says, self.status, self.delay_s = says, status, delay_s
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        self.asked.append(msgspec.json.decode((await receive())["body"]))
        await asyncio.sleep(self.delay_s)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.says})


@contextmanager
def judged(var_dir: Path, hook: HookServer, model: ForeignServer, **limits: Any) -> Iterator[Served]:
    with serving(hook) as hook_url, serving(model) as url:
        limits = {"response_hook_url": hook_url} | limits
        with gateway(var_dir, url, **limits) as served:
            yield served


def chunks_of(text: str) -> list[dict[str, Any]]:
    lines = [line[6:] for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def calls(result: str) -> float:
    return HOOK_CALLS.labels(result)._value.get()


def test_an_answer_that_the_hook_allows_leaves_as_it_is(tmp_path: Path) -> None:
    hook, before = HookServer(ALLOW), calls("allowed")
    with judged(tmp_path, hook, ForeignServer(["Press ", "Share."])) as served:
        assert served.chat().json()["choices"][0]["message"]["content"] == "Press Share."
        chunks = chunks_of(served.chat(stream=True).text)
        found = served.responses(2)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["Press ", "Share.", None]
    assert {(response.completion, response.finish_reason) for response in found} == {("Press Share.", "stop")}
    assert not any("withheld" in response.parameters for response in found)
    assert calls("allowed") == before + 2


def test_the_hook_sees_messages_and_answer_and_not_who_asked(tmp_path: Path) -> None:
    hook = HookServer(ALLOW)
    with judged(tmp_path, hook, ForeignServer(["Press ", "Share."])) as served:
        answer = served.chat("ann", safety_identifier="ann@example.org", stream=True)
        (response,) = served.responses(1)
    (asked,) = hook.asked
    assert asked == {
        "response_id": str(response.response_id),
        "model": "hone",
        "model_version": "m-old",
        "messages": HI,
        "completion": "Press Share.",
        "finish_reason": "stop",
    }
    assert chunks_of(answer.text)[0]["id"] not in json.dumps(asked)


@pytest.mark.parametrize("stream", [False, True])
def test_a_replaced_answer_is_all_that_leaves_and_all_that_is_recorded(tmp_path: Path, stream: bool) -> None:
    before = calls("replaced")
    with judged(tmp_path, HookServer(REPLACE), ForeignServer(["Take ", "poison."])) as served:
        answer = served.chat(stream=stream)
        (response,) = served.responses(1)
    assert answer.status_code == 200
    assert "poison" not in answer.text
    documents = chunks_of(answer.text) if stream else [answer.json()]
    assert {(document["id"][:9], document["model"]) for document in documents} == {("chatcmpl-", "hone")}
    assert documents[-1]["choices"][0]["finish_reason"] == "content_filter"
    parts = [
        document["choices"][0].get("delta") or document["choices"][0].get("message") or {} for document in documents
    ]
    assert "".join(part.get("content", "") for part in parts) == "I may not say that."
    assert (response.completion, response.finish_reason) == ("I may not say that.", "content_filter")
    assert (response.completed, response.parameters["withheld"]) == (True, "medical advice")
    assert calls("replaced") == before + 1


def test_a_tool_call_is_withheld_with_the_answer(tmp_path: Path) -> None:
    model = ForeignServer([""])
    model.calls = [{"id": "call_1", "type": "function", "function": {"name": "cancel_order", "arguments": "{}"}}]
    with judged(tmp_path, HookServer(b'{"allow": false}'), model) as served:
        (choice,) = served.chat().json()["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "content_filter",
    }


def test_an_answer_with_odd_bytes_is_replaced_and_one_that_cannot_be_read_does_not_leave(tmp_path: Path) -> None:
    hook, model = HookServer(REPLACE), ForeignServer([])
    with judged(tmp_path, hook, model) as served:
        model.raw = b'{"object":"o\xff","choices":[{"message":{"content":"h\xffi"},"finish_reason":"stop"}]}'
        answer = served.chat().json()
        assert (answer["object"], answer["choices"][0]["message"]["content"]) == ("o\ufffd", "I may not say that.")
        hook.says = ALLOW
        model.raw = b'{"choices":[],"deep":' + b"[" * 5000 + b"]" * 5000 + b"}"
        unread = [served.chat(stream=stream) for stream in (False, True)]
        found = served.responses(3)
    assert [answer.status_code for answer in unread] == [502, 502]
    assert [asked["completion"] for asked in hook.asked] == ["h\ufffdi"], "what cannot be read cannot be judged"
    assert [one.finish_reason for one in found] == ["content_filter", "error", "error"]


FAILURES = [
    pytest.param({"delay_s": 1.0, "says": ALLOW}, "timeout", id="slow"),
    pytest.param({"says": b"", "status": 500}, "invalid", id="failing"),
    pytest.param({"says": b"<html>"}, "invalid", id="no JSON"),
    pytest.param({"says": b'{"allow": "yes"}'}, "invalid", id="another shape"),
    pytest.param({"says": b'{"allow": true, "replacement": "?"}'}, "invalid", id="allowed and replaced"),
    pytest.param(None, "unreachable", id="down"),
]


@pytest.mark.parametrize(("broken", "result"), FAILURES)
def test_a_hook_that_fails_is_counted_and_answered_for_by_the_setting(
    broken: dict[str, Any] | None, result: str
) -> None:
    before = calls(result)
    with serving(HookServer(**(broken or {"says": ALLOW}))) as url:
        judgements = asyncio.run(judge_by_both_policies("http://127.0.0.1:9/" if broken is None else url))
    assert [judgement.result for judgement in judgements] == [result, result]
    assert [judgement.allow for judgement in judgements] == [True, False]
    assert calls(result) == before + 2


def an_exchange() -> Exchange:
    body = msgspec.json.encode({"model": "hone", "messages": HI})
    ask = read_ask(body, {"headers": []}, b"k" * 16, uuid7())
    return Exchange(ask, Decision(Track.STABLE, "m"), None, uuid7(), 0)


async def judge_by_both_policies(url: str) -> list[Judgement]:
    judgements = []
    for policy in ("pass", "block"):
        hook = Hook(Limits(response_hook_url=url, response_hook_timeout_s=0.3, response_hook_on_failure=policy))
        judgements.append(await hook.judge(an_exchange(), Summary("hello", "stop", None, None)))
        await hook.close()
    return judgements


@pytest.mark.parametrize(("policy", "text", "reason"), [("pass", "hello", "stop"), ("block", "", "content_filter")])
def test_answers_pass_or_are_withheld_while_the_hook_is_down(
    tmp_path: Path, policy: str, text: str, reason: str
) -> None:
    limits = {"response_hook_url": "http://127.0.0.1:9/", "response_hook_on_failure": policy}
    with judged(tmp_path, HookServer(ALLOW), ForeignServer(["hello"]), **limits) as served:
        (choice,) = served.chat().json()["choices"]
        (response,) = served.responses(1)
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)
    assert (response.completion, response.finish_reason) == (text, reason)


def test_a_hook_that_fails_again_and_again_is_not_asked_for_a_while_and_then_tried_by_one_answer() -> None:
    server, before = HookServer(b"", status=500), calls("skipped")
    with serving(server) as url:
        results = asyncio.run(judge_while_it_fails_and_recovers(url, server))
    assert results == ["invalid", "invalid", "skipped", "invalid", "skipped", "allowed", "allowed"]
    assert len(server.asked) == 5
    assert calls("skipped") == before + 2


async def judge_while_it_fails_and_recovers(url: str, server: HookServer) -> list[str]:
    now, results = 0.0, []
    limits = Limits(response_hook_url=url, response_hook_breaker_failures=2, response_hook_breaker_open_s=10)
    hook = Hook(limits, clock=lambda: now)
    for now in (0, 1, 2, 11.5, 12, 22, 23):
        if now == 22:
            server.says, server.status = ALLOW, 200
        results.append((await hook.judge(an_exchange(), Summary("hello", "stop", None, None))).result)
    await hook.close()
    return results


def test_a_stream_is_held_until_the_hook_has_answered(tmp_path: Path) -> None:
    hook, model = HookServer(ALLOW), ForeignServer(["one ", "two"])
    model.may_go_on.clear()
    with judged(tmp_path, hook, model) as served:
        body, left = {"model": "hone", "messages": HI, "stream": True}, GATEWAY_REQUESTS.labels("chat", 499)
        before = left._value.get()
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(first_byte(served, body), 0.5))
        assert hook.asked == []
        (response,) = served.responses(1)
        model.may_go_on.set()
    assert (response.completion, response.finish_reason, response.completed) == ("", "cancelled", False)
    assert left._value.get() == before + 1
    assert model.left_early


async def first_byte(served: Served, body: dict[str, Any]) -> None:
    async with (
        httpx.AsyncClient(headers=served.http.headers, trust_env=False) as client,
        client.stream("POST", f"{served.url}/v1/chat/completions", json=body) as answer,
    ):
        async for _ in answer.aiter_raw():
            return


def test_a_held_stream_that_breaks_off_is_a_502_and_leaves_nothing(tmp_path: Path) -> None:
    hook = HookServer(ALLOW)
    with judged(tmp_path, hook, ForeignServer(["one ", "two"], breaks_after=1)) as served:
        answer = served.chat(stream=True)
        (response,) = served.responses(1)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")
    assert hook.asked == []
    assert (response.completion, response.finish_reason, response.completed) == ("", "error", False)
