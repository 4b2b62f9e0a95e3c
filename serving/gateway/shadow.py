"""Copies of stable's requests for the canary. Nobody sees the answers; a slow canary only loses copies."""

import asyncio
import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import structs

from hone import metrics
from hone.ids import uuid7
from hone.records import Track
from serving.gateway.exchange import Exchange
from serving.gateway.recorder import Recorder
from serving.gateway.upstreams import UpstreamFailed, Upstreams
from serving.router import Decision, Router

QUEUE_COPIES = 64
WORKERS = 2


class Shadow:
    """A bounded queue and its workers; when it is full, copies are dropped and counted."""

    def __init__(
        self,
        upstreams: Upstreams,
        recorder: Recorder,
        router: Router,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.upstreams, self.recorder, self.router, self.clock = upstreams, recorder, router, clock
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue(QUEUE_COPIES)

    def copy(self, served: Exchange) -> None:
        """Queue a copy of a request that stable answered; never waits."""
        decision = structs.replace(served.decision, track=Track.SHADOW, model_version=served.decision.shadow or "")
        ask = structs.replace(served.ask, stream=False)
        try:
            self._queue.put_nowait(Exchange(ask, decision, None, uuid7(), time.perf_counter()))
        except asyncio.QueueFull:
            metrics.SHADOW_DROPPED.inc()

    async def run(self) -> None:
        """Answer copies until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            exchange = await self._queue.get()
            if exchange.decision.rollout_id in self.router.broken:
                continue
            exchange.arrived = time.perf_counter()
            await self._answer(exchange)
            exchange.ended = time.perf_counter()
            self.recorder.record(functools.partial(exchange.response, self.clock()))

    async def _answer(self, exchange: Exchange) -> None:
        decision: Decision = exchange.decision
        target = self.upstreams.target(decision.model_version)
        body = exchange.ask.upstream_body(target.model, stream=False)
        try:
            opened = await self.upstreams.open(
                target, body, answer_id=str(exchange.response_id), model=exchange.ask.model, stream=False
            )
        except UpstreamFailed as error:
            exchange.failed = True
            return self.upstreams.note(decision.model_version, error)
        exchange.reading.feed(opened.first)
        exchange.whole = True
