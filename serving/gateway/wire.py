"""HTTP/1.1 to model servers, made for streams: whatever one read of the socket brings is handed on in one piece.

A model server sends each token as a chunk of its own. A client that makes an object, a task or a copy of every chunk
spends most of a gateway's CPU there; here a chunk costs one call within httptools, and a read one wake-up.
"""

import asyncio
import functools
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import aiohappyeyeballs
import httptools

NEXT_ADDRESS_S = 0.25
"""After so long without a connection the host's next address is tried beside it (RFC 8305)."""
KEEP_ALIVE_S = 15.0
"""How long an idle connection waits for the next request; less than what servers and balancers usually allow."""
HIGH_WATER_BYTES = 256 * 1024
"""The socket is not read while so much waits for a slow client."""
MAX_HEAD_BYTES = 64 * 1024
PLAIN = {b"content-encoding": b"identity", b"transfer-encoding": b"chunked"}
"""The encodings that are read."""


class Broken(ConnectionError):
    """The server broke off, or sent what is no answer."""


class Stale(Broken):
    """A kept connection was closed by the server before it saw the request."""


@dataclass(frozen=True)
class Place:
    """Where a server is: what connections are shared by."""

    host: str
    port: int
    is_secure: bool


@functools.lru_cache(maxsize=1024)
def locate(url: str) -> tuple[Place, str, str]:
    """Return place, `Host` and path of an http or https address."""
    parts = urlsplit(url)
    is_secure = parts.scheme == "https"
    place = Place(parts.hostname or "", parts.port or (443 if is_secure else 80), is_secure)
    query = f"?{parts.query}" if parts.query else ""
    return place, parts.netloc.rpartition("@")[2], (parts.path or "/") + query


