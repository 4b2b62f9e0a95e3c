"""The short way of hot requests: past ASGI, with the whole body in hand and the answer written straight to the client.

A route takes a request with one callback, and answers it with another one or from a task.
"""

import asyncio
import functools
import logging
import types
from collections.abc import Coroutine, Generator
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from serving.http import JSON, PROBLEM_JSON, Headers, Scope, fault

logger = logging.getLogger(__name__)

CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


class Direct(Protocol):
    """A hot route."""

    limit: int
    "Bytes of body that it takes; longer ones go the ordinary way, which refuses or reads them."

    def take(self, http: Scope, body: bytes, out: "Cycle") -> bool:
        """Take the request (`http` has its headers only) and answer it later; False leaves it to the ordinary way."""
        ...


class Connection(Protocol):
    """What a request on the short way needs of its connection."""

    transport: asyncio.Transport
    flow: FlowControl
    server_state: ServerState
    loop: asyncio.AbstractEventLoop

    def on_answered(self, cycle: "Cycle") -> None:
        """Go on with the next request."""
        ...


class NoEvent:
    """Nobody waits for the body of a request on the short way."""

    def set(self) -> None:
        """Do nothing."""


NO_EVENT = NoEvent()


@types.coroutine
def going_on(begun: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on, within a task, with a coroutine that was begun outside of one and now waits.

    Whatever ends a wait is handed to it there, a cancellation too: `yield from` would swallow one of the first wait.
    """
    while True:
        try:
            sent = yield waits_for
        except BaseException as error:
            step = functools.partial(begun.throw, error)
        else:
            step = functools.partial(begun.send, sent)
        try:
            waits_for = step()
        except StopIteration:
            return


class Cycle:
    """One request on the short way, and where its answer goes; uvicorn sees it as the request in progress."""

    __slots__ = (
        *("body", "connection", "disconnected", "keep_alive", "message_event", "response_complete", "route", "taken"),
        *("task", "_head"),
    )

    def __init__(self, route: Direct, connection: Connection, *, keep_alive: bool) -> None:
        self.route, self.connection, self.keep_alive = route, connection, keep_alive
        self.body = b""
        self.response_complete = self.disconnected = self.taken = False
        self.message_event = NO_EVENT
        self.task: asyncio.Task[None] | None = None
        self._head: bytes | None = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer from a task, which is cancelled when the client leaves.

        The work begins at once, outside of the task, which is made where it first waits: what it sends to a server is
        on its way by then.
        """
        begun = self._ran(work)
        try:
            waits_for = begun.send(None)
        except StopIteration:
            return
        task = self.task = self.connection.loop.create_task(going_on(begun, waits_for))
        self.connection.server_state.tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, begun))

    def _ended(self, begun: Coroutine[Any, Any, None], task: "asyncio.Task[None]") -> None:
        self.connection.server_state.tasks.discard(task)
        begun.close()  # a task that is cancelled before its first step never looks at its coroutine

    def leave(self) -> None:
        """Note that the client has left."""
        self.disconnected = True
        if self.task is not None:
            self.task.cancel()

    def answer_now(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Write the whole answer."""
        length = b"content-length: %d\r\n\r\n" % len(body)
        self._finish([self._head_of(status, content_type, headers) + length, body])

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Write the whole answer."""
        self.answer_now(status, body, content_type, headers)

    async def start(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        """Begin an answer in chunks; its head leaves with the first of them."""
        self._head = self._head_of(status, content_type, headers) + CHUNKED

    async def write(self, data: bytes) -> None:
        """Write a chunk, at once; a slow client is waited for."""
        if self.connection.flow.write_paused and not self.disconnected:
            await self.connection.flow.drain()
        if data and not self.disconnected:
            self.connection.transport.writelines([self._take_head(), b"%x\r\n" % len(data), data, b"\r\n"])

    async def end(self, data: bytes = b"") -> None:
        """Write the last chunk."""
        chunk = [b"%x\r\n" % len(data), data, b"\r\n0\r\n\r\n"] if data else [b"0\r\n\r\n"]
        self._finish([self._take_head(), *chunk])

    def _take_head(self) -> bytes:
        head, self._head = self._head or b"", b""
        return head

    def _head_of(self, status: int, content_type: bytes, headers: Headers) -> bytes:
        """Return status line and headers, but for the one that tells how the body ends."""
        head = [STATUS_LINE[status]]
        for name, value in (*self.connection.server_state.default_headers, *headers):
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        head += (b"content-type: ", content_type, b"\r\n")
        return b"".join(head)

    def _finish(self, parts: list[bytes]) -> None:
        """Write the end of the answer, and let the connection go on."""
        if self.disconnected or self.response_complete or self.connection.transport.is_closing():
            return
        self.connection.transport.writelines(parts)
        self.response_complete = True
        self.connection.on_answered(self)

    async def _ran(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; a fault of ours is a problem 500, or cuts the answer off where it has begun."""
        try:
            await work
        except asyncio.CancelledError:
            if not self.disconnected:
                raise
        except Exception as error:
            logger.exception("a fault on the short way")
            if self._head == b"":
                self.connection.transport.close()
            else:
                self.answer_now(500, fault(error).body(), PROBLEM_JSON)
