"""Answers on their way to Kafka. While it is away they wait in a file, which is replayed when it is back.

A record may arrive twice (its id is its key in the database). It is lost only if the process is killed between the
answer and the broker's word, or if both Kafka and the disk refuse it; the latter is counted.
"""

import asyncio
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import msgspec

from hone import metrics
from hone.errors import HoneError, InvalidEvent, Retryable
from hone.records import RESPONSES_TOPIC, Response
from serving.gateway.publisher import Publisher

logger = logging.getLogger(__name__)

ENCODER = msgspec.json.Encoder()
REPLAY_INTERVAL_S = 2.0
REPLAY_CHUNK = 500
GATHER_S = 0.05
"""How long answers are gathered. Nobody waits for them, and a request to the broker costs more CPU than an answer."""


class Spill:
    """Lines on disk: `responses.jsonl` grows, `responses.replaying.jsonl` is what a replay works on."""

    def __init__(self, directory: Path) -> None:
        self.growing = directory / "responses.jsonl"
        self.replaying = directory / "responses.replaying.jsonl"
        self._lock = threading.Lock()

    def append(self, line: bytes) -> None:
        """Write one line; on disk when it returns.

        Raises:
            OSError: it could not be written, and nothing of it is there.
        """
        with self._lock:
            self.growing.parent.mkdir(parents=True, exist_ok=True)
            with self.growing.open("a+b", buffering=0) as stream:
                write_line(stream, line)
        metrics.SPILLED_RESPONSES.inc()
        metrics.SPILL_BYTES.set(self.size())

    def take(self) -> Path | None:
        """Return the file to replay, if there is one; that of an interrupted replay comes first."""
        with self._lock:
            if not self.replaying.exists():
                if not self.growing.exists():
                    return None
                self.growing.rename(self.replaying)
        return self.replaying

    def done(self) -> None:
        """Forget the file that `take` gave."""
        self.replaying.unlink()
        metrics.SPILL_BYTES.set(self.size())

    def size(self) -> int:
        """Return the bytes that wait."""
        return sum(file.stat().st_size for file in (self.growing, self.replaying) if file.exists())


def write_line(stream: FileIO, line: bytes) -> None:
    """Append a line and wait for the disk; where that fails, the file is as long as before. Raises OSError.

    A half line, which a killed process left, is closed first: it may be lost, the next one may not be glued to it.
    """
    end = stream.seek(0, os.SEEK_END)
    if end:
        stream.seek(end - 1)
    rest = memoryview((b"\n" if end and stream.read(1) != b"\n" else b"") + line + b"\n")
    try:
        while rest:
            rest = rest[stream.write(rest) :]
        os.fsync(stream.fileno())
    except OSError:
        stream.truncate(end)
        raise


class Recorder:
    """Sends responses; no request ever waits for it."""

    def __init__(self, publisher: Publisher, spill: Spill) -> None:
        self.publisher, self.spill = publisher, spill
        self._taken: list[Callable[[], Response]] = []
        self._num_sent = 0
        "Records that the broker has neither taken nor refused yet."
        self._spilling: set[asyncio.Future[None]] = set()

    def record(self, make: Callable[[], Response]) -> None:
        """Take a response, which is made and reaches Kafka, or the file, soon after."""
        if not self._taken:
            asyncio.get_running_loop().call_later(GATHER_S, self.send_taken)
        self._taken.append(make)

    def send_taken(self) -> None:
        """Send what was taken, together."""
        taken, self._taken = self._taken, []
        for make in taken:
            try:
                response = make()
            except Exception as error:  # a fault of ours takes no other record with it
                lose("a response", error)
            else:
                self._send(response)

    def _send(self, response: Response) -> None:
        line = ENCODER.encode(response)
        try:
            self.publisher.post(
                RESPONSES_TOPIC, response.conversation_id.bytes, line, functools.partial(self._settled, line)
            )
        except HoneError as error:
            self._keep(line, error)
        else:
            self._num_sent += 1

    async def drain(self) -> None:
        """Return once every response taken so far is in Kafka or in the file."""
        self.send_taken()
        while self._num_sent or self._spilling:
            await (asyncio.wait(self._spilling) if self._spilling else asyncio.sleep(GATHER_S))

    async def replay(self) -> None:
        """Bring the file's lines to Kafka, again and again; until cancelled."""
        while True:
            await asyncio.sleep(REPLAY_INTERVAL_S)
            if self.spill.size() and await self.publisher.is_healthy():
                await self.replay_once()

    async def replay_once(self) -> bool:
        """Return whether everything that was in the file is in Kafka now; if not, the file stays."""
        file = await asyncio.to_thread(self.spill.take)
        if file is None:
            return True
        try:
            with file.open("rb") as stream:
                while lines := list(itertools.islice(stream, REPLAY_CHUNK)):
                    await asyncio.gather(*map(self._send_line, lines))
        except Retryable as error:
            logger.warning("the responses in %s stay there: %s", file, error)
            return False
        await asyncio.to_thread(self.spill.done)
        logger.info("the responses in %s are in Kafka", file)
        return True

    async def _send_line(self, line: bytes) -> None:
        try:
            key = msgspec.json.decode(line, type=Response).conversation_id.bytes
            await self.publisher.send(RESPONSES_TOPIC, key, line.rstrip(b"\n"))
        except (msgspec.DecodeError, InvalidEvent) as error:
            lose(f"a line of {self.spill.replaying}", error)

    def _settled(self, line: bytes, error: HoneError | None) -> None:
        """Let go of what the broker has, and keep what it has not."""
        self._num_sent -= 1
        if error is not None:
            self._keep(line, error)

    def _keep(self, line: bytes, error: HoneError) -> None:
        if isinstance(error, InvalidEvent):
            return lose("a response", error)
        spilling = asyncio.ensure_future(asyncio.to_thread(self._spill, line))
        self._spilling.add(spilling)
        spilling.add_done_callback(self._spilling.discard)

    def _spill(self, line: bytes) -> None:
        try:
            self.spill.append(line)
        except OSError as error:
            lose(f"a response (Kafka is away, and {self.spill.growing} cannot be written: free disk space)", error)


def lose(what: str, error: Exception) -> None:
    """Count and log a record that nothing can keep; the answer itself was given."""
    metrics.LOST_RESPONSES.inc()
    logger.error("lost %s: %s", what, error)
