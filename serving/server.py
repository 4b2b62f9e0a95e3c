"""The HTTP server of the programs: uvicorn, with clocks on what clients send, and a short way for hot requests.

What a hot route does not take goes the ordinary ASGI way.
"""

import asyncio
import gc
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import Server

from serving.http import PROBLEM_JSON, Problem, fault
from serving.short_way import Cycle, Direct

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
HEAD_TIMEOUT_S = 10.0
"""How long a client may take to send the head of a request, from its first byte or from connecting."""
MAX_HEAD_BYTES = 64 * 1024
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
SWEEP_S = 1.0
SHORT_BODY_S = 1.0
"""A body that takes longer is read on the ordinary way, under the application's own clock."""
DONE_BY_ASGI = frozenset({b"transfer-encoding", b"expect", b"origin", b"upgrade"})
"""Headers that only the ordinary way understands."""


@dataclass(frozen=True)
class Limits:
    """How long the server waits for clients."""

    head_timeout_s: float = HEAD_TIMEOUT_S
    keep_alive_s: int = KEEP_ALIVE_S
    grace_s: int = 10


DEFAULT_LIMITS = Limits()


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
        self.short: Cycle | None = None
        "The request on the short way that is being answered."
        self.is_between = True
        "Whether what comes next is the head of a request."
        self.head: int | None = None
        "Bytes of a head that is not whole yet, but for those of its first read."

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request."""
        super().connection_made(transport)
        self.due = self.loop.time() + self.limits.head_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who is answering."""
        super().connection_lost(exc)
        if self.short is not None:
            self.short.leave()
        self.short = self.cycle = None  # type: ignore[assignment]  # they hold this object, and it them

    def data_received(self, data: bytes) -> None:
        """Parse what one read brought; a head has an end."""
        was_open = self.head is not None
        super().data_received(without_upgrade(data) if self.is_between else data)
        if was_open and self.head is not None:
            self.head += len(data)
            if self.head > MAX_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """Start the clock of this request; its scope is made once its way is known."""
        self.url, self.headers = b"", []
        self.expect_100_continue, self.is_plain = False, True
        self.is_between, self.head = False, 0
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
        self.head = None
        route = self._route()
        if route is None:
            self.due = None
            return self._go_ordinary_way()
        self.short = Cycle(route, self, keep_alive=self.parser.should_keep_alive())
        self.cycle = self.short  # type: ignore[assignment]
        self.due = self.loop.time() + SHORT_BODY_S

    def _go_ordinary_way(self) -> None:
        """Do what uvicorn does at the beginning of a request and at the end of its head."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()
        if self.parser.should_upgrade():  # the parser takes what follows for another protocol
            self.cycle.keep_alive = False

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
        self.is_between = True
        cycle: Any = self.cycle
        if type(cycle) is not Cycle:
            return super().on_message_complete()
        self.due, cycle.taken = None, True
        try:
            taken = cycle.route.take({"headers": self.headers}, cycle.body, cycle)
        except Exception as error:
            logger.exception("a fault on the short way")
            return cycle.answer_now(500, fault(error).body(), PROBLEM_JSON)
        if not taken:
            self._leave_short_way(cycle)
            super().on_message_complete()

    def _leave_short_way(self, cycle: Cycle) -> None:
        """Go on as uvicorn would have from the head of the request."""
        self.short = self.cycle = self.due = None  # type: ignore[assignment]
        self._go_ordinary_way()
        super().on_body(cycle.body)

    def on_answered(self, cycle: Cycle) -> None:
        """Go on with the next request, or wait for it."""
        self.short = None
        if not cycle.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            if self.head is None:  # else the clock of the next request runs already
                self.due = self.loop.time() + self.limits.keep_alive_s

    def check_clock(self, now: float) -> None:
        """Close the connection of a client that owes a request for too long; one that owes a body is waited for.

        A request behind one that is still being answered is not looked at: its time is up when that answer is whole.
        """
        if self.due is None or now <= self.due or self.transport.is_closing():
            return
        if self.short is not None and not self.short.taken:
            self._leave_short_way(self.short)
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _refuse_head(self) -> None:
        """Close the connection of a client whose head does not end."""
        if self.cycle is not None and not self.cycle.response_complete:
            return self.transport.close()
        problem = Problem(431, "head too large", f"the head is longer than {MAX_HEAD_BYTES} bytes: send fewer headers")
        lengths = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(problem.body())
        self.transport.write(STATUS_LINE[431] + b"content-type: " + PROBLEM_JSON + b"\r\n" + lengths + problem.body())
        self.transport.close()


def without_upgrade(data: bytes) -> bytes:
    """Return a request whose head, which is not looked at beyond this read, offers no other protocol.

    A server may ignore such an offer (RFC 9110, 7.8), which Java's and curl's clients make of themselves; the parser
    cannot, and takes the body for the other protocol's.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    if b"\r\nupgrade:" not in head.lower():
        return data
    return UPGRADE.sub(rb"\r\nx-offer:", head) + data[len(head) :]


class HoneServer(Server):
    """uvicorn's server, with a sweep over the connections that keep it waiting."""

    owns_process = False
    "Whether the process lives for this server: then the garbage collector passes over what is loaded at the start."

    async def startup(self, sockets: Any = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self.owns_process:
            gc.collect()
            gc.freeze()

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second (a tick is a tenth)."""
        if counter % round(SWEEP_S * 10) == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HoneProtocol):
                    check(connection, now)
        return await super().on_tick(counter)


def check(connection: HoneProtocol, now: float) -> None:
    """Look after one connection; a fault of ours ends that one, and not the server."""
    try:
        connection.check_clock(now)
    except Exception:
        logger.exception("a fault while looking after a connection, which is closed")
        connection.transport.abort()


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
        ws="none",
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
    server = make_server(app, host, port, limits)
    server.owns_process = True
    with suppress(KeyboardInterrupt):
        server.run()
