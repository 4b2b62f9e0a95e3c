"""The HTTP server on raw sockets: hot requests take the short way, and slow clients are not waited for."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from serving.http import JSON, AsgiOutlet, Outlet, Problem, Receive, Scope, Send, answer, answer_problem, read_body
from serving.server import Limits
from serving.short_way import Cycle, going_on
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
        if body == b"long":
            return await self.answer_for_long(out)
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

    async def answer_for_long(self, out: Outlet) -> None:
        await out.start(200, JSON)
        for number in range(30):
            await out.write(b"%d " % number)
            await asyncio.sleep(0.1)
        await out.end(b"done")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            body = await read_body(receive, 1000, timeout_s=0.2)
        except Problem as problem:
            return await answer_problem(send, problem)
        await (self.answer_for_long(AsgiOutlet(send)) if body == b"long" else answer(send, 200, b"long " + body))


@pytest.fixture(scope="module")
def streams() -> Iterator[tuple[Address, Streams]]:
    app = Streams()
    with serving(app, Limits(head_timeout_s=0.5)) as url:
        yield ("127.0.0.1", int(url.rsplit(":", 1)[1])), app


def test_an_answer_in_chunks_ends_and_the_connection_goes_on(streams: tuple[Address, Streams]) -> None:
    got = [b"", b""]
    with socket.create_connection(streams[0]) as sock:
        sock.settimeout(10)
        for number, sent in enumerate([post(b"two"), post(b"", connection="close")]):
            sock.sendall(sent)
            while not got[number].endswith(b"\r\n0\r\n\r\n"):
                got[number] += sock.recv(65536)
    assert got[0].endswith(b"transfer-encoding: chunked\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")
    assert got[1].endswith(b"transfer-encoding: chunked\r\n\r\n4\r\none \r\n0\r\n\r\n")
    assert b"connection: close" in got[1]


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


@pytest.mark.parametrize("way", [{}, {"origin": "https://a.example"}], ids=["short way", "ordinary way"])
@pytest.mark.parametrize("piece", [b"PO", b"POST /hot HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhal"])
def test_a_piece_of_a_next_request_does_no_harm_to_an_answer_that_takes_its_time(
    streams: tuple[Address, Streams], way: dict[str, str], piece: bytes
) -> None:
    got = exchange(streams[0], post(b"long", b"/hot", **way), piece)
    whole = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in [b"%d " % n for n in range(30)] + [b"done"])
    assert got.split(b"\r\n\r\n", 1)[1].startswith(whole + b"0\r\n\r\n")
    assert b"long hi" in exchange(streams[0], post(b"hi", path=b"/cold", connection="close"))


def test_a_head_without_end_is_refused(address: Address) -> None:
    with socket.create_connection(address) as sock:
        sock.settimeout(10)
        sock.sendall(b"POST /hot HTTP/1.1\r\n")
        with suppress(ConnectionError):  # it may have closed before all is sent
            for _ in range(40):
                sock.sendall(b"x-long: " + b"x" * 20_000 + b"\r\n")
                time.sleep(0.002)
        assert sock.recv(65536).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("name", ["Upgrade", "upgrade"])
def test_an_offer_to_speak_another_protocol_is_passed_over(address: Address, name: str) -> None:
    offer = {"Connection": f"{name}, HTTP2-Settings", name: "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    got = exchange(address, post(b"hi!", b"/hot", **offer), post(b"end", connection="close"))
    assert b"short hi!" in got
    assert b"short end" in got


@pytest.mark.parametrize("end_of_head", [0, 2])
def test_a_body_is_never_taken_for_a_request(address: Address, end_of_head: int) -> None:
    smuggled = post(b"smuggled", path=b"/cold")
    head = post(b"", connection="Upgrade", upgrade="h2c").replace(b"length: 0", b"length: %d" % len(smuggled))
    cut, got = head.index(b"upgrade") + 3, b""
    with socket.create_connection(address) as sock, suppress(ConnectionError):  # it is closed after such a head
        sock.settimeout(10)
        for piece in (head[:cut], head[cut : len(head) - end_of_head], head[len(head) - end_of_head :], smuggled):
            sock.sendall(piece)
            time.sleep(0.02)
        sock.sendall(post(b"end", connection="close"))
        while data := sock.recv(65536):
            got += data
    assert b"long smuggled" not in got


@pytest.mark.parametrize("steps", range(4))
def test_a_coroutine_that_was_begun_outside_of_a_task_sees_that_it_is_cancelled(steps: int) -> None:
    seen: list[type[BaseException]] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(10)
        except BaseException as error:
            seen.append(type(error))
            raise

    async def cancel_after() -> None:
        begun = work()
        task = asyncio.create_task(going_on(begun, begun.send(None)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        begun.close()

    asyncio.run(cancel_after())
    assert seen == [GeneratorExit if steps == 0 else asyncio.CancelledError]
