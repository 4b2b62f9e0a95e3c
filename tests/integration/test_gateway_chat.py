"""Chat through the real gateway: over the real runtime, over foreign servers, and over servers that fail."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import pytest
import torch

from hone import ids
from hone.client import AsyncHoneClient, HoneClient
from hone.errors import RejectedToken
from hone.records import FeedbackKind, Track, TrafficPlan
from hone.tokens import parse_keys
from serving.router import bucket
from serving.runtime.app import runtime_app
from serving.runtime.model import load_model
from tests.support.gateway import HI, IDENTITY_KEY, KEY, TOKEN_KEYS, ForeignServer, Served, gateway
from tests.support.tiny_model import make_tiny_model
from tests.support.web import serving

ROLLOUT = UUID(int=77)
NAMES = [f"user-{i}" for i in range(40)]
ANN = ids.user_id(bytes.fromhex(IDENTITY_KEY), "ann")


def arm_of(name: str, weight: float) -> Track:
    user = ids.user_id(bytes.fromhex(IDENTITY_KEY), name)
    return Track.CANARY if bucket(bytes.fromhex(IDENTITY_KEY), ROLLOUT, user) < weight else Track.STABLE


def plan(
    weight: float = 0.5, *, canary: str = "m-new", fence: int = 1, shadow: bool = False, duels: float = 0
) -> TrafficPlan:
    return TrafficPlan(
        fence=fence,
        stable="m-old",
        canary=canary,
        canary_weight=weight,
        shadow=shadow,
        rollout_id=ROLLOUT,
        stage=1,
        duel_share=duels,
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )


@pytest.fixture(scope="module")
def runtime_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("models")
    arms = {"m-old": 1, "m-new": 2}
    models = {name: load_model(name, make_tiny_model(directory / name, seed)) for name, seed in arms.items()}
    with serving(runtime_app(models)) as url:
        yield url


@pytest.fixture
def served(tmp_path: Path, runtime_url: str) -> Iterator[Served]:
    with gateway(tmp_path, runtime_url) as served:
        yield served


def test_an_answer_carries_its_token_and_leaves_a_record(served: Served) -> None:
    answer = served.chat(temperature=0.5).json()
    claims = parse_keys(TOKEN_KEYS).verify(answer["id"], datetime.now(UTC), ANN)
    (response,) = served.responses(1)
    assert (response.response_id, response.turn_id, response.user_id) == (claims.response_id, claims.turn_id, ANN)
    assert response.conversation_id == claims.conversation_id
    assert response.completion == answer["choices"][0]["message"]["content"]
    assert (response.track, response.model_version, response.rollout_id) == (Track.STABLE, "m-old", None)
    assert (response.finish_reason, response.completed) == (answer["choices"][0]["finish_reason"], True)
    assert (response.num_prompt_tokens, response.num_completion_tokens) == tuple(answer["usage"].values())[:2]
    assert response.parameters == {"temperature": 0.5, "max_tokens": 6, "seed": 1}
    assert 0 < (response.first_byte_ms or 0) <= response.latency_ms


def test_a_stream_is_the_same_answer_in_pieces_under_the_same_id(served: Served) -> None:
    whole = served.chat().json()
    lines = [line[6:] for line in served.chat(stream=True).text.splitlines() if line]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    (streamed_id,) = {chunk["id"] for chunk in chunks}
    one, two = served.responses(2)
    assert parse_keys(TOKEN_KEYS).verify(streamed_id, datetime.now(UTC)).response_id == two.response_id
    assert (one.turn_id, one.completion) == (two.turn_id, two.completion)
    assert two.finish_reason == one.finish_reason


def test_users_are_split_by_the_plan_and_nobody_can_tell_by_whom_they_are_answered(served: Served) -> None:
    served.take(plan(0.5))
    answers = [served.chat(name, max_tokens=2) for name in NAMES]
    assert {answer.json()["model"] for answer in answers} == {"hone"}
    assert "m-" not in "".join(str(answer.headers) for answer in answers)
    found = {response.user_id: response for response in served.responses(len(NAMES))}
    for name in NAMES:
        response = found[ids.user_id(bytes.fromhex(IDENTITY_KEY), name)]
        assert response.track is arm_of(name, 0.5)
        assert response.model_version == ("m-new" if response.track is Track.CANARY else "m-old")
        assert (response.rollout_id, response.stage, response.propensity) == (ROLLOUT, 1, 0.5)
    counts = served.http.get("/v1/router/plan").json()["served"]
    assert sum(counts.values()) == len(NAMES)
    assert min(counts.values()) > 5


def test_a_canary_that_fails_before_its_first_byte_is_replaced_by_stable_and_counted(served: Served) -> None:
    served.take(plan(1.0, canary="m-missing"))
    for stream in (False, True):
        assert served.chat(stream=stream).status_code == 200
    for response in served.responses(2):
        assert (response.fallback, response.track, response.model_version) == (True, Track.STABLE, "m-old")
        assert (response.rollout_id, response.completed) == (ROLLOUT, True)


def test_when_every_model_fails_the_client_hears_no_version_and_the_failure_is_recorded(
    tmp_path: Path, runtime_url: str
) -> None:
    with gateway(tmp_path, runtime_url, stable="m-missing") as served:
        answer = served.chat()
        assert (answer.status_code, answer.headers["retry-after"]) == (502, "1")
        assert "m-missing" not in answer.text
        (response,) = served.responses(1)
    assert (response.completed, response.completion, response.track) == (False, "", Track.STABLE)
    assert response.finish_reason == "error"


def test_what_the_model_server_finds_wrong_with_a_request_reaches_the_client_and_leaves_no_record(
    served: Served,
) -> None:
    long = [{"role": "user", "content": "order " * 400}]
    answer = served.chat(messages=long)
    assert (answer.status_code, "send less" in answer.json()["error"]["message"]) == (400, True)
    served.chat()
    served.responses(1)


def test_shadow_copies_are_recorded_and_never_seen(served: Served) -> None:
    served.take(plan(0.0, shadow=True))
    answer = served.chat().json()
    first, second = served.responses(2)
    by_track = {response.track: response for response in (first, second)}
    assert by_track[Track.STABLE].completion == answer["choices"][0]["message"]["content"]
    shadow = by_track[Track.SHADOW]
    assert (shadow.model_version, shadow.turn_id, shadow.completed) == ("m-new", first.turn_id, True)
    assert shadow.response_id != by_track[Track.STABLE].response_id


def test_a_regenerate_may_be_a_duel_and_the_first_answer_of_a_turn_and_the_third_never(served: Served) -> None:
    served.take(plan(0.5, duels=1.0))
    for name in NAMES[:4]:
        for _ in range(3):
            served.chat(name, max_tokens=2)
    found = sorted(served.responses(12), key=lambda response: response.response_id)
    for turn in {response.turn_id for response in found}:
        one, two, three = [response for response in found if response.turn_id == turn]
        assert [one.duel, two.duel, three.duel] == [False, True, False]
        assert (one.track, one.model_version) == (three.track, three.model_version)
        assert {one.track, two.track} == {Track.STABLE, Track.CANARY}
        assert (two.propensity, two.rollout_id, two.stage) == (1.0, ROLLOUT, 1)


def test_without_a_share_of_duels_every_answer_is_of_the_users_own_arm(served: Served) -> None:
    served.take(plan(0.5))
    for _ in range(3):
        served.chat("ann", max_tokens=2)
    found = served.responses(3)
    assert len({(response.track, response.duel) for response in found}) == 1
    assert not found[0].duel


def test_broken_glass_stops_the_canary_at_once_and_whatever_plan_comes(served: Served) -> None:
    served.take(plan(1.0))
    served.chat()
    order = {"rollout_id": str(ROLLOUT), "reason": "it swears"}
    assert served.http.post("/v1/router/break-glass", json=order).status_code == 200
    served.take(plan(1.0, fence=5))
    served.chat()
    one, two = served.responses(2)
    assert (one.track, two.track, two.rollout_id) == (Track.CANARY, Track.STABLE, None)
    state = served.http.get("/v1/router/plan").json()
    assert (state["broken_glass"], state["weight_in_force"]) == ([str(ROLLOUT)], 0.0)


def test_a_plan_with_an_older_fence_is_refused(served: Served) -> None:
    served.take(plan(0.5, fence=7))
    answer = served.http.put("/v1/router/plan", content=msgspec.json.encode(plan(1.0, fence=6)))
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert served.http.get("/v1/router/plan").json()["weight_in_force"] == 0.5


def test_a_registered_upstream_answers_its_name_with_license_and_outside_of_rollouts(
    tmp_path: Path, runtime_url: str
) -> None:
    foreign = ForeignServer(["recorded"])
    with serving(foreign) as url, gateway(tmp_path, runtime_url) as served:
        served.take(plan(1.0))
        order = {"url": url, "track": "replay", "expires_in_s": 60}
        assert served.http.put("/v1/upstreams/recorded", json=order).status_code == 200
        assert served.http.put("/v1/upstreams/told", json=order | {"metadata": True}).json()["metadata"]
        metadata = {"license": "CC-BY-NC-4.0", "eval_only": "true", "conversation_id": "row-1"}
        answer = served.chat(model="recorded", metadata=metadata, user="ann").json()
        served.chat(metadata=metadata)
        replayed, live = served.responses(2)
        served.chat(model="told", metadata=metadata)
    assert (replayed.track, replayed.model_version, replayed.rollout_id) == (Track.REPLAY, "recorded", None)
    assert (replayed.completion, replayed.license, replayed.eval_only) == ("recorded", "CC-BY-NC-4.0", True)
    assert (answer["model"], answer["id"].startswith("chatcmpl-")) == ("recorded", True)
    assert [asked.get("metadata") for asked in foreign.seen] == [None, metadata], "it is asked for at registration"
    assert not any("user" in asked for asked in foreign.seen)
    assert not any(b"x-request-id" in headers for headers in foreign.headers), "an answer's id is a credential"
    assert (live.track, live.license, live.eval_only) == (Track.CANARY, None, False)


def test_an_upstream_may_not_be_registered_into_a_rollout(served: Served) -> None:
    order = {"url": "http://127.0.0.1:9", "track": "canary", "expires_in_s": 60}
    assert served.http.put("/v1/upstreams/x", json=order).status_code == 422
    order = {"url": "file:///etc/passwd", "expires_in_s": 60}
    assert served.http.put("/v1/upstreams/x", json=order).status_code == 422


def test_more_requests_than_the_limit_are_told_to_come_back(tmp_path: Path) -> None:
    foreign = ForeignServer(["one ", "two"])
    foreign.may_go_on.clear()
    with serving(foreign) as url, gateway(tmp_path, url, max_in_flight=1) as served:
        first = threading.Thread(target=served.chat, kwargs={"stream": True})
        first.start()
        deadline = time.monotonic() + 5
        while not foreign.seen and time.monotonic() < deadline:
            time.sleep(0.01)
        answer = served.chat()
        foreign.may_go_on.set()
        first.join()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_the_gateway_is_ready_once_model_runtime_and_broker_are_there(tmp_path: Path, runtime_url: str) -> None:
    with gateway(tmp_path, runtime_url, stable=None) as served:
        assert served.http.get("/healthz").status_code == 200
        answer = served.http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"stable_model": False, "runtime": True, "broker": True})
        assert served.chat().status_code == 503
        served.take(plan())
        assert served.http.get("/readyz").status_code == 200


def test_a_gateway_without_runtime_or_broker_is_not_ready(tmp_path: Path) -> None:
    with gateway(tmp_path, "http://127.0.0.1:9", bootstrap="127.0.0.1:9", produce_timeout_s=1.0) as served:
        answer = served.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"stable_model": True, "runtime": False, "broker": False})


def test_metrics_tell_the_arms_apart_and_name_no_person(served: Served) -> None:
    served.take(plan(1.0))
    served.chat("somebody")
    page = httpx.get(f"{served.url}/metrics").text
    assert 'hone_chat_answers_total{outcome="completed",track="canary"}' in page
    assert "hone_canary_weight_ratio 1.0" in page
    assert "somebody" not in page


def test_the_python_client_chats_and_remembers_ids_for_apps_that_drop_them(served: Served) -> None:
    with HoneClient(served.url, api_key=served.http.headers["authorization"][7:]) as hone:
        answer = hone.chat(HI, user="ann", conversation="c1", max_tokens=4)
        told = [
            hone.thumbs(-1, conversation="c1", reasons=["wrong"]),
            hone.edit("Press Share.", answer=answer.id),
            hone.outcome("resolved", 1, conversation="c1"),
        ]
        with pytest.raises(RejectedToken):
            hone.thumbs(1, answer=answer.id[:-6] + "AAAAAQ")
    events = served.feedback(3)
    assert [event.event_id for event in events] == told
    assert [event.kind for event in events] == [FeedbackKind.THUMBS, FeedbackKind.EDIT, FeedbackKind.OUTCOME]
    assert len({event.conversation_id for event in events}) == 1


async def ask_and_choose(url: str, key: str) -> None:
    async with AsyncHoneClient(url, api_key=key) as hone:
        one, two = [await hone.chat(HI, user="ann", conversation="c1", max_tokens=3, seed=i) for i in (1, 2)]
        await hone.choice(two.id, [one.id])


def test_the_asynchronous_client_chooses_between_two_answers(served: Served) -> None:
    asyncio.run(ask_and_choose(served.url, served.http.headers["authorization"][7:]))
    one, two = served.responses(2)
    (event,) = served.feedback(1)
    assert (event.response_id, event.rejected, event.turn_id) == (two.response_id, (one.response_id,), one.turn_id)


def test_a_model_name_with_control_characters_is_passed_on_without_them(tmp_path: Path) -> None:
    with serving(ForeignServer(["hi"])) as url, gateway(tmp_path, url) as served:
        assert served.chat(model="\x11\r\nx").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("PATCH", "/v1/models", 405), ("GET", "/v1/feedback", 405)],
)
def test_a_path_or_method_that_there_is_not_is_a_problem(served: Served, method: str, path: str, status: int) -> None:
    answer = served.http.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert ("allow" in answer.headers) == (status == 405)


def test_other_tool_calls_make_another_turn(tmp_path: Path) -> None:
    with serving(ForeignServer(["hi"])) as url, gateway(tmp_path, url) as served:
        for name in ("find_order", "cancel_order", "cancel_order"):
            call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": "{}"}}
            served.chat(messages=[*HI, {"role": "assistant", "content": None, "tool_calls": [call]}])
        one, two, three = [response.turn_id for response in served.responses(3)]
    assert one != two == three


def test_somebody_elses_server_may_be_stable_beside_a_canary_of_ours(tmp_path: Path, runtime_url: str) -> None:
    vendor = ForeignServer(["from the vendor"])
    with serving(vendor) as url:
        others = {"vendor": {"url": url, "model": "big-1", "api_key": "vendor-key"}}
        with gateway(tmp_path, runtime_url, stable="vendor", settings={"upstreams": others}) as served:
            served.take(msgspec.structs.replace(plan(0.5), stable="vendor"))
            for name in NAMES[:8]:
                for stream in (False, True):
                    answer = served.chat(name, stream=stream, max_tokens=2)
                    assert answer.status_code == 200
                    assert "big-1" not in answer.text
                    assert "chatcmpl-" in answer.text
            found = served.responses(16)
    for response in found:
        assert response.model_version == ("m-new" if response.track is Track.CANARY else "vendor")
        assert (response.completion == "from the vendor") == (response.track is Track.STABLE)
    assert {response.track for response in found} == {Track.STABLE, Track.CANARY}
    assert {asked["model"] for asked in vendor.seen} == {"big-1"}
    assert all(headers[b"authorization"] == b"Bearer vendor-key" for headers in vendor.headers)
    assert not any(b"x-request-id" in headers for headers in vendor.headers), "an answer's id is a credential"


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    with serving(ForeignServer(["hi"])) as url, gateway(tmp_path, url, body_timeout_s=0.2) as served:
        host, port = served.url.removeprefix("http://").split(":")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 90\r\n"
        with socket.create_connection((host, int(port))) as sock:
            sock.settimeout(10)
            sock.sendall(head.encode() + b"\r\n{")
            got = b""
            while data := sock.recv(4096):
                got += data
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in got


def test_a_shadow_that_hangs_delays_nobody(tmp_path: Path) -> None:
    slow = ForeignServer(["never "])
    slow.may_go_on.clear()
    with serving(ForeignServer(["hi"])) as url, serving(slow) as slow_url:
        others = {"m-new": {"url": slow_url, "model": "slow"}}
        with gateway(tmp_path, url, settings={"upstreams": others}) as served:
            slow.hangs = True
            served.take(plan(0.0, shadow=True))
            for _ in range(100):
                answer = served.chat()
                assert answer.json()["choices"][0]["message"]["content"] == "hi"
            found = served.responses(100)
            slow.hangs = False
            slow.may_go_on.set()
    assert {response.track for response in found} == {Track.STABLE}


@pytest.mark.parametrize("way", [{}, {"origin": "https://app.example"}], ids=["short way", "ordinary way"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
def test_a_fault_of_ours_in_a_hot_route_is_a_problem_and_is_logged(
    served: Served, path: str, way: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("private words")

    for place in ("chat.read_ask", "feedback.read_body"):
        monkeypatch.setattr(f"serving.gateway.{place}", broken)
    answer = served.http.post(path, json={"events": []}, headers=way)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    error = {"message": "ZeroDivisionError: see the server's log", "type": "internal error", "code": 500}
    assert answer.json()["error"] == error
    deadline = time.monotonic() + 5
    while "private words" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)  # the server logs after it has answered
    assert "private words" in caplog.text
    assert (
        f'hone_gateway_requests_total{{code="500",route="{path.split("/")[2]}"}}'
        in httpx.get(f"{served.url}/metrics").text
    )
