"""The gateways, as a traffic backend tells them of plans. Their routing is authoritative on every platform."""

from collections.abc import Sequence
from uuid import UUID

import httpx
import msgspec

from hone.errors import ConfigError, Fenced
from hone.records import TrafficPlan
from hone.settings import Settings
from serving.traffic.backend import RouterView

ROUTER_TIMEOUT_S = 3.0


class RouterStatus(msgspec.Struct, frozen=True):
    """Body of `GET /v1/router/plan`."""

    plan: TrafficPlan | None = None
    expired: bool = False
    broken_glass: frozenset[UUID] = frozenset()
    served: dict[str, int] = {}


class Routers:
    """Gateways by address. Holds connections until `close`."""

    def __init__(
        self, addresses: Sequence[str], admin_key: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`admin_key` is the API key that every router takes plans from; `transport` replaces the network."""
        self.addresses = tuple(url.rstrip("/") for url in addresses)
        headers = {"Authorization": f"Bearer {admin_key}"}
        self.client = httpx.Client(timeout=ROUTER_TIMEOUT_S, headers=headers, transport=transport)

    def close(self) -> None:
        """Close every connection."""
        self.client.close()

    def send(self, plan: TrafficPlan) -> list[str]:
        """Send the plan to every router; return why some did not take it.

        Raises:
            Fenced: a router follows a newer plan. ConfigError: one does not take our key.
        """
        return [found for router in self.addresses if (found := self.send_one(router, plan))]

    def send_one(self, router: str, plan: TrafficPlan) -> str | None:
        """Return why the router did not take the plan, or None."""
        headers = {"Content-Type": "application/json"}
        try:
            answer = self.client.put(f"{router}/v1/router/plan", content=msgspec.json.encode(plan), headers=headers)
        except httpx.TransportError as error:
            return f"{router} does not answer ({error!r})"
        if answer.status_code == httpx.codes.CONFLICT:
            raise Fenced(f"{router} refused plan {plan.fence} ({answer.text}): a newer controller is at work")
        check_key(router, answer)
        return f"{router} answered {answer.status_code} {answer.text}" if answer.is_error else None

    def observe(self) -> tuple[tuple[RouterView, ...], frozenset[UUID]]:
        """Ask every router for its plan; also return the rollouts whose glass was broken at one of them."""
        seen = [(router, self._status(router)) for router in self.addresses]
        broken = [status.broken_glass for _, status in seen if status is not None]
        views = tuple(
            RouterView(router, False) if status is None else RouterView(router, True, status.plan, status.expired)
            for router, status in seen
        )
        return views, frozenset().union(*broken)

    def _status(self, router: str) -> RouterStatus | None:
        """Return what the router says of itself, or None where it does not answer."""
        try:
            answer = self.client.get(f"{router}/v1/router/plan")
        except httpx.TransportError:
            return None
        check_key(router, answer)
        return None if answer.is_error else msgspec.json.decode(answer.content, type=RouterStatus)


def router_urls(settings: Settings) -> tuple[str, ...]:
    """Return the gateways that must hear of every plan."""
    return settings.router_urls or (settings.gateway_url,)


def check_key(router: str, answer: httpx.Response) -> None:
    """Raise ConfigError if the router does not take our key."""
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ConfigError(f"{router} refused our key ({answer.status_code}): HONE_ADMIN_KEY must be the same there")
