"""What the controller asks of a platform that splits traffic, and what it sees there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from hone.records import TrafficPlan


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a platform can do."""

    min_step: float
    "Smallest change of the weight."
    sticky: bool
    "A user stays in one arm while the weight grows."
    shadow: bool
    expires: bool
    "A plan that is not renewed loses its canary by itself."
    streaming: bool


@dataclass(frozen=True, slots=True)
class RouterView:
    """One router as it was seen; `plan` is None for one that did not answer or has none yet."""

    address: str
    reachable: bool
    plan: TrafficPlan | None = None
    expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceView:
    """The object that splits the traffic which no gateway keys: one read of it."""

    address: str
    reachable: bool
    weights: Mapping[str, float] = field(default_factory=dict)
    "Share by version, as the object says; a version that is not in it has no share."
    ready: bool = False
    "The operator has seen this generation and says that every arm of it answers."
    effective: bool = True
    "What the arms count does not contradict the weights."
    generation: int = 0
    fence: int = -1
    unkeyed: Mapping[str, int] | None = None
    "Requests by version that came past the gateways so far; None where nobody counts them."

    def carries(self, plan: TrafficPlan, step: float) -> bool:
        """Say whether it splits as the plan says, to the platform's step, and the split is in effect."""
        if not (self.reachable and self.ready and self.effective and self.fence >= plan.fence):
            return False
        canary = {} if plan.canary is None else {plan.canary: plan.canary_weight}
        wanted = {plan.stable: 1.0 - plan.canary_weight} | canary
        versions = wanted.keys() | self.weights.keys()
        return all(abs(wanted.get(name, 0.0) - self.weights.get(name, 0.0)) <= step for name in versions)

    def is_without(self, version: str) -> bool:
        """Say whether it gives the version no share."""
        return self.reachable and self.weights.get(version, 0.0) == 0.0


@dataclass(frozen=True, slots=True)
class ObservedTraffic:
    """What is in force now."""

    routers: tuple[RouterView, ...]
    models: frozenset[str]
    "Versions that are loaded and answer."
    broken_glass: frozenset[UUID] = field(default_factory=frozenset)
    "Rollouts that an operator stopped at a router."
    resource: ResourceView | None = None
    "None where only the gateways split."

    def resource_carries(self, plan: TrafficPlan, step: float) -> bool:
        """Say whether traffic past the gateways is split as the plan says, where there is such traffic."""
        return self.resource is None or self.resource.carries(plan, step)

    def resource_is_without(self, version: str) -> bool:
        """Say whether traffic past the gateways cannot reach the version."""
        return self.resource is None or self.resource.is_without(version)


class TrafficBackend(Protocol):
    """A platform that serves two arms. Every call is idempotent and may block for seconds."""

    def capabilities(self) -> Capabilities:
        """Return what the platform can do."""
        ...

    def prepare(self, model_version: str, directory: str) -> None:
        """Load the version, so that it can answer before it gets traffic.

        Raises:
            Retryable: it is not loaded; a later call may succeed.
        """
        ...

    def apply(self, plan: TrafficPlan) -> None:
        """Put the plan in force on every router that answers.

        Raises:
            Fenced: a router follows a plan with a larger fence: somebody newer speaks.
            Retryable: a router did not take it; the others did.
        """
        ...

    def split_past(self, plan: TrafficPlan) -> None:
        """Split as the plan says what comes past the gateways, which keep theirs; nothing where nothing comes past.

        Raises:
            Fenced: the resource follows a plan with a larger fence.
            Retryable: it was not written.
        """
        ...

    def observe(self) -> ObservedTraffic:
        """Return what is in force; what does not answer is reported as such, not raised."""
        ...

    def teardown(self, model_version: str) -> None:
        """Unload the version after its answers in flight have ended; nothing happens where it is not loaded."""
        ...
