"""The load generator of the gateway's benchmark, in a process of its own: raw sockets, one JSON line out.

`python -m benchmarks.gateway_load PORT REQUESTS_FILE` reads a JSON list of {"head", "bodies", "connections", "seconds",
"number"}; each connection sends one request after the other, keep-alive, and reads each answer to its end.
"""

import asyncio
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httptools
import msgspec
import uvloop


class Job(msgspec.Struct):
    """What to send: `number` requests, or as many as fit into `seconds`."""

    path: str
    bodies: list[str]
    headers: dict[str, str] = {}
    connections: int = 16
    seconds: float = 0.0
    number: int = 0


class Done(msgspec.Struct):
    """What came back. Times are in milliseconds, one for each request."""

    number: int
    seconds: float
    statuses: dict[int, int]
    first_ms: list[float]
    total_ms: list[float]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, requests: list[bytes], job: Job, done: "Tally", offset: int) -> None:
        self.requests, self.job, self.tally, self.next = requests, job, done, offset
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if self.tally.is_over(self.job):
            self.transport.close()
            return
        self.tally.sent += 1
        self.parser, self.first, self.begun = httptools.HttpResponseParser(self), 0.0, time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])
        self.next += self.job.connections

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.first = self.first or time.perf_counter()

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.tally.add(self.parser.get_status_code(), (self.first or now) - self.begun, now - self.begun)
        asyncio.get_running_loop().call_soon(self.send)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Tally:
    """Counts of all connections."""

    def __init__(self) -> None:
        self.sent, self.began = 0, time.perf_counter()
        self.statuses: dict[int, int] = {}
        self.first: list[float] = []
        self.total: list[float] = []

    def is_over(self, job: Job) -> bool:
        if job.number:
            return self.sent >= job.number
        return time.perf_counter() - self.began > job.seconds

    def add(self, status: int, first_s: float, total_s: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.first.append(first_s * 1000)
        self.total.append(total_s * 1000)


def request_bytes(job: Job, body: str) -> bytes:
    data = body.encode()
    headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(data))} | job.headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {job.path} HTTP/1.1\r\n{lines}\r\n".encode() + data


async def run(port: int, job: Job) -> Done:
    """Send everything and wait for the last answer."""
    requests, tally = [request_bytes(job, body) for body in job.bodies], Tally()
    loop, connections = asyncio.get_running_loop(), []
    for offset in range(job.connections):
        make = partial(Connection, requests, job, tally, offset)
        _, connection = await loop.create_connection(make, "127.0.0.1", port)
        connections.append(connection)
    await asyncio.gather(*(connection.ended for connection in connections))
    return Done(len(tally.total), time.perf_counter() - tally.began, tally.statuses, tally.first, tally.total)


def main(port: int, file: Path) -> None:
    """Do the job in the file and print what came back."""
    job = msgspec.json.decode(file.read_bytes(), type=Job)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(run(port, job))).decode())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
