"""The servers that the gateway's benchmark compares, each alone in a process.

`python -m benchmarks.gateway_servers NAME PORT [UPSTREAM]`

`floor` and `fastapi` read the same act of feedback as the gateway; `fastapi` checks the token too. `feedback` is the
gateway's own route with a broker that acknowledges at once. `upstream` is a model server that streams without thinking;
`raw`, `aiohttp` and `starlette` pass it on: on the gateway's stack, with aiohttp, and in the usual way. What stands for
the usual way runs on plain uvicorn.
"""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from uuid import UUID

import aiohttp
import httptools
import httpx
import msgspec
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from hone.ids import uuid7
from hone.settings import Gateway as Limits
from hone.tokens import parse_keys
from serving.gateway.feedback import FeedbackIntake
from serving.gateway.guard import Guard
from serving.gateway.wire import Wire
from serving.http import Receive, Scope, Send
from serving.server import serve

AS_USUAL = ("fastapi", "starlette")
"""Served by uvicorn itself, with its fast parts; the others by the gateway's server, which is uvicorn with more."""
TOKEN_KEYS = f"1:{'ab' * 32}"
IDENTITY_KEY = "cd" * 32
ADMIN_KEY = "sk-" + hashlib.sha256(b"key of the benchmark").hexdigest()
CHAT_PATH = "/v1/chat/completions"
CHUNK_HEAD = b'{"id":"%s","object":"chat.completion.chunk","created":1767225600,"model":"%s",'
PIECE = b"data: " + CHUNK_HEAD + b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
LAST = b"data: " + CHUNK_HEAD + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
WHOLE = (
    b'{"id":"%s","object":"chat.completion","created":1767225600,"model":"%s","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"A few words."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}'
)


class Act(msgspec.Struct):
    """Feedback as the floor reads it: the same seven fields."""

    response_id: str
    kind: Literal["thumbs", "edit", "regenerate", "choice", "comment", "signal", "outcome"]
    event_id: UUID
    value: int | float | str
    reasons: list[str]
    occurred_at: datetime
    name: str | None = None


class Floor(asyncio.Protocol):
    """HTTP/1.1 keep-alive with httptools, msgspec for the body, and nothing else: the least that Python can do."""

    decoder = msgspec.json.Decoder(Act)

    def connection_made(self, transport: Any) -> None:
        self.transport, self.parser, self.body = transport, httptools.HttpRequestParser(self), b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        act = self.decoder.decode(self.body)
        self.body = b""
        answer = msgspec.json.encode({"event_ids": [act.event_id]})
        self.transport.write(
            b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(answer), answer)
        )


class Upstream(asyncio.Protocol):
    """A model server in OpenAI's shape: `max_tokens` chunks, one every `seed` microseconds; 0 is all at once.

    With an `x-model-alias` it echoes id and name, as hone's runtime does, unless the model is called `foreign`.
    """

    def connection_made(self, transport: Any) -> None:
        self.transport, self.parser, self.body = transport, httptools.HttpRequestParser(self), b""
        self.headers: dict[bytes, bytes] = {}

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, headers = self.body, self.headers
        self.body, self.headers = b"", {}
        if not body:
            return self.write(b"application/json", b'{"object":"list","data":[]}')
        asked = msgspec.json.decode(body)
        echoes = b"x-model-alias" in headers and asked["model"] != "foreign"
        names = (headers[b"x-request-id"], headers[b"x-model-alias"]) if echoes else (b"cmpl-1", b"some-model")
        if not asked.get("stream"):
            return self.write(b"application/json", WHOLE % names, echoes)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        self.transport.write(head + (b"x-hone-echo: id,model\r\n\r\n" if echoes else b"\r\n"))
        self.work = asyncio.ensure_future(self.stream(names, asked.get("max_tokens", 64), asked.get("seed", 0) / 1e6))

    def write(self, kind: bytes, body: bytes, echoes: bool = False) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n"
        self.transport.write(head % (kind, len(body), b"x-hone-echo: id,model\r\n" if echoes else b"") + body)

    async def stream(self, names: tuple[bytes, bytes], number: int, pause_s: float) -> None:
        data = PIECE % names
        chunk = b"%x\r\n%s\r\n" % (len(data), data)
        if not pause_s:  # one write: a system call for each would make this server slower than the proxies
            self.transport.write(chunk * number)
        for _ in range(number if pause_s else 0):
            self.transport.write(chunk)
            await asyncio.sleep(pause_s)
        data = LAST % names
        self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))


