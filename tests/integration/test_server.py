"""The HTTP server on raw sockets: hot requests take the short way, and slow clients are not waited for."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from serving.http import JSON, Problem, Receive, Scope, Send, answer, answer_problem, read_body
from serving.server import Limits
from serving.short_way import Cycle
from tests.support.web import serving

Address = tuple[str, int]


class Echo:
    """Answers with the body, and with the way that the request took."""

    limit = 64

    def __init__(self) -> None:
        self.direct = {b"/hot": self}

    def take(self, http: Scope, body: bytes, out: Cycle) -> bool:
        if body == b"other way":
            return False
        if body == b"fault":
            raise RuntimeError("private words")
        out.answer_now(200, b"short " + body, JSON, [(b"x-seen", str(len(http["headers"])).encode())])
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await answer(send, 200, b"long " + await read_body(receive, 1000, timeout_s=0.2))
            except Problem as problem:
                await answer_problem(send, problem)


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with serving(Echo(), Limits(head_timeout_s=0.5, keep_alive_s=30)) as url:
        yield "127.0.0.1", int(url.rsplit(":", 1)[1])


def post(body: bytes, path: bytes = b"/hot", **headers: str) -> bytes:
    head = {"host": "x", "content-length": str(len(body))} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items()).encode()
    return b"POST " + path + b" HTTP/1.1\r\n" + lines + b"\r\n" + body


def exchange(address: Address, *pieces: bytes) -> bytes:
    """Send the pieces one after the other; return what came back until the server closed."""
    got = b""
    with socket.create_connection(address) as sock:
        sock.settimeout(10)
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(0.005)
        while data := sock.recv(65536):
            got += data
    return got


def test_a_fault_on_the_short_way_is_a_problem_and_the_connection_goes_on(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    got = exchange(address, post(b"fault"), post(b"hi!", connection="close"))
    assert got.startswith(b"HTTP/1.1 500 ")
    assert b"content-type: application/problem+json" in got
    assert b"RuntimeError: see the server's log" in got
    assert b"private words" not in got
    assert got.endswith(b"short hi!")
    assert "private words" in caplog.text


def test_a_hot_request_takes_the_short_way_wherever_it_is_cut(address: Address) -> None:
    whole = post(b"hi!", connection="close")
    for cut in range(0, len(whole), 5):
        assert b"short hi!" in exchange(address, whole[:cut], whole[cut:])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(post(b"hi!", path=b"/cold"), id="another path"),
        pytest.param(post(b"other way"), id="what the route does not take"),
        pytest.param(post(b"x" * 80 + b"!"), id="a body above the route's limit"),
        pytest.param(post(b"hi!", origin="https://a.example"), id="a browser's"),
        pytest.param(post(b"hi!").replace(b"POST", b"PUT", 1), id="another method"),
    ],
)
def test_what_is_not_hot_goes_the_ordinary_way(address: Address, sent: bytes) -> None:
    got = exchange(address, sent, post(b"end", connection="close"))
    assert b"long " in got.split(b"HTTP/1.1 ")[1]


def test_requests_sent_at_once_are_answered_in_their_order(address: Address) -> None:
    bodies = [b"a!", b"other way", b"b!", b"c!"]
    got = exchange(address, b"".join(map(post, bodies)) + post(b"end!", connection="close"))
    places = [got.index(body) for body in (*bodies, b"end!")]
    assert places == sorted(places)


@pytest.mark.parametrize("sent", [b"", b"POST /hot HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_a_client_that_does_not_send_its_request_is_cut_off(address: Address, sent: bytes) -> None:
    assert exchange(address, sent) == b""


def test_a_body_that_takes_its_time_is_waited_for_on_the_ordinary_way(address: Address) -> None:
    with socket.create_connection(address) as sock:
        sock.settimeout(10)
        sock.sendall(post(b"hi!")[:-2])
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_connection_between_two_requests_may_rest(address: Address) -> None:
    with socket.create_connection(address) as sock:
        sock.settimeout(10)
        for pause_s in (1.8, 0):
            sock.sendall(post(b"hi!"))
            assert b"short hi!" in sock.recv(65536)
            time.sleep(pause_s)


class Streams:
    """Answers in pieces from a task, and notes who left."""

    limit = 64

    def __init__(self) -> None:
        self.direct, self.left = {b"/hot": self}, threading.Event()

    def take(self, http: Scope, body: bytes, out: Cycle) -> bool:
        out.run(self.answer(body, out))
        return True

    async def answer(self, body: bytes, out: Cycle) -> None:
        if body == b"fault":
            raise RuntimeError("before the first wait")
        await out.start(200, JSON)
        await out.write(b"one ")
        try:
            await asyncio.sleep(10 if body == b"never" else 0.001)
        except asyncio.CancelledError:
            self.left.set()
            raise
        if body == b"break":
            raise RuntimeError("in the middle")
        await out.end(b"two" if body == b"two" else b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(send, 200, b"long " + await read_body(receive, 1000))


@pytest.fixture(scope="module")
def streams() -> Iterator[tuple[Address, Streams]]:
    app = Streams()
    with serving(app) as url:
        yield ("127.0.0.1", int(url.rsplit(":", 1)[1])), app


def test_an_answer_in_chunks_ends_and_the_connection_goes_on(streams: tuple[Address, Streams]) -> None:
    got = exchange(streams[0], post(b"two"), post(b"", connection="close"))
    first, second = got.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"transfer-encoding: chunked\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")
    assert second.endswith(b"4\r\none \r\n0\r\n\r\n")
    assert b"connection: close" in second


def test_a_request_behind_one_that_streams_waits_for_its_end(streams: tuple[Address, Streams]) -> None:
    got = exchange(streams[0], post(b"two") + post(b"after", connection="close"))
    assert got.index(b"two\r\n0\r\n\r\n") < got.index(b"long after")


def test_a_fault_before_the_first_chunk_is_a_problem_and_after_it_the_connection_ends(
    streams: tuple[Address, Streams],
) -> None:
    assert exchange(streams[0], post(b"fault", connection="close")).startswith(b"HTTP/1.1 500 ")
    assert exchange(streams[0], post(b"break")).endswith(b"4\r\none \r\n")


def test_who_answers_is_told_that_the_client_has_left(streams: tuple[Address, Streams]) -> None:
    address, app = streams
    app.left.clear()
    with socket.create_connection(address) as sock:
        sock.sendall(post(b"never"))
        assert b"one " in sock.recv(65536)
    assert app.left.wait(5)
