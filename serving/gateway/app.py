"""The gateway as an ASGI application: two hot routes without a framework, the rest on Starlette."""

import asyncio
import functools
import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hone.errors import ConfigError
from hone.settings import Settings
from hone.store.engine import make_engine, make_sessions
from hone.store.keys import Caller, live_keys, new_key
from hone.tokens import KeyRing, parse_keys
from serving.gateway.browser import browser_routes
from serving.gateway.chat import Chat
from serving.gateway.compat import CompatRoutes
from serving.gateway.feedback import FeedbackIntake
from serving.gateway.guard import Guard, Pace
from serving.gateway.hook import Hook
from serving.gateway.publisher import Publisher
from serving.gateway.recorder import Recorder, Spill
from serving.gateway.replies import as_json, on_failure, on_http_error, on_problem
from serving.gateway.seldon import open_upstreams
from serving.gateway.shadow import Shadow
from serving.gateway.stored import StoredRoutes
from serving.gateway.traffic import TrafficRoutes
from serving.http import Problem, Receive, Scope, Send, answer_problem, answering_faults
from serving.router import Router, open_router
from serving.short_way import Direct

logger = logging.getLogger(__name__)

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
CLOSE_TIMEOUT_S = 5.0
HANDLERS: dict[Any, Any] = {Problem: on_problem, HTTPException: on_http_error, Exception: on_failure}


class Gateway:
    """Everything that one gateway process holds. Made by its lifespan, inside the event loop."""

    def __init__(self, settings: Settings, ring: KeyRing, identity_key: bytes, guard: Guard, router: Router) -> None:
        limits = settings.gateway
        bootstrap = settings.kafka_bootstrap_servers or ""
        self.router = router
        self.publisher = Publisher(bootstrap, timeout_s=limits.produce_timeout_s)
        self.upstreams = open_upstreams(settings, router)
        self.recorder = Recorder(self.publisher, Spill(settings.var_dir / "spill"))
        self.shadow = Shadow(self.upstreams, self.recorder, router)
        self.hook = Hook(limits) if limits.response_hook_url else None
        self.chat = Chat(
            limits, ring, identity_key, guard, router, self.upstreams, self.recorder, self.shadow, self.hook
        )
        self.feedback = FeedbackIntake(limits, ring, identity_key, guard, self.publisher)
        self.compat = CompatRoutes(self.feedback, guard)
        self.traffic = TrafficRoutes(guard, router, self.upstreams)

    async def readyz(self, _: Request) -> Response:
        """GET /readyz: 200 once a stable model is known and runtime and broker answer."""
        runtime, broker = await asyncio.gather(self.upstreams.is_healthy(), self.publisher.is_healthy())
        state = {"stable_model": self.router.plan is not None, "runtime": runtime, "broker": broker}
        return as_json(state, 200 if all(state.values()) else 503)

    async def close(self) -> None:
        """Bring what was answered to Kafka, or to the file."""
        self.recorder.send_taken()
        await self.publisher.flush(CLOSE_TIMEOUT_S)
        await self.recorder.drain()
        await self.publisher.close()
        await self.upstreams.close()
        if self.hook is not None:
            await self.hook.close()


