"""The gateway before somebody else's streaming server: nothing is buffered, nothing of theirs shows, cuts are seen."""

import asyncio
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from hone.metrics import CHAT_ANSWERS, GATEWAY_REQUESTS
from hone.records import Track, TrafficPlan
from serving.gateway.sse import summarize
from tests.support.gateway import HI, ForeignServer, event, gateway
from tests.support.web import serving


@pytest.mark.parametrize("way", [{}, {"origin": "https://app.example"}], ids=["short way", "ordinary way"])
def test_the_first_chunk_arrives_before_the_server_has_written_the_second(tmp_path: Path, way: dict[str, str]) -> None:
    foreign = ForeignServer(["one ", "two ", "three"])
    foreign.may_go_on.clear()
    with serving(foreign) as url, gateway(tmp_path, url) as served:
        body = {"model": "hone", "messages": HI, "stream": True}
        with served.http.stream("POST", "/v1/chat/completions", json=body, headers=way) as answer:
            pieces = answer.iter_bytes()
            assert b"one " in next(pieces)
            foreign.may_go_on.set()
            rest = b"".join(pieces)
        assert b"three" in rest
        (response,) = served.responses(1)
    assert (response.completion, response.completed) == ("one two three", True)


def test_a_foreign_servers_id_and_model_are_replaced(tmp_path: Path) -> None:
    with serving(ForeignServer(["hi"])) as url, gateway(tmp_path, url) as served:
        for answer in (served.chat().text, served.chat(stream=True).text):
            assert "chatcmpl-" in answer
            assert all(secret not in answer for secret in ("cmpl-foreign", "m-secret", "fp"))


@pytest.mark.parametrize("way", [{}, {"origin": "https://app.example"}], ids=["short way", "ordinary way"])
def test_a_client_that_leaves_stops_the_model_server_and_the_part_is_recorded(
    tmp_path: Path, way: dict[str, str]
) -> None:
    foreign = ForeignServer(["one ", "two ", "three"])
    foreign.may_go_on.clear()
    with serving(foreign) as url, gateway(tmp_path, url) as served:
        body = {"model": "hone", "messages": HI, "stream": True}
        with served.http.stream("POST", "/v1/chat/completions", json=body, headers=way) as answer:
            assert b"one " in next(answer.iter_bytes())
        (response,) = served.responses(1)
        deadline = time.monotonic() + 5
        while not foreign.left_early and time.monotonic() < deadline:
            time.sleep(0.02)
    assert foreign.left_early
    assert (response.completion, response.completed, response.finish_reason) == ("one ", False, "cancelled")


@pytest.mark.parametrize("way", [{}, {"origin": "https://app.example"}], ids=["short way", "ordinary way"])
def test_a_client_that_leaves_before_the_first_byte_is_no_failure_of_ours(tmp_path: Path, way: dict[str, str]) -> None:
    foreign = ForeignServer(["one"])
    foreign.hangs = True
    with serving(foreign) as url, gateway(tmp_path, url) as served:
        before = counted()
        body = {"model": "hone", "messages": HI, "stream": True}
        with pytest.raises(httpx.ReadTimeout):
            served.http.post("/v1/chat/completions", json=body, headers=way, timeout=0.3)
        (response,) = served.responses(1)
        foreign.hangs = False
    assert (response.finish_reason, response.completed) == ("cancelled", False)
    assert counted() - before == {"499": 1, "left": 1}


def counted() -> Counter[str]:
    """How often each code and each outcome was counted for chats so far."""
    found: Counter[str] = Counter()
    families = [*CHAT_ANSWERS.collect(), *GATEWAY_REQUESTS.collect()]
    for sample in chain.from_iterable(family.samples for family in families):
        if sample.name.endswith("_total") and sample.labels.get("route", "chat") == "chat":
            found[sample.labels.get("outcome") or sample.labels["code"]] += int(sample.value)
    return found


