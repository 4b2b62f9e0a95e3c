"""Micro-batches: requests of one model that arrive within a short window are answered together, in one thread."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from hone import metrics
from hone.errors import HoneError
from serving.runtime.generation import Row, generate
from serving.runtime.model import LoadedModel

logger = logging.getLogger(__name__)

MAX_ROWS = 16
WINDOW_S = 0.010
Result = TypeVar("Result")


class GenerationFailed(HoneError):
    """The model raised while it generated; the other batches go on."""


@dataclass(eq=False)
class Job:
    """A row and the place where its reader waits: texts while it grows, then None; or the error."""

    loaded: LoadedModel
    row: Row
    arrived: float = field(default_factory=time.monotonic)
    texts: "asyncio.Queue[str | GenerationFailed | None]" = field(default_factory=asyncio.Queue)


class Batcher:
    """Owns the one thread in which models compute. Use it from one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Job]] = {}
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "generate")

    def submit(self, loaded: LoadedModel, row: Row) -> Job:
        """Queue a row; it joins the next batch of its model."""
        job = Job(loaded, row)
        self._waiting.setdefault(loaded.version, deque()).append(job)
        metrics.RUNTIME_QUEUE.inc()
        self._arrival.set()
        return job

    async def compute(self, function: Callable[[], Result]) -> Result:
        """Run other work of a model in the same thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def run(self) -> None:
        """Answer batch after batch, the model with the longest waiting row first; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            version = await self._next_version()
            jobs = self._take(version)
            if jobs:
                metrics.RUNTIME_BATCH_ROWS.observe(len(jobs))
                await loop.run_in_executor(self._thread, run_batch, loop, jobs)

    async def _next_version(self) -> str:
        """Wait for a row and the window (from now on: those whom the last batch answered may ask again at once)."""
        while not any(self._waiting.values()):
            self._arrival.clear()
            await self._arrival.wait()
        deadline = time.monotonic() + WINDOW_S
        while (left := deadline - time.monotonic()) > 0 and not any(
            len(jobs) >= MAX_ROWS for jobs in self._waiting.values()
        ):
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                break
        return min((jobs[0].arrived, version) for version, jobs in self._waiting.items() if jobs)[1]

    def _take(self, version: str) -> list[Job]:
        jobs = self._waiting[version]
        taken = [jobs.popleft() for _ in range(min(MAX_ROWS, len(jobs)))]
        if not jobs:
            del self._waiting[version]
        metrics.RUNTIME_QUEUE.dec(len(taken))
        return [job for job in taken if not job.row.cancelled]


def run_batch(loop: asyncio.AbstractEventLoop, jobs: Sequence[Job]) -> None:
    """Generate in this thread; readers in `loop` get each text as it grows. An error reaches every reader."""
    queues = {job.row: job for job in jobs}
    loaded = jobs[0].loaded

    def emit(rows: Sequence[Row]) -> None:
        ready = [(queues[row], text, row.finish_reason) for row in rows if (text := row.take()) or row.finish_reason]
        if ready:
            loop.call_soon_threadsafe(deliver, ready)

    try:
        generate(loaded.model, [job.row for job in jobs], pad=loaded.pad, ends=loaded.ends, emit=emit)
    except Exception as error:
        logger.exception("model %s failed on a batch of %s", loaded.version, len(jobs))
        failure = GenerationFailed(f"model {loaded.version} failed: {error}")
        loop.call_soon_threadsafe(fail, jobs, failure)


def deliver(ready: Sequence[tuple[Job, str, str | None]]) -> None:
    """Hand texts to their readers; after the last one comes None."""
    for job, text, finish_reason in ready:
        if text:
            job.texts.put_nowait(text)
        if finish_reason:
            job.texts.put_nowait(None)


def fail(jobs: Sequence[Job], failure: GenerationFailed) -> None:
    """Tell every reader."""
    for job in jobs:
        job.texts.put_nowait(failure)