def request_bytes(method: str, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the request as it is sent.

    Raises:
        ValueError: a header or the address holds a line break, which would make another header of the rest.
    """
    _, host, path = locate(url)
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{''.join(lines)}content-length: {len(body)}\r\n\r\n"
    if head.count("\r") != len(lines) + 4 or head.count("\n") != len(lines) + 4:
        raise ValueError(f"a line break in the request to {host}{path}: headers hold one line each")
    return head.encode("latin-1") + body


class Connection(asyncio.Protocol):
    """One connection: one request at a time, kept for the next one where both sides allow it."""

    def __init__(self, place: Place, idle: dict[Place, list["Connection"]], timeout_s: float) -> None:
        self.place, self._idle, self._timeout_s = place, idle, timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._armed = 0.0
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # httptools calls the list itself, once a chunk
        self._error: OSError | None = None
        self._is_idle = self._is_used = False
        self._forget()
        self._parser = httptools.HttpResponseParser(self)

    def _forget(self) -> None:
        self.status, self.headers = 0, dict[bytes, bytes]()
        self._seen = self._held = 0
        self._has_head = self._ended = self._keeps = self._until_close = self._paused = False

    # What the loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        """Parse what one read brought, and wake who waits for it."""
        if self._error is not None:
            return
        if self._is_idle or self._ended:
            return self._fail(Broken(f"{self.place.host} sent {len(data)} bytes that nobody asked for"))
        self._seen += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            return self._fail(Broken(f"{self.place.host} sent what is no HTTP answer: {error}"))
        if not self._has_head and self._seen > MAX_HEAD_BYTES:
            return self._fail(Broken(f"{self.place.host} sent a head of more than {MAX_HEAD_BYTES} bytes"))
        self._held += len(data)
        if self._held > HIGH_WATER_BYTES and not self._ended:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell an answer that ends so from one that breaks off."""
        self._leave_idle()
        if self._has_head and self._until_close and error is None:
            self._ended = True
        elif not self._ended and self._error is None:
            kind = Stale if self._is_used and not self._seen else Broken
            self._error = kind(f"{self.place.host} closed the connection" + (f": {error}" if error else ""))
        self._keeps = False
        if self._timer is not None:
            self._timer.cancel()
        del self._parser, self.on_body  # they hold this object, and it them
        self._wake()

    # What the parser says.

    def on_message_begin(self) -> None:
        """Take one answer to one request."""
        if self._ended:  # the parser stops here, and the bytes of the second answer reach nobody
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head; trailers are not read."""
        if not self._has_head:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Keep what the head says; one of 1xx is followed by another."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return self.headers.clear()
        self._has_head, self._keeps = True, self._parser.should_keep_alive()
        self._until_close = b"content-length" not in self.headers and b"transfer-encoding" not in self.headers

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        self._ended = self._has_head

    # What a reply asks for.

    async def ask(self, data: bytes) -> None:
        """Send a request and wait for the head of its answer; on any error, or if it is cancelled, it is closed."""
        try:
            if self._error is not None:
                raise self._error
            self._forget()
            self._transport.write(data)
            while not self._has_head:
                if self._error is not None:
                    raise self._error
                await self._something()
            check_encoding(self)
        except BaseException:
            self.abort()
            raise
        self._is_used = True

    async def read(self) -> bytes:
        """Return what has arrived of the body, waiting for some; empty at its end."""
        while not self._parts:
            if self._ended:
                return b""
            if self._error is not None:
                raise self._error
            await self._something()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def is_over(self) -> bool:
        """Say whether all of the answer was read."""
        return self._ended and not self._parts

    def release(self) -> None:
        """Keep the connection for the next request, if its answer was read to the end and it may be kept."""
        if not self._keeps or self._transport.is_closing() or self._transport.get_write_buffer_size():
            return self.abort()
        self._is_idle = True
        self._idle.setdefault(self.place, []).append(self)
        self._set_due(KEEP_ALIVE_S)

    def take(self) -> "Connection":
        """Take the connection out of the idle ones."""
        self._is_idle = False
        return self

    def abort(self) -> None:
        """Close it at once, so that the server stops working on the answer."""
        self._transport.abort()

    def _leave_idle(self) -> None:
        if self._is_idle:
            self._is_idle = False
            self._idle[self.place].remove(self)

    def _fail(self, error: OSError) -> None:
        self._error, self._keeps = self._error or error, False
        self._leave_idle()
        self.abort()
        self._wake()

    # Waiting. One timer runs for many waits: it looks again where its time has been put off.

    def _something(self) -> asyncio.Future[None]:
        """Return what ends when something has come, the end too, or nothing for too long."""
        self._waiter = self._loop.create_future()
        self._set_due(self._timeout_s)
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_due(self, after_s: float) -> None:
        self._due = self._loop.time() + after_s
        if self._timer is None or self._armed > self._due:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = self._due
        self._timer = self._loop.call_at(self._due, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._is_idle and self._loop.time() >= self._due:
            self._leave_idle()
            self.abort()
        elif self._waiter is not None and not self._waiter.done():
            if self._loop.time() < self._due:
                return self._arm()
            self._waiter.set_exception(TimeoutError(f"{self.place.host} sent nothing for {self._timeout_s:g} s"))
        elif self._is_idle:
            self._arm()


@dataclass
class Reply:
    """An answer whose head is here. Read it to its end, or close it."""

    status: int
    headers: Mapping[bytes, bytes]
    _connection: Connection | None = field(repr=False)

    async def some(self) -> bytes:
        """Return what has arrived since the last call, waiting for some; empty at the end.

        Raises:
            OSError: the server broke off (`Broken`), or sent nothing for too long (`TimeoutError`); what came before
                that was returned before.
        """
        if self._connection is None:
            return b""
        data = await self._connection.read()
        if self._connection.is_over:
            self._connection.release()
            self._connection = None
        return data

    @property
    def is_over(self) -> bool:
        """Say whether all of the answer was read, or nothing more will be: it was closed."""
        return self._connection is None

    async def all(self) -> bytes:
        """Return the rest of the body; raises as `some`."""
        parts = []
        while data := await self.some():
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        """Stop the server, unless the answer was read to its end."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


class Wire:
    """The client. Make it inside the event loop that uses it. Redirects are not followed, bodies not decompressed."""

    def __init__(self, *, connect_timeout_s: float, timeout_s: float) -> None:
        """`timeout_s` is the longest silence of a server, before its head and between two reads."""
        self._connect_timeout_s, self._timeout_s = connect_timeout_s, timeout_s
        self._idle: dict[Place, list[Connection]] = {}

    async def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Return the answer once its head is here.

        A kept connection that the server closes before it has said anything is replaced once by a fresh one.

        Raises:
            OSError: nobody answers there, or not in time, or not in HTTP (`Broken`).
            ValueError: a header with a line break.
        """
        data, place = request_bytes(method, url, headers, body), locate(url)[0]
        idle = self._idle.get(place)
        connection = idle.pop().take() if idle else await self._connect(place)
        try:
            await connection.ask(data)
        except Stale:
            connection = await self._connect(place)
            await connection.ask(data)
        return Reply(connection.status, connection.headers, connection)

    async def close(self) -> None:
        """Close the connections that are idle; the others end with their answers."""
        for connection in [one for kept in self._idle.values() for one in kept]:
            connection.abort()
        await asyncio.sleep(0)

    async def _connect(self, place: Place) -> Connection:
        await asyncio.sleep(0)  # a request may begin outside of a task, which a timeout needs
        loop = asyncio.get_running_loop()
        make = functools.partial(Connection, place, self._idle, self._timeout_s)
        tls: dict[str, Any] = {"ssl": tls_context(), "server_hostname": place.host} if place.is_secure else {}
        async with asyncio.timeout(self._connect_timeout_s):
            addresses = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await loop.create_connection(make, sock=sock, **tls)
        return connection


def check_encoding(connection: Connection) -> None:
    """Refuse what was compressed, although the request says that it must not be."""
    for name, plain in PLAIN.items():
        value = connection.headers.get(name)
        if value is not None and value != plain and value.strip().lower() != plain:
            raise Broken(f"{connection.place.host} sent {name.decode()} {value!r}: only {plain.decode()} is read")


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return how servers are known, by the system's authorities (`SSL_CERT_FILE` names others)."""
    return ssl.create_default_context()
