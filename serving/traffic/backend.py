"""What the controller asks of a platform that splits traffic, and what it sees there."""

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


@dataclass(frozen=True, slots=True)
class ObservedTraffic:
    """What is in force now."""

    routers: tuple[RouterView, ...]
    models: frozenset[str]
    "Versions that are loaded and answer."
    broken_glass: frozenset[UUID] = field(default_factory=frozenset)
    "Rollouts that an operator stopped at a router."


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

    def observe(self) -> ObservedTraffic:
        """Return what is in force; what does not answer is reported as such, not raised."""
        ...

    def teardown(self, model_version: str) -> None:
        """Unload the version after its answers in flight have ended; nothing happens where it is not loaded."""
        ...
