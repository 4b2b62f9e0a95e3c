"""Rollbacks without faults: how long a canary keeps traffic after the verdict, and after the glass was broken."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from benchmarks.rollout_faults_play import patch, phase_of
from benchmarks.rollout_faults_world import NAME, Stage, World
from hone.rollout import Phase


def clean_rollback(stage: Stage, line: str, seed: int) -> dict[str, float]:
    """Return how long after the verdict a harmful canary keeps traffic, and after a broken glass, without faults."""
    with stage.new_world(line, seed) as world:
        controller, watch = world.controller(), Stopwatch(world)
        patch(watch.undo, controller, "judge", watch.after(controller.judge, watch.start))
        patch(watch.undo, controller.backend, "apply", watch.after(controller.backend.apply, watch.stop))
        looks = 0
        with watch.undo:
            while watch.seconds is None or canary_share(world) > 0:
                world.chat(24, "worse")
                controller.look(world.now)
                looks += watch.began is not None
        return {"seconds": watch.seconds, "reconciles": float(looks), "glass_seconds": glass_seconds(world)}


@dataclass
class Stopwatch:
    """Runs from the commit of the verdict to the moment when no router sends the canary anything."""

    world: World
    began: float | None = None
    seconds: float | None = None
    undo: ExitStack = field(default_factory=ExitStack)

    def after(self, call: Any, then: Any) -> Any:
        """Return the call, with `then` right after it."""

        def both(*given: Any, **named: Any) -> Any:
            found = call(*given, **named)
            then()
            return found

        return both

    def start(self) -> None:
        if self.began is None and phase_of(self.world) in (Phase.ROLLING_BACK, Phase.ROLLED_BACK):
            self.began = time.perf_counter()

    def stop(self) -> None:
        if self.began is not None and self.seconds is None and not any(self.world.weights()):
            self.seconds = time.perf_counter() - self.began


def glass_seconds(world: World) -> float:
    """Return how long the order takes at every router, over HTTP, without database or controller."""
    began = time.perf_counter()
    body = {"rollout_id": str(UUID(int=5)), "reason": "benchmark"}
    for client in world.network.routers.values():
        headers = {"Authorization": "Bearer key-of-the-benchmark"}
        client.post("/v1/router/break-glass", json=body, headers=headers).raise_for_status()
    return time.perf_counter() - began


def canary_share(world: World) -> float:
    """Return what the data plane gives the canary of the traffic that no gateway keys."""
    split = None if world.cluster is None else world.cluster.split_of(NAME)
    if split is None or world.cluster is None:
        return 0.0
    return sum(share for arm, share in split.shares if world.cluster.version_of(arm) == "new")