def test_a_server_that_breaks_off_in_the_middle_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    with serving(ForeignServer(["one ", "two "], breaks_after=1)) as url, gateway(tmp_path, url) as served:
        text = served.chat(stream=True).text
        (response,) = served.responses(1)
    assert "[DONE]" not in text
    assert json.loads(text.strip().splitlines()[-1][6:])["error"]["code"] == 502
    assert (response.completion, response.completed, response.finish_reason) == ("one ", False, "error")


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ([(b"retry-after", b"7")], "7"),
        ([(b"retry-after", b"Thu, 01 Jan 2026 00:00:00 GMT")], "0"),
        ([(b"retry-after", b"soon")], None),
        ([], None),
    ],
)
def test_a_servers_rate_limit_reaches_the_client_as_one(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], wait: str | None
) -> None:
    foreign = ForeignServer(["hi"])
    foreign.refusal = 429, headers
    with serving(foreign) as url, gateway(tmp_path, url) as served:
        before = counted()
        answer = served.chat()
    assert (answer.status_code, answer.headers.get("retry-after")) == (429, wait)
    assert answer.json()["title"] == "rate limited upstream"
    assert "not you" not in answer.text, "whose server it is, and whose account, is nobody's business"
    assert counted() - before == {"429": 1, "refused": 1}


WHOLE = b'{"id":"cmpl-1","choices":[{"message":{"content":"%s"},"finish_reason":"stop"}]}'
DEEP = b'{"id":"cmpl-1","deep":' + b"[" * 5000 + b"]" * 5000 + b"}"


def test_a_foreign_answer_with_odd_bytes_is_passed_on_and_one_that_cannot_be_read_is_a_502(tmp_path: Path) -> None:
    foreign = ForeignServer([])
    with serving(foreign) as url, gateway(tmp_path, url) as served:
        foreign.raw = WHOLE % b"h\xffi"
        assert b"h\xffi" in served.chat().content
        foreign.raw = DEEP
        answer = served.chat()
        found = served.responses(2)
    assert (answer.status_code, "cmpl-1" in answer.text) == (502, False), "it would tell whose server it is"
    assert [(one.completion, one.finish_reason) for one in found] == [("h\ufffdi", "stop"), ("", "error")]


class CutServer(ForeignServer):
    """Sends its stream in two pieces, or only the first of them."""

    whole = (
        event({"content": "Grüß "}, None) + event({"content": "dich"}, None) + event({}, "stop") + b"data: [DONE]\n\n"
    )
    cut = 0
    breaks = False

    async def stream(self, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.whole[: self.cut], "more_body": True})
        await asyncio.sleep(0.02)
        if self.breaks:
            raise ConnectionAbortedError("the test breaks the connection")
        await send({"type": "http.response.body", "body": self.whole[self.cut :]})


def test_a_stream_cut_inside_of_an_event_is_passed_on_and_recorded_whole_or_as_far_as_it_came(tmp_path: Path) -> None:
    model = CutServer([])
    places = [b"ta: ", b"-foreign", b"\xbc", b"\ndata", b"stop", b"DONE]"]
    cuts = [model.whole.index(place) for place in places]
    with serving(model) as url, gateway(tmp_path, url) as served:
        for model.breaks in (False, True):
            for model.cut in cuts:
                answer = served.chat(stream=True)
                got = summarize(answer.content, stream=True)
                assert got.text == (
                    "Grüß dich" if not model.breaks else summarize(model.whole[: model.cut], stream=True).text
                )
                assert answer.text.rstrip().endswith("[DONE]") != model.breaks
                assert b"cmpl-foreign" not in answer.content
        found = served.responses(2 * len(cuts))
    assert {(one.completion, one.finish_reason, one.completed) for one in found[: len(cuts)]} == {
        ("Grüß dich", "stop", True)
    }
    broken = found[len(cuts) :]
    assert [one.completion for one in broken] == ["", "", "", "Grüß ", "Grüß dich", "Grüß dich"]
    assert [one.finish_reason for one in broken] == [*["error"] * 5, "stop"]
    assert not any(one.completed for one in broken)


@pytest.mark.parametrize("stream", [False, True])
def test_a_canary_that_stays_silent_is_replaced_by_stable(tmp_path: Path, stream: bool) -> None:
    silent, stable = ForeignServer(["never"]), ForeignServer(["from stable"])
    silent.hangs = True
    with serving(silent) as silent_url, serving(stable) as url:
        others = {"m-new": {"url": silent_url, "model": "silent"}}
        with gateway(tmp_path, url, settings={"upstreams": others}, upstream_timeout_s=0.2) as served:
            served.take(
                TrafficPlan(
                    fence=1,
                    stable="m-old",
                    canary="m-new",
                    canary_weight=1.0,
                    rollout_id=UUID(int=1),
                    stage=0,
                    expires_at=datetime.now(UTC) + timedelta(minutes=5),
                )
            )
            assert "from stable" in served.chat(stream=stream).text
            (response,) = served.responses(1)
            silent.hangs = False
    assert (response.fallback, response.track, response.completed) == (True, Track.STABLE, True)
