"""Traffic split by our own gateways over one runtime: plain HTTP, no cluster."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
import msgspec

from hone.errors import ConfigError, Fenced, Retryable
from hone.records import TrafficPlan
from hone.settings import Settings
from serving.traffic.backend import Capabilities, ObservedTraffic, RouterView

ROUTER_TIMEOUT_S = 3.0
LOAD_TIMEOUT_S = 600.0


class RouterStatus(msgspec.Struct, frozen=True):
    """Body of `GET /v1/router/plan`."""

    plan: TrafficPlan | None = None
    expired: bool = False
    broken_glass: frozenset[UUID] = frozenset()
    served: dict[str, int] = {}


class Model(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str


class ModelList(msgspec.Struct, frozen=True):
    """Body of `GET /v1/models`."""

    data: tuple[Model, ...]


class LocalTraffic:
    """Gateways at `routers` over the runtime at `runtime`. Use as a context manager: it holds connections."""

    def __init__(self, routers: Sequence[str], runtime: str, admin_key: str) -> None:
        """`admin_key` is the API key that every router takes plans from."""
        self.routers = tuple(url.rstrip("/") for url in routers)
        self.runtime = runtime.rstrip("/")
        self._client = httpx.Client(timeout=ROUTER_TIMEOUT_S, headers={"Authorization": f"Bearer {admin_key}"})

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the backend over the gateways and the runtime that the settings name."""
        routers = settings.router_urls or (settings.gateway_url,)
        return cls(routers, settings.runtime_url, settings.admin_key.get_secret_value())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def capabilities(self) -> Capabilities:
        """Return what the gateway's router can do."""
        return Capabilities(min_step=0.0, sticky=True, shadow=True, expires=True, streaming=True)

    def prepare(self, model_version: str, directory: str) -> None:
        """Load the version in the runtime; returns when it answers."""
        body = {"model_version": model_version, "directory": directory}
        try:
            answer = self._client.post(f"{self.runtime}/v1/models/load", json=body, timeout=LOAD_TIMEOUT_S)
        except httpx.TransportError as error:
            raise Retryable(f"runtime {self.runtime} does not answer ({error!r}): is it running?") from None
        if answer.is_error:
            raise Retryable(f"runtime {self.runtime} did not load {model_version}: {answer.status_code} {answer.text}")

    def apply(self, plan: TrafficPlan) -> None:
        """Send the plan to every router."""
        obstacles = [found for router in self.routers if (found := self._send(router, plan))]
        if obstacles:
            raise Retryable(f"plan {plan.fence} is not everywhere: {'; '.join(obstacles)}")

    def _send(self, router: str, plan: TrafficPlan) -> str | None:
        """Return why the router did not take the plan, or None."""
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._client.put(f"{router}/v1/router/plan", content=msgspec.json.encode(plan), headers=headers)
        except httpx.TransportError as error:
            return f"{router} does not answer ({error!r})"
        if answer.status_code == httpx.codes.CONFLICT:
            raise Fenced(f"{router} refused plan {plan.fence} ({answer.text}): a newer controller is at work")
        check_key(router, answer)
        return f"{router} answered {answer.status_code} {answer.text}" if answer.is_error else None

    def observe(self) -> ObservedTraffic:
        """Ask every router for its plan, and the runtime for its models."""
        seen = [(router, self._status(router)) for router in self.routers]
        broken = [status.broken_glass for _, status in seen if status is not None]
        views = tuple(
            RouterView(router, False) if status is None else RouterView(router, True, status.plan, status.expired)
            for router, status in seen
        )
        return ObservedTraffic(views, self._models(), frozenset().union(*broken))

    def _status(self, router: str) -> RouterStatus | None:
        """Return what the router says of itself, or None where it does not answer."""
        try:
            answer = self._client.get(f"{router}/v1/router/plan")
        except httpx.TransportError:
            return None
        check_key(router, answer)
        return None if answer.is_error else msgspec.json.decode(answer.content, type=RouterStatus)

    def _models(self) -> frozenset[str]:
        """Return the versions that the runtime serves; none where it does not answer."""
        try:
            answer = self._client.get(f"{self.runtime}/v1/models")
        except httpx.TransportError:
            return frozenset()
        if answer.is_error:
            return frozenset()
        return frozenset(model.id for model in msgspec.json.decode(answer.content, type=ModelList).data)

    def teardown(self, model_version: str) -> None:
        """Unload the version in the runtime."""
        try:
            answer = self._client.delete(f"{self.runtime}/v1/models/{model_version}", timeout=LOAD_TIMEOUT_S)
        except httpx.TransportError as error:
            raise Retryable(f"runtime {self.runtime} does not answer ({error!r}): is it running?") from None
        if answer.is_error and answer.status_code != httpx.codes.NOT_FOUND:
            raise Retryable(f"runtime {self.runtime} kept {model_version}: {answer.status_code} {answer.text}")


def check_key(router: str, answer: httpx.Response) -> None:
    """Raise ConfigError if the router does not take our key."""
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ConfigError(f"{router} refused our key ({answer.status_code}): HONE_ADMIN_KEY must be the same there")
