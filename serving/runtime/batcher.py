"""Continuous batches: a request joins its model's batch after any token of the others, and leaves with its last one."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from hone import metrics
from hone.errors import HoneError
from serving.runtime.generation import Row, Running
from serving.runtime.model import LoadedModel

logger = logging.getLogger(__name__)

MAX_ROWS = 16
TURN_STEPS = 8
"""Tokens that one model draws before another one with work gets the thread."""
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


class Batch:
    """The running batch of one model, and the jobs that its rows belong to. Lives in the thread that computes."""

    def __init__(self, loaded: LoadedModel, loop: asyncio.AbstractEventLoop) -> None:
        self.loaded, self.loop = loaded, loop
        self._jobs: dict[Row, Job] = {}
        self._running = Running(loaded.model, pad=loaded.pad, ends=loaded.ends, emit=self._emit)

    def room(self) -> int:
        """Return how many rows may join now."""
        return MAX_ROWS - len(self._running.rows) if self._running.takes_more() else 0

    def is_empty(self) -> bool:
        """Say whether no row is in it."""
        return not self._running.rows

    def advance(self, joining: Sequence[Job], interrupted: Callable[[], bool], shares: bool) -> None:
        """Let jobs join, then draw tokens until all rows ended, somebody knocks, or another model's turn has come.

        An error of the model ends every row of this batch, and reaches their readers.
        """
        try:
            self._jobs |= {job.row: job for job in joining}
            self._running.admit([job.row for job in joining])
            steps = 0
            while self._running.rows and not interrupted() and not (shares and steps >= TURN_STEPS):
                metrics.RUNTIME_BATCH_ROWS.observe(len(self._running.rows))
                self._running.step()
                steps += 1
            self._jobs = {row: self._jobs[row] for row in self._running.rows}
        except Exception as error:
            logger.exception("model %s failed on a batch of %s", self.loaded.version, len(self._jobs))
            failure = GenerationFailed(f"model {self.loaded.version} failed: {error}")
            self.loop.call_soon_threadsafe(fail, list(self._jobs.values()), failure)
            self._running = Running(self.loaded.model, pad=self.loaded.pad, ends=self.loaded.ends, emit=self._emit)
            self._jobs = {}

    def _emit(self, rows: Sequence[Row]) -> None:
        """Hand what grew to the readers."""
        ready = [
            (self._jobs[row], text, row.finish_reason) for row in rows if (text := row.take()) or row.finish_reason
        ]
        if ready:
            self.loop.call_soon_threadsafe(deliver, ready)


class Batcher:
    """Owns the one thread in which models compute. Use it from one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[LoadedModel, deque[Job]] = {}
        self._batches: dict[LoadedModel, Batch] = {}
        self._arrival = asyncio.Event()
        self._knocked = False
        "Read by the thread after each token: it comes back to the event loop."
        self._thread = ThreadPoolExecutor(1, "generate")

    def submit(self, loaded: LoadedModel, row: Row) -> Job:
        """Queue a row; it joins its model's batch after the token that is being drawn."""
        job = Job(loaded, row)
        self._waiting.setdefault(loaded, deque()).append(job)
        metrics.RUNTIME_QUEUE.inc()
        self._knock()
        return job

    async def compute(self, function: Callable[[], Result]) -> Result:
        """Run other work of a model in the same thread, between two tokens."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, function)
        self._knocked = True
        return await future

    async def run(self) -> None:
        """Give each model with work its turn, one after the other; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not (self._waiting or self._batches):
                self._arrival.clear()
                await self._arrival.wait()
            for loaded in list({**self._batches, **self._waiting}):
                batch = self._batches.setdefault(loaded, Batch(loaded, loop))
                joining, self._knocked = self._take(loaded, batch.room()), False
                shares = len(self._batches) + len(self._waiting.keys() - self._batches.keys()) > 1
                await loop.run_in_executor(self._thread, batch.advance, joining, partial(self._calls, loaded), shares)
                if batch.is_empty() and loaded not in self._waiting:
                    del self._batches[loaded]

    def _knock(self) -> None:
        self._knocked = True
        self._arrival.set()

    def _calls(self, loaded: LoadedModel) -> bool:
        """Say (to the thread) whether something new came, or a row may join that waited for room."""
        return self._knocked or (loaded in self._waiting and self._batches[loaded].room() > 0)

    def _take(self, loaded: LoadedModel, number: int) -> list[Job]:
        """Return the next jobs of a model, without those whose client has left."""
        jobs = self._waiting.get(loaded, deque())
        taken = [jobs.popleft() for _ in range(min(number, len(jobs)))]
        if loaded in self._waiting and not jobs:
            del self._waiting[loaded]
        metrics.RUNTIME_QUEUE.dec(len(taken))
        return [job for job in taken if not job.row.cancelled]


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
