"""One rollout under faults: the product's controllers, routers, traffic backends and Postgres, and what may go wrong.

The HTTP between them is real code without a socket. What is not ours is a stand-in: a runtime that only knows names,
and for Seldon the strict cluster of `examples.cluster`. Who was answered by which model is kept outside.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import httpx
import msgspec
from sqlalchemy import insert, text
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.testclient import TestClient

from examples.cluster.api import Cluster
from hone.ids import NOBODY, uuid7
from hone.settings import Settings
from hone.store.rollouts import create_rollout
from hone.store.tables import FeedbackStateRow, ModelAliasRow, ModelVersionRow, ResponseRow
from serving.controller import Controller
from serving.gateway.guard import Guard
from serving.gateway.replies import on_problem
from serving.gateway.traffic import TrafficRoutes
from serving.gateway.upstreams import Upstreams
from serving.http import Problem
from serving.router import Router
from serving.traffic.kube_api import KubeApi
from serving.traffic.local import LocalTraffic
from serving.traffic.routers import Routers
from serving.traffic.seldon_v1 import SeldonV1
from serving.traffic.seldon_v2 import SeldonV2
from serving.traffic.unkeyed import count_unkeyed

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
SPACE = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
KEY, DRAW_KEY, NAME = "key-of-the-benchmark", b"secret of the draws", "hone-chat"
HOSTS = ("router-a", "router-b")
PLAN_TTL_S = 60.0
LINES = ("local", "seldon_v1", "seldon_v2")
LIKES = {"better": (0.95, 0.2), "worse": (0.1, 0.8), "same": (0.6, 0.6)}
"""Share of thumbs up of canary and stable."""
POLICY: dict[str, Any] = {
    "ledger": "fixed",
    "min_canary_users": 10,
    "promote_weight": 0.25,
    "horizon_pairs": 60,
    "horizon_s": 900,
    "outcome_window_s": 5,
    "settle_s": 1,
    "block_s": 120,
    "stages": [{"weight": 0.25, "min_users": 5}, {"weight": 0.5, "min_users": 10}],
    "guardrails": {"max_unready_s": 120},
}
TABLES = (
    "rollout_outcome, rollout_assignment, rollout_transition, rollout_ledger, rollout, response, feedback_state, lease"
)


class Crash(BaseException):
    """The controller's process dies here."""


