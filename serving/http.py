"""ASGI pieces that the gateway and the runtime share: bodies with a limit, answers, problems (RFC 9457)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

import msgspec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
JSON = b"application/json"
BODY_TIMEOUT_S = 10.0
PROBLEM_JSON = b"application/problem+json"
Headers = Iterable[tuple[bytes, bytes]]


class Outlet(Protocol):
    """Where an answer goes: whole, or in chunks."""

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Send all of it."""
        ...

    async def start(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        """Begin; the head may leave with the first chunk only."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a chunk, waiting for a slow client."""
        ...

    async def end(self, data: bytes = b"") -> None:
        """Send the last chunk."""
        ...


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field of a request: where, what it held, what to send instead."""

    field: str
    value: Any
    remedy: str


class Problem(Exception):
    """An answer that is not a success; becomes `application/problem+json`."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.errors = status, title, detail, errors
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """Return the problem as JSON; `error` repeats it in the shape that OpenAI clients read."""
        document: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        document["detail"] = self.detail
        if self.errors:
            document["errors"] = self.errors
        document["error"] = {"message": self.detail, "type": self.title, "code": self.status}
        return msgspec.json.encode(document)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that belong to it."""
        retry = [] if self.retry_after_s is None else [(b"retry-after", str(self.retry_after_s).encode())]
        challenge = [(b"www-authenticate", b"Bearer")] if self.status == 401 else []
        close = [(b"connection", b"close")] if self.status == 408 else []
        return retry + challenge + close


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


async def read_body(receive: Receive, limit: int, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """Return the request's body, counted while it is read.

    Raises:
        Problem: 413, it is longer than `limit` bytes; 408, it was not there after `timeout_s`.
        ClientGone: the client left.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await read_all(receive, limit)
    except TimeoutError:
        detail = f"the body was not there after {timeout_s:g} s: send it again, without pauses"
        raise Problem(408, "too slow", detail) from None


async def read_all(receive: Receive, limit: int) -> bytes:
    """Do what `read_body` does, however long it takes."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body") and len(body) <= limit:
        return body
    parts, size = [body], len(body)
    while message["type"] != "http.disconnect":
        if size > limit:
            raise Problem(413, "body too large", f"the body is longer than {limit} bytes: send less")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
    raise ClientGone


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of this (lower-case) name, without blanks around it; None where missing or empty."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1").strip() or None
    return None


async def start(send: Send, status: int, content_type: bytes, headers: Headers = ()) -> None:
    """Send status and headers."""
    pairs = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def answer(send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
    """Send a whole response."""
    await start(send, status, content_type, [(b"content-length", str(len(body)).encode()), *headers])
    await send({"type": "http.response.body", "body": body})


async def answer_problem(send: Send, problem: Problem, headers: Headers = ()) -> None:
    """Send a problem."""
    await answer(send, problem.status, problem.body(), PROBLEM_JSON, [*problem.headers(), *headers])


class AsgiOutlet:
    """The outlet of the ordinary way."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Send all of it."""
        await answer(self._send, status, body, content_type, headers)

    async def start(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        """Send status and headers."""
        await start(self._send, status, content_type, headers)

    async def write(self, data: bytes) -> None:
        """Send a chunk, waiting for a slow client."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last chunk."""
        await self._send({"type": "http.response.body", "body": data})


async def answering_faults(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application; a fault of ours is a problem 500 where nothing was sent yet, and the server logs it."""
    begun = False

    async def watched(message: MutableMapping[str, Any]) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        await app(scope, receive, watched)
    except Exception as error:
        if not begun:
            await answer_problem(send, fault(error))
        raise


def fault(error: Exception) -> Problem:
    """Return the problem of a fault of ours; its words, which may quote people, stay in the log."""
    return Problem(500, "internal error", f"{type(error).__name__}: see the server's log")


async def until_disconnect(receive: Receive) -> None:
    """Return once the client has left (or the response is over)."""
    while (await receive())["type"] != "http.disconnect":
        pass
