"""Answers on their way to Kafka. While it is away they wait in a file, which is replayed when it is back.

A record may arrive twice (its id is its key in the database); it is lost only if the process is killed between the
answer and the broker's word.
"""

import asyncio
import logging
import os
import threading
from pathlib import Path

import msgspec

from hone import metrics
from hone.errors import Retryable
from hone.records import RESPONSES_TOPIC, Response
from serving.gateway.publisher import Publisher

logger = logging.getLogger(__name__)

REPLAY_INTERVAL_S = 2.0
REPLAY_CHUNK = 500


class Spill:
    """Lines on disk: `responses.jsonl` grows, `responses.replaying.jsonl` is what a replay works on."""

    def __init__(self, directory: Path) -> None:
        self.growing = directory / "responses.jsonl"
        self.replaying = directory / "responses.replaying.jsonl"
        self._lock = threading.Lock()

    def append(self, line: bytes) -> None:
        """Write one line; on disk when it returns."""
        with self._lock:
            self.growing.parent.mkdir(parents=True, exist_ok=True)
            with self.growing.open("ab") as stream:
                stream.write(line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        metrics.SPILLED_RESPONSES.inc()
        metrics.SPILL_BYTES.set(self.size())

    def take(self) -> list[bytes]:
        """Return the lines to replay; those of an interrupted replay come first and alone."""
        with self._lock:
            if not self.replaying.exists():
                if not self.growing.exists():
                    return []
                self.growing.rename(self.replaying)
        return [line for line in self.replaying.read_bytes().split(b"\n") if line]

    def done(self) -> None:
        """Forget the lines that `take` gave."""
        self.replaying.unlink()
        metrics.SPILL_BYTES.set(self.size())

    def size(self) -> int:
        """Return the bytes that wait."""
        return sum(file.stat().st_size for file in (self.growing, self.replaying) if file.exists())


class Recorder:
    """Sends responses; no request ever waits for it."""

    def __init__(self, publisher: Publisher, spill: Spill) -> None:
        self.publisher, self.spill = publisher, spill
        self._pending: set[asyncio.Task[None]] = set()

    def record(self, response: Response) -> None:
        """Take a response; it reaches Kafka, or the file, soon after."""
        task = asyncio.create_task(self._deliver(response.conversation_id.bytes, msgspec.json.encode(response)))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def drain(self) -> None:
        """Return once every response taken so far is in Kafka or in the file."""
        while self._pending:
            await asyncio.gather(*self._pending, return_exceptions=True)

    async def replay(self) -> None:
        """Bring the file's lines to Kafka, again and again; until cancelled."""
        while True:
            await asyncio.sleep(REPLAY_INTERVAL_S)
            if self.spill.size() and await self.publisher.is_healthy():
                await self.replay_once()

    async def replay_once(self) -> bool:
        """Return whether everything that was in the file is in Kafka now; if not, the file stays."""
        lines = await asyncio.to_thread(self.spill.take)
        try:
            for first in range(0, len(lines), REPLAY_CHUNK):
                await asyncio.gather(*(self._send_line(line) for line in lines[first : first + REPLAY_CHUNK]))
        except Retryable as error:
            logger.warning("%d responses stay in %s: %s", len(lines), self.spill.replaying, error)
            return False
        if lines:
            await asyncio.to_thread(self.spill.done)
            logger.info("replayed %d responses to Kafka", len(lines))
        return True

    async def _send_line(self, line: bytes) -> None:
        try:
            key = msgspec.json.decode(line, type=Response).conversation_id.bytes
        except msgspec.DecodeError:
            logger.error(
                "a torn line of %d bytes in %s is dropped: disk full or crash", len(line), self.spill.replaying
            )
            return
        await self.publisher.send(RESPONSES_TOPIC, key, line)

    async def _deliver(self, key: bytes, line: bytes) -> None:
        try:
            await self.publisher.send(RESPONSES_TOPIC, key, line)
        except Retryable:
            await asyncio.to_thread(self.spill.append, line)
