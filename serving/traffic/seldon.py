"""What both lines of Seldon Core share as traffic backends.

The gateways route keyed traffic and name the arm themselves; a custom resource splits what comes past them. Plans go to
the gateways first, so that a rollback needs no cluster. The resource is written under the plan's fence, read back, and
held against what the arms count: a split that was accepted and has no effect is written again once, then made anew
where that interrupts nobody, then given up for stable alone.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

import msgspec

from hone.errors import Retryable
from hone.records import TrafficPlan
from serving.traffic.backend import Capabilities, ObservedTraffic, ResourceView
from serving.traffic.effect import Effect, Weights
from serving.traffic.kube_api import KubeApi, Stale
from serving.traffic.routers import Routers
from serving.traffic.unkeyed import CountUnkeyed

logger = logging.getLogger(__name__)

REAPPLY, RECREATE, GIVE_UP = 1, 2, 3
READY_LOOKS = 10
READY_PAUSE_S = 0.2


class SeldonTraffic(ABC):
    """Gateways, and one custom resource called `name`. Use as a context manager: it holds connections."""

    def __init__(
        self,
        gateways: Routers,
        api: KubeApi,
        name: str,
        *,
        count_unkeyed: CountUnkeyed = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Both clients are closed with the backend."""
        self.gateways, self.api, self.name = gateways, api, name
        self.count_unkeyed, self.clock, self.sleep = count_unkeyed, clock, sleep
        self._effect = Effect({})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gateways.close()
        self.api.close()

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what the platform can do."""

    @abstractmethod
    def deploy(self, model_version: str, directory: str) -> None:
        """Make the cluster serve the version, without traffic."""

    @abstractmethod
    def is_ready(self, model_version: str) -> bool:
        """Say whether the version answers."""

    @abstractmethod
    def ready_versions(self) -> frozenset[str]:
        """Return the versions that answer."""

    @abstractmethod
    def write(self, plan: TrafficPlan, attempt: int) -> None:
        """Make the resource carry the plan; `attempt` above 0 makes the operator look at it again."""

    @abstractmethod
    def recreate(self, plan: TrafficPlan) -> bool:
        """Make the resource anew, where that interrupts nobody; return whether it was."""

    @abstractmethod
    def look(self) -> ResourceView | None:
        """Read the resource; None where there is none."""

    @abstractmethod
    def weights_of(self, plan: TrafficPlan) -> Weights:
        """Return the shares by version that the resource has under the plan, in steps of the platform."""

    @abstractmethod
    def withdraw(self, model_version: str) -> None:
        """Remove the version from the cluster."""

    def prepare(self, model_version: str, directory: str) -> None:
        """Deploy the version and wait a moment for it; until it is ready, each call raises Retryable."""
        self.deploy(model_version, directory)
        for _ in range(READY_LOOKS):
            if self.is_ready(model_version):
                return
            self.sleep(READY_PAUSE_S)
        raise Retryable(f"{model_version} is deployed and not ready yet")

    def apply(self, plan: TrafficPlan) -> None:
        """Send the plan to every gateway, then to the cluster."""
        obstacles = self.gateways.send(plan)
        try:
            self.split_past(plan)
        except (Retryable, Stale) as error:
            obstacles.append(str(error))
        if obstacles:
            raise Retryable(f"plan {plan.fence} is not everywhere: {'; '.join(obstacles)}")

    def split_past(self, plan: TrafficPlan) -> None:
        """Bring the resource to the plan and see that it takes effect; else go one step of the cure."""
        wanted = self.weights_of(plan)
        if self._effect.wanted != wanted:
            self._effect = Effect(wanted)
        if self._effect.cures >= GIVE_UP:
            return self.write(without_canary(plan), self._effect.cures)
        self.write(plan, self._effect.cures)
        seen = self.look()
        if seen is None or not self._is_contradicted(seen):
            return
        before = self._effect.cures
        if self._effect.cure(self.clock()) > before:
            self._cure(plan)

    def _is_contradicted(self, seen: ResourceView) -> bool:
        return self._effect.is_contradicted(seen.weights, self.count_unkeyed(), settled=seen.ready)

    def _cure(self, plan: TrafficPlan) -> None:
        """Take the step that has just been decided."""
        effect = self._effect
        if effect.cures == RECREATE and not self.recreate(plan):
            effect.cures = GIVE_UP
        step = {REAPPLY: "written again", RECREATE: "made anew"}.get(effect.cures, "given up: all of it goes to stable")
        logger.warning("%s was accepted and splits otherwise than %s: %s", self.name, dict(effect.wanted), step)
        if effect.cures != RECREATE:
            self.write(without_canary(plan) if effect.cures >= GIVE_UP else plan, effect.cures)

    def observe(self) -> ObservedTraffic:
        """Ask every gateway, and read the resource; `models` is empty where the cluster does not answer."""
        views, broken = self.gateways.observe()
        try:
            return ObservedTraffic(views, self.ready_versions(), broken, self._view())
        except (Retryable, Stale) as error:
            logger.warning("the cluster cannot be read: %s", error)
            return ObservedTraffic(views, frozenset(), broken, ResourceView(address=self.name, reachable=False))

    def _view(self) -> ResourceView:
        seen, unkeyed = self.look(), self.count_unkeyed()
        if seen is None:
            return ResourceView(address=self.name, reachable=True, unkeyed=unkeyed)
        return replace(seen, unkeyed=unkeyed, effective=self._effect.cures < GIVE_UP)

    def teardown(self, model_version: str) -> None:
        """Remove the version from the cluster.

        Raises:
            Retryable: the resource still gives it a share, or the cluster does not answer.
        """
        seen = self.look()
        if seen is not None and not seen.is_without(model_version):
            share = seen.weights[model_version]
            raise Retryable(f"{model_version} still has a share of {share:g} in {self.name}: apply a plan without it")
        self.withdraw(model_version)


def without_canary(plan: TrafficPlan) -> TrafficPlan:
    """Return the plan with all traffic on stable."""
    return msgspec.structs.replace(plan, canary=None, canary_weight=0.0, shadow=False)
