"""The HTTP server of the programs: uvicorn, with clocks on what clients send, and a short way for hot requests.

A hot request is one that a route can answer with one callback: it gets the whole body and gives the whole answer, and
no task or event is made for it. What a route does not take goes the ordinary ASGI way.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import Server

from serving.http import PROBLEM_JSON, Headers, Scope, fault

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
HEAD_TIMEOUT_S = 10.0
"""How long a client may take to send the head of a request, from its first byte or from connecting."""
SWEEP_S = 1.0
DONE_BY_ASGI = frozenset({b"transfer-encoding", b"expect", b"origin"})
"""Headers that only the ordinary way understands."""

Done = Callable[[int, bytes, bytes, Headers], None]
"""Takes status, body, content type and headers of the answer; called once, in the event loop."""


class Direct(Protocol):
    """A hot route."""

    limit: int
    "Bytes of body that it takes; longer ones go the ordinary way, which refuses them."

    def take(self, http: Scope, body: bytes, done: Done) -> bool:
        """Take the request (`http` has its headers only) and call `done` later; False leaves it to the ordinary way."""
        ...


@dataclass(frozen=True)
class Limits:
    """How long the server waits for clients."""

    head_timeout_s: float = HEAD_TIMEOUT_S
    keep_alive_s: int = KEEP_ALIVE_S
    grace_s: int = 10


DEFAULT_LIMITS = Limits()


class Cycle:
    """One request on the short way; uvicorn sees it as the request in progress."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "response_complete", "route")

    def __init__(self, route: Direct, keep_alive: bool) -> None:
        self.route, self.keep_alive = route, keep_alive
        self.body = b""
        self.response_complete = self.disconnected = False
        self.message_event = NO_EVENT


class NoEvent:
    """Nobody waits for a request on the short way."""

    def set(self) -> None:
        """Do nothing."""


NO_EVENT = NoEvent()


class Gathered(asyncio.Transport):
    """A transport that hands on in one piece what was written to it between two looks of the loop at the network.

    The head of an answer and its first bytes, or its last bytes and its end, are then one system call and one packet.
    Nothing waits for anything: the loop sends it before it does anything else.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._parts: list[bytes] = []

    def write(self, data: Any) -> None:
        """Send this with what else is written in this turn of the loop."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def write_now(self, data: bytes) -> None:
        """Send this, after what waits."""
        if self._parts:
            self._parts.append(data)
            return self.flush()
        self._transport.write(data)

    def flush(self) -> None:
        """Send what waits."""
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts.clear()

    def close(self) -> None:
        """Send what waits, and close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Say whether the connection is closed or about to be."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read nothing more."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the connection to another protocol."""
        self.flush()
        self._transport.set_protocol(protocol)


class HoneProtocol(HttpToolsProtocol):
    """uvicorn's connection, with the short way and the clocks."""

    direct: ClassVar[Mapping[bytes, Direct]] = {}
    limits: ClassVar[Limits] = DEFAULT_LIMITS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_plain = True
        "Whether the request's headers so far allow the short way."
        self.due: float | None = None
        "When (loop time) the client must have sent what it owes; None while it owes nothing."

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request."""
        self.gathered = Gathered(transport)
        super().connection_made(self.gathered)
        self.due = self.loop.time() + self.limits.head_timeout_s

    def on_message_begin(self) -> None:
        """Start the clock of this request; its scope is made once its way is known."""
        self.url, self.headers = b"", []
        self.expect_100_continue, self.is_plain = False, True
        self.due = self.loop.time() + self.limits.head_timeout_s

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and see whether it asks for the ordinary way."""
        name = name.lower()
        if name in DONE_BY_ASGI:
            self.is_plain = False
            return super().on_header(name, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Choose the way. On the ordinary one the application's own clock is on the body."""
        route = self._route()
        if route is None:
            self.due = None
            return self._go_ordinary_way()
        self.cycle = Cycle(route, self.parser.should_keep_alive())  # type: ignore[assignment]

    def _go_ordinary_way(self) -> None:
        """Do what uvicorn does at the beginning of a request and at the end of its head."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _route(self) -> Direct | None:
        """Return the hot route, if this request may go the short way."""
        route = self.direct.get(self.url)
        if route is None or not self.is_plain or self.parser.get_method() != b"POST":
            return None
        is_next = self.cycle is not None and not self.cycle.response_complete
        return None if is_next or self.parser.get_http_version() != "1.1" else route

    def on_body(self, body: bytes) -> None:
        """Collect the body of a hot request, within its route's limit."""
        cycle: Any = self.cycle
        if type(cycle) is not Cycle:
            return super().on_body(body)
        cycle.body = cycle.body + body if cycle.body else body
        if len(cycle.body) > cycle.route.limit:
            self._leave_short_way(cycle)

    def on_message_complete(self) -> None:
        """Hand a hot request to its route."""
        cycle: Any = self.cycle
        if type(cycle) is not Cycle:
            return super().on_message_complete()
        self.due = None
        try:
            taken = cycle.route.take({"headers": self.headers}, cycle.body, partial(self._answer, cycle))
        except Exception as error:
            logger.exception("a fault on the short way")
            return self._answer(cycle, 500, fault(error).body(), PROBLEM_JSON, ())
        if not taken:
            self._leave_short_way(cycle)
            super().on_message_complete()

    def _leave_short_way(self, cycle: Cycle) -> None:
        """Go on as uvicorn would have from the head of the request."""
        self.cycle, self.due = None, None  # type: ignore[assignment]
        self._go_ordinary_way()
        super().on_body(cycle.body)

    def _answer(self, cycle: Cycle, status: int, body: bytes, content_type: bytes, headers: Headers) -> None:
        """Write the whole answer."""
        if cycle.disconnected or self.transport.is_closing():
            return
        head = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            head += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            head.append(b"connection: close\r\n")
        head += (b"content-type: ", content_type, b"\r\ncontent-length: %d\r\n\r\n" % len(body), body)
        self.gathered.write_now(b"".join(head))
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.due = self.loop.time() + self.limits.keep_alive_s

    def check_clock(self, now: float) -> None:
        """Close the connection of a client that owes a request for too long."""
        if self.due is not None and now > self.due and not self.transport.is_closing():
            self.transport.close()


class HoneServer(Server):
    """uvicorn's server, with a sweep over the connections that keep it waiting."""

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second (a tick is a tenth)."""
        if counter % round(SWEEP_S * 10) == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HoneProtocol):
                    connection.check_clock(now)
        return await super().on_tick(counter)


def make_server(app: Any, host: str, port: int, limits: Limits = DEFAULT_LIMITS) -> HoneServer:
    """Return a server for the application; `app.direct`, where there is one, holds its hot routes by path."""
    hot: Mapping[bytes, Direct] = getattr(app, "direct", {})
    connection = type("Connection", (HoneProtocol,), {"direct": hot, "limits": limits})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=connection,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=limits.grace_s,
        server_header=False,
    )
    return HoneServer(config)


def serve(app: Any, host: str, port: int, limits: Limits = DEFAULT_LIMITS) -> None:
    """Serve on uvloop until SIGTERM or SIGINT; requests in flight end first."""
    with suppress(KeyboardInterrupt):
        make_server(app, host, port, limits).run()
