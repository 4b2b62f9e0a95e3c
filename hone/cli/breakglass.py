"""Break-glass: tell every router, over HTTP alone, to send a rollout's canary nothing from now on."""

from dataclasses import dataclass
from uuid import UUID

import httpx
import msgspec

from hone.errors import ConfigError
from hone.records import TrafficPlan
from hone.settings import Settings

TIMEOUT_S = 3.0


class RouterState(msgspec.Struct):
    """What is read of `GET /v1/router/plan`."""

    plan: TrafficPlan | None = None
    weight_in_force: float = 0.0


@dataclass(frozen=True)
class Result:
    """What became of the order at one router."""

    router: str
    done: bool
    rollout: str
    detail: str


def break_glass(settings: Settings, rollout_id: UUID | None, reason: str) -> list[Result]:
    """Tell every router; without an id, about the rollout that the router itself follows.

    Raises:
        ConfigError: no admin key is set.
    """
    key = settings.admin_key.get_secret_value()
    if not key:
        raise ConfigError("admin_key is not set: set HONE_ADMIN_KEY to the key that the gateways know")
    routers = settings.router_urls or (settings.gateway_url,)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(timeout=TIMEOUT_S, headers=headers, trust_env=False) as client:
        return [tell(client, router.rstrip("/"), rollout_id, reason) for router in routers]


def tell(client: httpx.Client, router: str, rollout_id: UUID | None, reason: str) -> Result:
    """Give the order to one router; what stands in the way is in the result."""
    try:
        rollout_id = rollout_id or followed(client, router)
        if rollout_id is None:
            return Result(router, True, "-", "follows no rollout")
        body = {"rollout_id": str(rollout_id), "reason": reason}
        answer = client.post(f"{router}/v1/router/break-glass", json=body).raise_for_status()
    except httpx.HTTPStatusError as error:
        return Result(
            router, False, str(rollout_id or "-"), f"HTTP {error.response.status_code}: {error.response.text[:200]}"
        )
    except httpx.HTTPError as error:
        return Result(router, False, str(rollout_id or "-"), f"no answer ({error!r})")
    weight = msgspec.json.decode(answer.content, type=RouterState).weight_in_force
    return Result(router, weight == 0.0, str(rollout_id), f"canary weight {weight:g}")


def followed(client: httpx.Client, router: str) -> UUID | None:
    """Return the rollout that the router's plan names, or None."""
    answer = client.get(f"{router}/v1/router/plan").raise_for_status()
    plan = msgspec.json.decode(answer.content, type=RouterState).plan
    return plan.rollout_id if plan else None
