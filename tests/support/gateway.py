"""The real gateway in a thread, over real runtimes or foreign model servers, and a look at what it sent to Kafka."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from confluent_kafka import Consumer, TopicPartition

from hone.local.mock_kafka import MockCluster
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Response, TrafficPlan
from hone.settings import Settings
from serving.gateway.app import open_gateway
from tests.support.web import serving

KEY = "admin-key-of-the-tests"
TOKEN_KEYS = f"1:{'ab' * 32}"
IDENTITY_KEY = "cd" * 32
HI = [{"role": "user", "content": "How do I share my order?"}]
Record = TypeVar("Record")


@dataclass
class Served:
    """A running gateway, an HTTP client with the admin key, and the broker behind it."""

    url: str
    http: httpx.Client
    bootstrap: str

    def chat(self, user: str | None = "ann", **fields: Any) -> httpx.Response:
        headers = {"X-User-Id": user} if user else {}
        body = {"model": "hone", "messages": HI, "max_tokens": 6, "seed": 1} | fields
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def answer_id(self, user: str = "ann", **fields: Any) -> str:
        answer = self.chat(user, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def tell(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        """Give feedback as a browser does: without any key."""
        return httpx.post(f"{self.url}/v1/feedback", json=body, headers=headers, trust_env=False)

    def take(self, plan: TrafficPlan) -> None:
        answer = self.http.put("/v1/router/plan", content=msgspec.json.encode(plan))
        assert answer.status_code == 200, answer.text

    def responses(self, number: int) -> list[Response]:
        return records(self.bootstrap, RESPONSES_TOPIC, Response, number)

    def feedback_so_far(self) -> list[Feedback]:
        return records(self.bootstrap, FEEDBACK_TOPIC, Feedback, at_least=0)

    def feedback(self, number: int) -> list[Feedback]:
        return records(self.bootstrap, FEEDBACK_TOPIC, Feedback, number)


def records(
    bootstrap: str,
    topic: str,
    shape: type[Record],
    number: int | None = None,
    *,
    at_least: int = 0,
    timeout_s: float = 10.0,
) -> list[Record]:
    """Everything in the topic, once `number` records are there (fails if more come) or `at_least` so many."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "look", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found, deadline = [], time.monotonic() + timeout_s
    wanted = at_least if number is None else number
    while time.monotonic() < deadline:
        message = consumer.poll(0.1 if len(found) < wanted else 0.2)
        if message is not None and message.error() is None:
            found.append(msgspec.json.decode(message.value(), type=shape))
        elif message is None and len(found) >= wanted:
            break
    consumer.close()
    assert len(found) >= wanted
    assert number is None or len(found) == number
    return found


@contextmanager
def broker() -> Iterator[str]:
    """A broker in this process, with one partition for each topic."""
    cluster = MockCluster({RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1})
    yield cluster.bootstrap_servers
    cluster.close()


@contextmanager
def gateway(
    var_dir: Path,
    runtime_url: str,
    *,
    bootstrap: str | None = None,
    database_url: str = "postgresql+psycopg2://nobody@127.0.0.1:9/none",
    stable: str | None = "m-old",
    key: str = KEY,
    settings: dict[str, Any] | None = None,
    **limits: Any,
) -> Iterator[Served]:
    """A gateway with a broker of its own, unless it is given one."""
    with ExitStack() as stack:
        bootstrap = bootstrap or stack.enter_context(broker())
        chosen = Settings(
            **(settings or {}),
            token_keys=TOKEN_KEYS,  # type: ignore[arg-type]
            identity_key=IDENTITY_KEY,  # type: ignore[arg-type]
            admin_key=key,  # type: ignore[arg-type]
            kafka_bootstrap_servers=bootstrap,
            runtime_url=runtime_url,
            stable_model=stable,
            var_dir=var_dir,
            database_url=database_url,
            gateway={"produce_timeout_s": 5.0} | limits,  # type: ignore[arg-type]
        )
        url = stack.enter_context(serving(open_gateway(chosen, "127.0.0.1")))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        client = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False))
        yield Served(url, client, bootstrap)


Chunks = Callable[[dict[str, Any]], Any]


class ForeignServer:
    """An OpenAI server that is not ours: it uses its own ids and model names. `pieces` is the text, in chunks."""

    def __init__(self, pieces: list[str], *, breaks_after: int | None = None) -> None:
        self.pieces, self.breaks_after = pieces, breaks_after
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.seen: list[dict[str, Any]] = []
        self.left_early = False
        self.hangs = False
        self.headers: list[dict[bytes, bytes]] = []
        self.calls: list[dict[str, Any]] = []
        "Tool calls that take the place of the text."
        self.raw: bytes | None = None
        "What is answered instead, byte by byte."
        self.refusal: tuple[int, list[tuple[bytes, bytes]]] | None = None
        "Status and headers of what is answered instead."

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        body = (await receive()).get("body", b"")
        if scope["method"] == "GET":
            return await reply(send, {"data": []})
        self.seen.append(msgspec.json.decode(body))
        self.headers.append(dict(scope["headers"]))
        while self.hangs:
            await asyncio.sleep(0.02)
        if self.refusal is not None:
            return await reply(send, {"error": {"message": "not you"}}, *self.refusal)
        if self.raw is not None:
            return await reply(send, msgspec.Raw(self.raw))
        if self.seen[-1].get("stream"):
            await self.stream(receive, send)
        else:
            message: dict[str, Any] = {"role": "assistant", "content": "".join(self.pieces)}
            if self.calls:
                message |= {"content": None, "tool_calls": self.calls}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if self.calls else "stop"}
            await reply(send, base() | {"choices": [choice]})

    async def stream(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        leaving = asyncio.ensure_future(receive())
        for number, piece in enumerate(self.pieces):
            if number == self.breaks_after:
                raise ConnectionAbortedError("the test breaks the connection")
            await send({"type": "http.response.body", "body": event({"content": piece}, None), "more_body": True})
            going_on = asyncio.ensure_future(self.may_go_on.wait())
            await asyncio.wait({going_on, leaving}, return_when=asyncio.FIRST_COMPLETED)
            going_on.cancel()
            if leaving.done():
                self.left_early = True
                return
        leaving.cancel()
        body = event({}, "stop") + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": body})


def base() -> dict[str, Any]:
    return {"id": "cmpl-foreign", "model": "m-secret", "system_fingerprint": "fp", "object": "x", "created": 1}


def event(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + msgspec.json.encode(base() | {"choices": [choice]}) + b"\n\n"


async def reply(send: Any, document: Any, status: int = 200, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    headers = [(b"content-type", b"application/json"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(document)})


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