class AckAtOnce:
    """Takes the producer's place where only the route is measured; tells of a record in the loop's next turn."""

    def post(self, topic: str, key: bytes, value: bytes, done: Callable[[None], None]) -> None:
        asyncio.get_running_loop().call_soon(done, None)


def feedback_app() -> Any:
    """The gateway's feedback route, as the gateway mounts it."""
    guard = Guard(ADMIN_KEY, dict)
    intake = FeedbackIntake(Limits(), parse_keys(TOKEN_KEYS), bytes.fromhex(IDENTITY_KEY), guard, AckAtOnce())  # type: ignore[arg-type]

    class App:
        direct: ClassVar[Mapping[bytes, Any]] = {b"/v1/feedback": intake}

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await intake(scope, receive, send)

    return App()


def fastapi_app() -> Any:
    """The same route as people write it with FastAPI: pydantic model, bearer token checked, 202."""
    from fastapi import FastAPI, HTTPException
    from pydantic import BaseModel

    class Feedback(BaseModel):
        response_id: str
        kind: Literal["thumbs", "edit", "regenerate", "choice", "comment", "signal", "outcome"]
        event_id: UUID | None = None
        value: Any = None
        reasons: list[Literal["wrong", "hallucinated", "unsafe", "too long", "style", "other"]] = []
        occurred_at: datetime | None = None
        name: str | None = None

    app, ring = FastAPI(), parse_keys(TOKEN_KEYS)

    @app.post("/v1/feedback", status_code=202)
    async def give(feedback: Feedback) -> dict[str, list[UUID]]:
        try:
            ring.verify(feedback.response_id, datetime.now(UTC))
        except Exception as error:
            raise HTTPException(403, str(error)) from None
        return {"event_ids": [feedback.event_id or uuid7()]}

    return app


def raw_proxy(upstream: str) -> Any:
    """A bare pass-through on the gateway's own stack: raw ASGI and its wire, no key, token, routing or record."""
    client: list[Wire] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if not client:
            client.append(Wire(connect_timeout_s=5, timeout_s=60))
        body, headers = (await receive())["body"], {"content-type": "application/json"}
        got = await client[0].request("POST", upstream + CHAT_PATH, headers, body)
        await send(began(got.status, got.headers[b"content-type"]))
        while data := await got.some():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def aiohttp_proxy(upstream: str) -> Any:
    """The same pass-through with aiohttp as the client."""
    client: list[aiohttp.ClientSession] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if not client:
            client.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False))
        body, headers = (await receive())["body"], {"content-type": "application/json"}
        async with client[0].post(upstream + CHAT_PATH, data=body, headers=headers) as got:
            await send(began(got.status, got.headers["content-type"].encode()))
            async for data in got.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def began(status: int, kind: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def starlette_proxy(upstream: str) -> Any:
    """The usual proxy: Starlette's StreamingResponse over httpx."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
            yield {"client": client}

    async def chat(request: Request) -> StreamingResponse:
        client: httpx.AsyncClient = request.state.client
        asked = client.build_request("POST", upstream + CHAT_PATH, content=await request.body())
        got = await client.send(asked, stream=True)
        return StreamingResponse(pass_on(got), got.status_code, media_type=got.headers["content-type"])

    return Starlette(routes=[Route(CHAT_PATH, chat, methods=["POST"])], lifespan=lifespan)


async def pass_on(got: httpx.Response) -> AsyncIterator[bytes]:
    async for data in got.aiter_raw():
        yield data
    await got.aclose()


async def serve_protocol(protocol: type[asyncio.Protocol], port: int) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port)
    await server.serve_forever()


def main(name: str, port: int, upstream: str = "") -> None:
    """Serve until killed."""
    protocols = {"floor": Floor, "upstream": Upstream}
    if name in protocols:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_protocol(protocols[name], port))
    makers = {"feedback": feedback_app, "fastapi": fastapi_app}
    proxies = {"raw": raw_proxy, "aiohttp": aiohttp_proxy, "starlette": starlette_proxy}
    app = makers[name]() if name in makers else proxies[name](upstream)
    if name in AS_USUAL:
        return uvicorn.run(
            app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_config=None
        )
    serve(app, "127.0.0.1", port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
