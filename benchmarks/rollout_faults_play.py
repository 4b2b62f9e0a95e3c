"""One schedule as it runs: users, people, and controllers that look under random faults."""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.rollout_faults_checks import breaches_now
from benchmarks.rollout_faults_world import PLAN_TTL_S, Crash, World
from examples.cluster.faults import Fault
from hone.errors import Conflict, HoneError
from hone.records import TrafficPlan
from hone.rollout import Action
from hone.store.engine import make_engine, make_sessions
from hone.store.rollouts import get_rollout, request_action
from serving.controller import CLOCK_SLACK_S, Controller
from serving.looking import look_once

MAX_STEPS, CALM_STEPS = 24, 40
JUMP_S = 10.0
WEIGHTS = {
    "none": 8,
    "dies before the verdict is committed": 1,
    "dies before sending": 1,
    "dies between routers": 1,
    "dies after sending": 1,
    "sleeps before sending": 1,
    "another controller": 2,
    "stale read": 1,
    "lost answer": 1,
    "router cut off": 1,
    "clock jumps": 2,
    "database away": 1,
    "metrics lost": 1,
    "cluster conflict": 1,
    "cluster error": 1,
    "cluster answer lost": 1,
    "cluster stale read": 1,
    "cluster away": 1,
    "split without effect": 1,
}
NETWORK = ("dies between routers", "lost answer", "router cut off")
CLUSTER = {
    "cluster conflict": Fault.CONFLICT,
    "cluster error": Fault.ERROR,
    "cluster answer lost": Fault.LOST_ANSWER,
    "cluster stale read": Fault.STALE_READ,
}


@dataclass
class Play:
    """One schedule as it runs."""

    world: World
    rng: random.Random
    likes: str
    controllers: list[Controller] = field(default_factory=list)
    sleeping: list[tuple[Any, TrafficPlan]] = field(default_factory=list)
    "Plans of controllers that stopped just before sending them, and will."
    faults: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)

    def look(self, number: int, fault: str) -> None:
        """Let one controller look once under a fault; what it raises on purpose is what its program survives."""
        self.faults[fault] += 1
        controller, world = self.controllers[number], self.world
        jump = self.rng.uniform(-JUMP_S, JUMP_S) if fault == "clock jumps" else 0.0
        try:
            with self.inject(controller, fault):
                if fault == "database away":
                    look_once(controller, world.now)
                else:
                    controller.look(world.now + timedelta(seconds=jump))
        except Crash:
            self.controllers[number] = world.controller()
        except HoneError:
            controller.lease = None if "holder" in str(sys.exc_info()[1]) else controller.lease
        finally:
            world.network.die_after_puts, world.network.lose_answers = None, 0

    @contextmanager
    def inject(self, controller: Controller, fault: str) -> Iterator[None]:
        """Make the fault happen during the block."""
        world, backend = self.world, controller.backend
        self.trouble_cluster(fault)
        with ExitStack() as undo:
            if fault == "database away":
                patch(undo, controller, "sessions", nowhere())
            if fault == "metrics lost":
                patch(undo, backend, "count_unkeyed", lambda: None)
            if fault in NETWORK:
                self.trouble_network(fault)
            if fault == "dies before the verdict is committed":
                undo.enter_context(dying_commit(world.sessions.kw["bind"]))
            elif fault == "dies before sending":
                patch(undo, backend, "apply", raising)
            elif fault == "dies after sending":
                patch(undo, backend, "apply", partial(then_die, backend.apply))
            elif fault == "sleeps before sending":
                patch(undo, backend, "apply", partial(self.fall_asleep, backend))
            elif fault == "stale read":
                seen = backend.observe()
                self.someone_else_acts()
                patch(undo, backend, "observe", lambda: seen)
            yield

    def trouble_network(self, fault: str) -> None:
        """Make the fault happen between controller and routers."""
        network = self.world.network
        if fault == "dies between routers":
            network.die_after_puts = 1
        elif fault == "lost answer":
            network.lose_answers = 1
        else:
            network.cut = {self.rng.choice(list(network.routers))}

    def trouble_cluster(self, fault: str) -> None:
        """Make the fault happen in the cluster, where there is one."""
        if self.world.cluster is None:
            return
        faults = self.world.cluster.faults
        if fault in CLUSTER:
            faults.add(CLUSTER[fault])
        faults.away = faults.away or fault == "cluster away"
        faults.ineffective = faults.ineffective or fault == "split without effect"

    def fall_asleep(self, backend: Any, plan: TrafficPlan) -> None:
        self.sleeping.append((backend, plan))
        raise Crash

    def someone_else_acts(self) -> None:
        """The other controller looks in between, if the lease lets it."""
        try:
            self.controllers[1].look(self.world.now + timedelta(seconds=JUMP_S))
        except HoneError:
            self.controllers[1].lease = None

    def wake(self) -> None:
        """A controller that slept sends its old plan now."""
        backend, plan = self.sleeping.pop(0)
        try:
            backend.apply(plan)
        except (HoneError, Crash):
            self.faults["old plan was refused"] += 1

    def mend(self) -> None:
        """End what lasts longer than a look."""
        self.world.network.cut = set()
        if self.world.cluster is not None:
            faults = self.world.cluster.faults
            faults.away = faults.ineffective = False
            faults.waiting.clear()

    def step(self) -> None:
        """Users come, ingest may stall, people may act, a controller looks under a random fault."""
        world, rng = self.world, self.rng
        world.chat(rng.choice((8, 16, 24)), self.likes, stored=rng.random() > 0.2)
        if rng.random() < 0.5:
            self.mend()
        if self.sleeping and rng.random() < 0.5:
            self.wake()
        if rng.random() < 0.03:
            self.person()
        fault = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        number = 1 if fault == "another controller" else 0
        self.look(number, fault)
        self.breaches += breaches_now(world)

    def person(self) -> None:
        """A person pauses, resumes, rolls back, or breaks the glass at one router."""
        world, act = self.world, self.rng.choice(("pause", "resume", "resume", "rollback", "glass"))
        self.faults[f"person: {act}"] += 1
        if act == "glass":
            router = self.rng.choice(world.routers)
            router.break_glass(world.rollout_id)
            if router.weight(world.now) > 0:
                self.breaches.append("I10: weight above 0 right after the glass was broken")
            return
        try:
            with world.sessions.begin() as session:
                request_action(session, world.rollout_id, Action(act), actor="ann", reason="asked", now=world.now)
        except Conflict:
            self.faults["person: refused"] += 1


