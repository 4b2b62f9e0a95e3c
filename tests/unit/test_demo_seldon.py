"""What the demo on Seldon proves of its arms: who spoke what, by the digest of their weights."""

import asyncio
import json
import threading
from collections import Counter
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from examples.cluster.api import Cluster
from examples.cluster.app import ClusterApp
from examples.cluster.live import Running
from examples.cluster.operator import Arm, SimulatedArms
from examples.cluster.spoken import Spoken, spoken, text_hash
from examples.demo.findings import failures
from examples.demo.report import served
from examples.demo.seldon import credit

CHAT = {"choices": [{"message": {"role": "assistant", "content": "Press Rename."}}]}
V1 = {"jsonData": CHAT, "meta": {"tags": {"digest": "d1"}}}
V2 = {"parameters": {"digest": "d1"}, "outputs": [{"name": "chat_response", "data": [json.dumps(CHAT)]}]}


@pytest.mark.parametrize("answer", [V1, V2])
def test_both_protocols_tell_text_and_digest(answer: dict[str, Any]) -> None:
    assert spoken("m-1", json.dumps(answer).encode()) == Spoken("m-1", "d1", text_hash("Press Rename."))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"jsonData": 5, "meta": {"tags": {"digest": "d"}}}'])
def test_what_is_no_chat_answer_is_none(body: bytes) -> None:
    assert spoken("m-1", body) is None


def arms(*answers: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Two sentences were said: one twice by d1, one once by d2."""
    return credit(answers, Counter({("d1", text_hash("yes")): 2, ("d2", text_hash("no")): 1}))


def test_an_answer_counts_only_with_the_weights_of_its_version_and_once() -> None:
    (found,) = arms(("m-1", "d1", "yes"), ("m-1", "d1", "yes"), ("m-1", "d1", "yes"), ("m-1", "d1", "no"))
    assert (found["answers"], found["spoken_by_its_weights"]) == (4, 2)


def test_an_arm_that_is_taken_out_while_it_answers_still_answers() -> None:
    running = {"chat": Running(Arm("chat", "m-1", ()), "http://arm", "", threading.Event())}

    class Arms(SimulatedArms):
        def is_ready(self, name: str) -> bool:
            return name in running

    def answer(request: httpx.Request) -> httpx.Response:
        running.clear()
        return httpx.Response(200, json=V2)

    served = ClusterApp(Cluster(arms=Arms))
    served.cluster.arms.running = running  # type: ignore[attr-defined]
    served.client = httpx.AsyncClient(transport=httpx.MockTransport(answer))

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(Starlette(routes=served.routes()))
        async with httpx.AsyncClient(transport=transport, base_url="http://cluster") as client:
            return [(await client.post("/v2/models/chat/infer", json={})).status_code for _ in range(2)]

    assert asyncio.run(ask()) == [200, 503]
    assert served.cluster.spoken == {Spoken("m-1", "d1", text_hash("Press Rename.")): 1}


REPORT: dict[str, Any] = {
    "promoted": True,
    "harmful_stopped_by_gates": True,
    "harmful_rolled_back": True,
    "win_rate_low": 0.6,
    "events_sent": 2000,
    "events_stored": 2000,
    "dead_letters": 0,
    "failed_answers": 0,
    "backend": "seldon_v1",
    "models": {"base": "m-1", "promoted": "m-2"},
}


def test_the_demo_fails_where_an_arm_spoke_with_other_weights_or_not_at_all() -> None:
    fine = REPORT | {"arms": arms(("m-1", "d1", "yes"), ("m-2", "d2", "no"))}
    assert list(failures(fine)) == []
    assert "2 versions behind seldon-core 1.17.1: 2 of 2 stored answers" in served(fine)
    foreign = REPORT | {"arms": arms(("m-1", "d1", "yes"), ("m-2", "d2", "yes"))}
    assert list(failures(foreign)) == ["1 of 1 answers of m-2 were not spoken by its weights"]
    assert list(failures(fine | {"failed_answers": 3})) == ["3 people got no whole answer"]
    assert list(failures(REPORT | {"arms": arms(("m-1", "d1", "yes"))})) == [
        "not every version answered people through Seldon"
    ]