class GatewayApp:
    """The application: hot routes by path, the others on Starlette."""

    def __init__(self) -> None:
        self.hot: dict[str, Asgi] = {}
        self.direct: dict[bytes, Direct] = {}
        "Hot routes that `serving.server` may answer without ASGI; filled when the gateway starts."
        self.cold: Asgi = Starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to its route."""
        hot = self.hot.get(scope["path"]) if scope["type"] == "http" else None
        if hot is None:
            return await self.cold(scope, receive, send)
        if scope["method"] != "POST":
            detail = f"{scope['method']} {scope['path']}: send POST"
            return await answer_problem(send, Problem(405, "method not allowed", detail), [(b"allow", b"POST")])
        await answering_faults(hot, scope, receive, send)


class Wrapped:
    """An application behind a middleware, with the hot routes still in sight: what has no Origin needs no CORS."""

    def __init__(self, app: Asgi, direct: dict[bytes, Direct]) -> None:
        self.app, self.direct = app, direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        await self.app(scope, receive, send)


def open_gateway(settings: Settings, host: str) -> Asgi:
    """Return the application.

    Raises:
        ConfigError: a key or address is missing or malformed.
    """
    ring, identity_key = parse_keys(settings.token_keys.get_secret_value()), read_identity_key(settings)
    if not settings.kafka_bootstrap_servers:
        raise ConfigError("kafka_bootstrap_servers is not set: set HONE_KAFKA_BOOTSTRAP_SERVERS=host:port")
    sessions = make_sessions(make_engine(settings.database_url, program="hone-gateway"))
    guard = make_guard(settings, sessions, host)
    router = open_router(settings.var_dir, identity_key, settings.stable_model, datetime.now(UTC))
    stored = StoredRoutes(guard, sessions, identity_key, ring)
    make = functools.partial(Gateway, settings, ring, identity_key, guard, router)
    return with_cors(assemble(make, stored.routes()), settings.gateway.cors_origins)


def assemble(make: Callable[[], Gateway], routes: list[BaseRoute]) -> GatewayApp:
    """Return the application over a gateway that is made when the server starts and closed when it stops."""
    app = GatewayApp()

    @asynccontextmanager
    async def lifespan(cold: Starlette) -> AsyncIterator[None]:
        gateway = make()
        cold.router.routes += gateway.traffic.routes() + gateway.compat.routes()
        cold.router.routes += [Route("/readyz", gateway.readyz)]
        app.hot.update({"/v1/chat/completions": gateway.chat, "/v1/feedback": gateway.feedback})
        app.direct.update({b"/v1/chat/completions": gateway.chat, b"/v1/feedback": gateway.feedback})
        async with AsyncExitStack() as stack:
            stack.push_async_callback(gateway.close)
            for work in (gateway.recorder.replay(), gateway.shadow.run()):
                stack.push_async_callback(cancel, asyncio.create_task(work))
            yield

    fixed = [Route("/healthz", healthz), Route("/metrics", metrics_page), *browser_routes()]
    app.cold = Starlette(routes=[*routes, *fixed], lifespan=lifespan, exception_handlers=HANDLERS)
    return app


def with_cors(app: GatewayApp, origins: tuple[str, ...]) -> Asgi:
    """Let browsers of exactly these origins call; none by default."""
    if not origins:
        return app
    headers = ["authorization", "content-type", "idempotency-key", "x-user-id", "x-conversation-id"]
    checked = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=headers,
        expose_headers=["retry-after"],
        max_age=86_400,
    )
    return Wrapped(checked, app.direct)


def make_guard(settings: Settings, sessions: sessionmaker[Session], host: str) -> Guard:
    """Return who may call. Without an admin key, on loopback only, chat is open and one fresh admin key is printed."""
    admin_key, alone = settings.admin_key.get_secret_value(), False
    if not admin_key and is_loopback(host):
        admin_key, alone = new_key(), True
        print(
            f"no HONE_ADMIN_KEY is set: chat is open on {host}; key of this run for the rest: {admin_key}", flush=True
        )

    def read_keys() -> Mapping[str, Caller]:
        with sessions() as session:
            return live_keys(session)

    pace = Pace(settings.gateway.key_requests_per_minute)
    return Guard(admin_key, read_keys, open_chat=alone, pace=pace)


def read_identity_key(settings: Settings) -> bytes:
    """Return the key of the pseudonyms.

    Raises:
        ConfigError: it is not set, no hex, or short. It is never quoted.
    """
    try:
        key = bytes.fromhex(settings.identity_key.get_secret_value())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise ConfigError("identity_key must be 16 bytes or more in hex: set HONE_IDENTITY_KEY=$(openssl rand -hex 32)")
    return key


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def cancel(task: "asyncio.Task[None]") -> None:
    """End a background task; an error that had ended it earlier surfaces here."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def healthz(_: Request) -> Response:
    """GET /healthz: the process runs."""
    return as_json({"status": "ok"})


async def metrics_page(_: Request) -> Response:
    """GET /metrics."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