@dataclass
class Network(httpx.BaseTransport):
    """Carries requests to routers and runtime; `cut` are hosts that it does not reach."""

    routers: dict[str, TestClient]
    loaded: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    lose_answers: int = 0
    "Puts whose request arrives and whose answer does not."
    die_after_puts: int | None = None
    "The controller dies after so many plans were sent."

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.cut:
            raise httpx.ConnectTimeout("no way there")
        if host == "runtime":
            return self._runtime(request)
        found = self.routers[host].request(
            request.method, request.url.path, content=request.read(), headers=dict(request.headers)
        )
        if request.method == "PUT":
            self._after_put()
        return httpx.Response(found.status_code, content=found.content)

    def _after_put(self) -> None:
        if self.die_after_puts is not None:
            self.die_after_puts -= 1
            if self.die_after_puts <= 0:
                raise Crash
        if self.lose_answers > 0:
            self.lose_answers -= 1
            raise httpx.ReadTimeout("the answer is lost")

    def _runtime(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            self.loaded.add(msgspec.json.decode(request.read())["model_version"])
        elif request.method == "DELETE":
            self.loaded.discard(request.url.path.rsplit("/", 1)[-1])
        return httpx.Response(200, json={"data": [{"id": name} for name in sorted(self.loaded)]})


@dataclass
class Told:
    """What happened to one user, whatever the platform says of it."""

    track: str
    model_version: str


@dataclass
class World:
    """A platform with one rollout; `now` is the true time, which routers see."""

    line: str
    sessions: sessionmaker[Session]
    network: Network
    routers: list[Router]
    cluster: Cluster | None
    rng: random.Random
    now: datetime = START
    rollout_id: UUID = NOBODY
    truth: dict[UUID, Told] = field(default_factory=dict)
    held_back: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = field(default_factory=list)
    "Rows that ingest has not stored yet."
    broken_arms: int = 0
    "Users who were sent to a model that was not there."
    nested: dict[float, frozenset[int]] = field(default_factory=dict)
    "Of a fixed panel, who gets the canary at each weight."

    def backend(self) -> Any:
        """Return a traffic backend of this platform, with connections of its own."""
        addresses = [f"http://{host}" for host in HOSTS]
        if self.cluster is None:
            return LocalTraffic(addresses, "http://runtime", KEY, transport=self.network)
        gateways = Routers(addresses, KEY, transport=self.network)
        api = KubeApi("http://cluster", "hone", transport=self.cluster.transport())
        counts = count_unkeyed("http://cluster", self.cluster.transport())
        options: dict[str, Any] = {"count_unkeyed": counts, "sleep": lambda seconds: None}
        options["clock"] = lambda: (self.now - START).total_seconds()
        if self.line == "seldon_v1":
            return SeldonV1(gateways, api, NAME, image="hone-seldon-v1:bench", **options)
        return SeldonV2(gateways, api, NAME, **options)

    def controller(self) -> Controller:
        """Return a new controller process."""
        settings = Settings(mode="active", rollout={"interval_s": 1, "plan_ttl_s": PLAN_TTL_S})
        return Controller(self.sessions, self.backend(), settings)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def chat(self, number: int, likes: str, *, stored: bool = True) -> None:
        """Let new users come over ten seconds, each answered once and rating once; ingest may be slow to store them."""
        answers, thumbs = [], []
        for place in range(number):
            self.wait(10 / number)
            user = uuid5(SPACE, f"{self.rollout_id} user {len(self.truth)}")
            router = self.routers[place % len(self.routers)]
            decision = router.decide(user, self.now)
            if decision is None:
                continue
            self.answer_by(decision.model_version)
            self.truth[user] = Told(decision.track, decision.model_version)
            answer = uuid7()
            answers.append(response_row(answer, user, decision, self.now))
            up = self.rng.random() < LIKES[likes][decision.track != "canary"]
            thumbs.append(thumb_row(answer, user, 1.0 if up else -1.0, self.now + timedelta(seconds=1)))
        self.held_back.append((answers, thumbs))
        if stored:
            self.store()

    def answer_by(self, version: str) -> None:
        """Count a user who was sent to a version that does not answer, or that another one answers for."""
        if self.cluster is None:
            self.broken_arms += version not in self.network.loaded
            return
        arms = {arm.version: name for name, arm in self.cluster.operator.wanted_arms()}
        try:
            self.broken_arms += self.cluster.send_keyed(arms[version]) != version
            if self.cluster.split_of(NAME) is not None:
                self.cluster.send_unkeyed(NAME)
        except LookupError:
            self.broken_arms += 1

    def store(self) -> None:
        """Let ingest catch up."""
        with self.sessions.begin() as session:
            for answers, thumbs in self.held_back:
                if answers:
                    session.execute(insert(ResponseRow), answers)
                    session.execute(insert(FeedbackStateRow), thumbs)
        self.held_back = []

    def weights(self) -> list[float]:
        """Return the canary's weight in force at each router."""
        return [router.weight(self.now) for router in self.routers]


def response_row(answer: UUID, user: UUID, decision: Any, now: datetime) -> dict[str, Any]:
    """Return an answer as ingest stores it."""
    return {
        "response_id": answer,
        "conversation_id": uuid7(),
        "turn_id": uuid7(),
        "user_id": user,
        "messages": [],
        "completion": "Hello.",
        "model_version": decision.model_version,
        "track": decision.track,
        "rollout_id": decision.rollout_id,
        "stage": decision.stage,
        "propensity": decision.propensity,
        "duel": False,
        "fallback": False,
        "parameters": {},
        "completed": True,
        "latency_ms": 100.0,
        "eval_only": False,
        "created_at": now,
    }


def thumb_row(answer: UUID, user: UUID, value: float, at: datetime) -> dict[str, Any]:
    """Return a thumb as ingest stores it."""
    return {
        "subject_id": answer,
        "slot": "thumbs",
        "user_id": user,
        "value": value,
        "rejected": [],
        "reasons": [],
        "occurred_at": at,
        "event_id": uuid7(),
        "signed": True,
    }


def router_app(router: Router, clock: Callable[[], datetime]) -> Starlette:
    """Return the gateway's routes over a router, and nothing else."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        upstreams = Upstreams("http://127.0.0.1:9", 1.0)
        app.router.routes += TrafficRoutes(Guard(KEY, dict), router, upstreams, clock).routes()
        yield
        await upstreams.close()

    return Starlette(lifespan=lifespan, exception_handlers={Problem: on_problem})


class Stage:
    """Two routers behind their routes, made once; each schedule gets them empty."""

    def __init__(self, sessions: sessionmaker[Session], directory: Path, stack: ExitStack, schemas: Any = None) -> None:
        self.sessions, self.schemas = sessions, schemas
        self.world: World | None = None
        self.routers = [Router(directory / host / "broken_glass.json", DRAW_KEY) for host in HOSTS]
        apps = [router_app(router, lambda: self.world.now if self.world else START) for router in self.routers]
        self.clients = {
            host: stack.enter_context(TestClient(app, base_url=f"http://{host}"))
            for host, app in zip(HOSTS, apps, strict=True)
        }

    @contextmanager
    def new_world(self, line: str, seed: int, **policy: Any) -> Iterator[World]:
        """Give a fresh platform with a rollout that was just created."""
        for router in self.routers:
            router.plan, router.broken = None, frozenset()
        cluster = None if line == "local" else Cluster(schemas=self.schemas, seed=seed)
        world = World(line, self.sessions, Network(self.clients), self.routers, cluster, random.Random(seed))
        self.world = world
        with self.sessions.begin() as session:
            session.execute(text(f"TRUNCATE {TABLES}"))
            add_models(session)
            world.rollout_id = create_rollout(
                session,
                canary_version="new",
                stable_version="old",
                policy=POLICY | policy,
                started_by="benchmark",
                now=world.now,
            )
        with world.backend() as backend:  # what is stable serves already
            backend.prepare("old", "/models/old")
        yield world


def add_models(session: Session) -> None:
    """Register `old` and `new`, `old` being stable."""
    for version in ("old", "new"):
        if session.get(ModelVersionRow, version) is None:
            session.add(
                ModelVersionRow(model_version=version, digest=version, directory=f"/models/{version}", status="passed")
            )
    session.flush()
    alias = session.get(ModelAliasRow, "stable")
    if alias is None:
        session.add(ModelAliasRow(alias="stable", model_version="old", generation=1))
    else:
        alias.model_version = "old"
    session.flush()