@cache
def nowhere() -> sessionmaker[Session]:
    """Return sessions of a database that does not answer."""
    return make_sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:9/none"))


def raising(plan: TrafficPlan) -> None:
    raise Crash


def then_die(apply: Any, plan: TrafficPlan) -> None:
    apply(plan)
    raise Crash


def patch(undo: ExitStack, target: Any, name: str, value: Any) -> None:
    """Set an attribute of the instance until the stack is left; then it is as it was."""
    own = vars(target)
    undo.callback(partial(setattr, target, name, own[name]) if name in own else partial(delattr, target, name))
    setattr(target, name, value)


@contextmanager
def dying_commit(engine: Any) -> Iterator[None]:
    """Kill the process in the transaction that holds a verdict, before it commits."""
    armed = {"on": False}

    def notice(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        armed["on"] |= statement.startswith(("INSERT INTO rollout_transition", "UPDATE rollout SET evidence"))

    def die(connection: Any) -> None:
        if armed["on"]:
            raise Crash

    event.listen(engine, "before_cursor_execute", notice)
    event.listen(engine, "commit", die)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", notice)
        event.remove(engine, "commit", die)


def calm(play: Play) -> None:
    """Let a fresh controller look without faults until the rollout has ended and everything follows."""
    world = play.world
    while play.sleeping:
        play.wake()
    world.wait(PLAN_TTL_S + CLOCK_SLACK_S + 2 * JUMP_S)
    play.controllers = [world.controller()]
    resume(world)
    for _ in range(CALM_STEPS):
        if ended(world):
            break
        world.chat(24, play.likes)
        play.look(0, "none")
        play.breaches += breaches_now(world)
    for _ in range(3):
        play.look(0, "none")


def resume(world: World) -> None:
    """A person lets a paused rollout go on."""
    with suppress(Conflict), world.sessions.begin() as session:
        request_action(session, world.rollout_id, "resume", actor="ann", reason="go on", now=world.now)


def ended(world: World) -> bool:
    """Say whether the rollout is final."""
    with world.sessions() as session:
        return get_rollout(session, world.rollout_id).ended_at is not None


def phase_of(world: World) -> str:
    """Return the rollout's phase."""
    with world.sessions() as session:
        return str(get_rollout(session, world.rollout_id).phase)
