"""The gateway's HTTP client against servers that write their bytes as they please."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from serving.gateway import wire
from serving.gateway.wire import Broken, Reply, Wire

BODY = b"data: one\n\ndata: two\n\n"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"b\r\ndata: one\n\n\r\nb;x=1\r\ndata: two\n\n\r\n0\r\ntrailer: t\r\n\r\n"
)
COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\n" + BODY
Step = bytes | float | None
"""What a server does next: write, wait so many seconds, or (None) close."""


class Server:
    """Answers each request with the next list of steps, on whichever connection it comes."""

    def __init__(self, *answers: list[Step]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.left: asyncio.Event = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while not reader.at_eof():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for step in self.answers.pop(0):
                    if step is None:
                        return
                    await (asyncio.sleep(step) if isinstance(step, float) else send(writer, step))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@asynccontextmanager
async def started(server: Server, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.url = f"http{'s' if context else ''}://localhost:{listening.sockets[0].getsockname()[1]}"
    client = Wire(connect_timeout_s=5, timeout_s=0.3)
    try:
        yield client
    finally:
        await client.close()
        listening.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run on the loop that the gateway uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 20))


async def ask(client: Wire, server: Server, body: bytes = b"{}") -> Reply:
    return await client.request("POST", f"{server.url}/v1/chat", {"content-type": "application/json"}, body)


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED], ids=["chunked", "counted"])
def test_an_answer_is_the_same_at_whichever_byte_the_network_cuts_it_and_its_connection_is_kept(answer: bytes) -> None:
    cuts = range(1, len(answer))
    answers: list[list[Step]] = [[answer[:cut], 0.001, answer[cut:]] for cut in cuts]
    server = Server(*answers)

    async def work() -> None:
        async with started(server) as client:
            for _ in cuts:
                reply = await ask(client, server)
                assert (reply.status, await reply.all()) == (200, BODY)

    run(work)
    assert server.num_connections == 1
    assert server.requests[0].startswith(b"POST /v1/chat HTTP/1.1\r\nhost: localhost:")


def test_what_has_arrived_is_given_before_the_server_writes_more() -> None:
    server = Server([CHUNKED[:-30], 0.1, CHUNKED[-30:]])

    async def work() -> None:
        async with started(server) as client:
            reply = await ask(client, server)
            assert await reply.some() == b"data: one\n\n"
            assert await reply.all() == b"data: two\n\n"

    run(work)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    server = Server([b"HTTP/1.1 200 OK\r\n\r\n" + BODY, None], [b"HTTP/1.1 103 Early\r\n\r\n" + COUNTED])

    async def work() -> None:
        async with started(server) as client:
            assert await (await ask(client, server)).all() == BODY
            assert await (await ask(client, server)).all() == BODY, "after an interim answer too"

    run(work)
    assert server.num_connections == 2


BREAKS = [
    pytest.param([CHUNKED[:-30], None], b"data: one\n\n", id="in a chunked body"),
    pytest.param([COUNTED[:-3], None], BODY[:-3], id="in a counted body"),
    pytest.param([b"HTTP/1.1 200", None], None, id="in the head"),
    pytest.param([b"220 smtp ready\r\n"], None, id="no HTTP"),
    pytest.param([b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], None, id="another protocol"),
    pytest.param([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000], None, id="an endless head"),
    pytest.param([COUNTED.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")], None, id="compressed"),
    pytest.param([CHUNKED[:-30], 1.0], b"data: one\n\n", id="silent in the body"),
    pytest.param([1.0], None, id="silent before the head"),
]


@pytest.mark.parametrize(("steps", "before"), BREAKS)
def test_an_answer_that_breaks_off_gives_what_came_and_then_an_error(steps: list[Step], before: bytes | None) -> None:
    server = Server(steps)

    async def work() -> None:
        async with started(server) as client:
            if before is None:
                with pytest.raises((Broken, TimeoutError)):
                    await ask(client, server)
                return
            reply = await ask(client, server)
            assert await reply.some() == before
            with pytest.raises((Broken, TimeoutError)):
                await reply.some()
            reply.close()

    run(work)
    assert len(server.requests) == 1, "only a kept connection is replaced"


def test_a_kept_connection_that_the_server_closes_is_replaced_and_the_request_sent_once_more() -> None:
    server = Server([COUNTED], [None], [COUNTED])

    async def work() -> None:
        async with started(server) as client:
            await (await ask(client, server, b"1")).all()
            assert await (await ask(client, server, b"2")).all() == BODY

    run(work)
    assert [request[-1:] for request in server.requests] == [b"1", b"2", b"2"]
    assert server.num_connections == 2


def test_a_second_answer_that_nobody_asked_for_reaches_nobody() -> None:
    server = Server([COUNTED + COUNTED.replace(b"one", b"bad")], [COUNTED])

    async def work() -> None:
        async with started(server) as client:
            assert await (await ask(client, server)).all() == BODY
            assert await (await ask(client, server)).all() == BODY

    run(work)
    assert server.num_connections == 2


@pytest.mark.parametrize("cancels", [False, True])
def test_an_answer_that_is_closed_or_cancelled_stops_the_server(cancels: bool) -> None:
    more: list[Step] = [0.01, b"1\r\nx\r\n"]
    endless: list[Step] = [0.2 if cancels else b"", CHUNKED[:-30], *more * 1000]
    server = Server(endless)

    async def work() -> None:
        async with started(server) as client:
            asking = asyncio.ensure_future(ask(client, server))
            if cancels:
                await asyncio.sleep(0.05)
                asking.cancel()
            else:
                (await asking).close()
            await asyncio.wait_for(server.left.wait(), 5)

    run(work)
    assert server.left.is_set()
    assert len(server.requests) == 1


def test_a_slow_reader_stops_the_reading_and_loses_nothing() -> None:
    size = 16 << 20
    server = Server([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, b"x" * size])

    async def work() -> None:
        async with started(server) as client:
            reply = await ask(client, server)
            await asyncio.sleep(0.1)
            first = await reply.some()
            assert len(first) < 4 << 20
            assert len(first) + len(await reply.all()) == size

    run(work)


def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "KEEP_ALIVE_S", 0.05)
    server = Server([COUNTED])

    async def work() -> None:
        async with started(server) as client:
            await (await ask(client, server)).all()
            await asyncio.wait_for(server.left.wait(), 5)

    run(work)
    assert server.left.is_set()
    assert len(server.requests) == 1


def test_nobody_there_and_a_header_of_two_lines_are_errors() -> None:
    async def work() -> None:
        client = Wire(connect_timeout_s=5, timeout_s=1)
        with pytest.raises(ConnectionRefusedError):
            await client.request("GET", "http://127.0.0.1:9/", {})
        with pytest.raises(ValueError, match="line break"):
            await client.request("GET", "http://127.0.0.1:9/", {"x": "1\r\ny: 2"})

    run(work)


def test_servers_behind_tls_are_known_by_their_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server([CHUNKED], [CHUNKED])

    async def work() -> None:
        async with started(server, context) as client:
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(client, server)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            wire.tls_context.cache_clear()
            for _ in range(2):
                assert await (await ask(client, server)).all() == BODY

    wire.tls_context.cache_clear()
    run(work)
    wire.tls_context.cache_clear()
    assert server.num_connections == 1, "the refused one never became one"
