"""Traffic split by our own gateways over one runtime: plain HTTP, no cluster."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx
import msgspec

from hone.errors import Retryable
from hone.records import TrafficPlan
from hone.settings import Settings
from serving.traffic.backend import Capabilities, ObservedTraffic
from serving.traffic.routers import Routers, router_urls

LOAD_TIMEOUT_S = 600.0


class Model(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str


class ModelList(msgspec.Struct, frozen=True):
    """Body of `GET /v1/models`."""

    data: tuple[Model, ...]


class LocalTraffic:
    """Gateways over the runtime at `runtime`. Use as a context manager: it holds connections."""

    def __init__(
        self, addresses: Sequence[str], runtime: str, admin_key: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`admin_key` is the API key that every router takes plans from; `transport` replaces the network."""
        self.gateways = Routers(addresses, admin_key, transport=transport)
        self.runtime = runtime.rstrip("/")
        self._client = self.gateways.client

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the backend over the gateways and the runtime that the settings name."""
        return cls(router_urls(settings), settings.runtime_url, settings.admin_key.get_secret_value())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gateways.close()

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
        if obstacles := self.gateways.send(plan):
            raise Retryable(f"plan {plan.fence} is not everywhere: {'; '.join(obstacles)}")

    def split_past(self, plan: TrafficPlan) -> None:
        """Do nothing: only the gateways split."""

    def observe(self) -> ObservedTraffic:
        """Ask every router for its plan, and the runtime for its models."""
        views, broken = self.gateways.observe()
        return ObservedTraffic(views, self._models(), broken)

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
