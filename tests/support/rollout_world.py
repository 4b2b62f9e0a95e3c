"""A small platform for the controller: two real routers over HTTP, a real runtime, Postgres, a clock and a crowd."""

import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from hone.settings import Settings
from hone.store.models import get_alias
from hone.store.rollouts import get_rollout
from hone.store.tables import RolloutRow
from serving.controller import Controller
from serving.router import Router
from serving.traffic.local import LocalTraffic
from tests.support.platform import KEY, Clock
from tests.support.rollouts import POLICY, SPACE, START, add_answer, add_thumb, start_rollout

PLAN_TTL_S = 60.0
Sessions = sessionmaker[Session]


class World:
    """Two routers, a runtime, a database, a clock, and a crowd that votes by its arm."""

    def __init__(self, sessions: Sessions, addresses: list[str], routers: list[Router], runtime: str, clock: Clock):
        self.sessions, self.addresses, self.routers, self.runtime, self.clock = (
            sessions,
            addresses,
            routers,
            runtime,
            clock,
        )
        self.users = 0
        self.rng = random.Random(5)

    @property
    def second(self) -> float:
        return (self.clock.now - START).total_seconds()

    def wait(self, seconds: float) -> None:
        self.clock.now += timedelta(seconds=seconds)

    def backend(self, kind: type[LocalTraffic] = LocalTraffic) -> LocalTraffic:
        return kind(self.addresses, self.runtime, KEY)

    def controller(self, backend: LocalTraffic, **fields: Any) -> Controller:
        values: dict[str, Any] = {"mode": "active", "rollout": {"interval_s": 1, "plan_ttl_s": PLAN_TTL_S}} | fields
        return Controller(self.sessions, backend, Settings(**values))

    def chat(self, number: int, *, likes: Callable[[str], float], completions: Mapping[str, str] | None = None) -> None:
        """New users, each drawn by a router and rating once, over ten seconds."""
        with self.sessions.begin() as session:
            for offset in range(number):
                self.users += 1
                self.ask(session, f"user {self.users}", self.second + 10 * offset / number, likes, completions)
        self.wait(10)

    def ask(
        self,
        session: Session,
        user: str,
        second: float,
        likes: Callable[[str], float],
        completions: Mapping[str, str] | None = None,
    ) -> None:
        decision = self.routers[self.users % 2].decide(uuid5(SPACE, user), self.clock.now)
        assert decision is not None
        answer = add_answer(
            session,
            decision.rollout_id,
            user,
            second,
            track=decision.track,
            stage=decision.stage,
            propensity=decision.propensity,
            completion=(completions or {}).get(decision.track, "Hello."),
        )
        value = 1.0 if self.rng.random() < likes(decision.track) else -1.0
        add_thumb(session, answer, user, value, second + 1)

    def row(self) -> RolloutRow:
        with self.sessions() as session:
            (rollout_id,) = session.scalars(text("SELECT rollout_id FROM rollout")).all()
            return get_rollout(session, rollout_id)

    def stable(self) -> str:
        with self.sessions() as session:
            alias = get_alias(session, "stable")
            assert alias is not None
            return alias.model_version

    def weights(self) -> list[float]:
        return [router.weight(self.clock.now) for router in self.routers]

    def run(
        self, controller: Controller, likes: Callable[[str], float], *, looks: int = 40, users: int = 40
    ) -> RolloutRow:
        """Chat and look until the rollout has ended."""
        for _ in range(40):
            controller.look(self.clock.now)
            if (row := self.row()).ended_at is not None:
                return row
            self.chat(40, likes=likes)
        raise AssertionError(f"not ended: {self.row().phase}, {self.row().evidence}")


def begin(world: World, **policy: Any) -> UUID:
    with world.sessions.begin() as session:
        return start_rollout(session, POLICY | policy, now=world.clock.now)


def better(track: str) -> float:
    return 0.95 if track == "canary" else 0.4


def worse(track: str) -> float:
    return 0.1 if track == "canary" else 0.8


def same(track: str) -> float:
    return 0.6
