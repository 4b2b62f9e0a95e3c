"""The real router's routes and the real runtime, served without database and broker, under a clock that tests set."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from serving.gateway.guard import Guard
from serving.gateway.replies import on_problem
from serving.gateway.traffic import TrafficRoutes
from serving.gateway.upstreams import Upstreams
from serving.http import Problem
from serving.router import Router

KEY = "key-of-the-tests"


class Clock:
    """The time that routers see."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def router_app(router: Router, clock: Callable[[], datetime]) -> Any:
    """The gateway's routes over `router`, and nothing else."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        upstreams = Upstreams("http://127.0.0.1:9", 1.0)
        app.router.routes += TrafficRoutes(Guard(KEY, dict), router, upstreams, clock).routes()
        yield
        await upstreams.close()

    return Starlette(lifespan=lifespan, exception_handlers={Problem: on_problem})


def make_router(directory: Path) -> Router:
    """A router that has no plan yet."""
    return Router(directory / "broken_glass.json", b"key of the tests")
