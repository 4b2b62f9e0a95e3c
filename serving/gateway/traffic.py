"""Routes over the router: the plan in force, break-glass, and upstreams that an operator registers."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hone import metrics
from hone.errors import Conflict
from hone.records import Track, TrafficPlan
from hone.store.keys import Scope
from serving.gateway.guard import Guard
from serving.gateway.replies import as_json, body_of
from serving.gateway.upstreams import Upstreams
from serving.http import Problem
from serving.router import Router

logger = logging.getLogger(__name__)

MODEL_NAME = "hone"
"""The one model that clients see; which version answers stays hidden from them."""


class BreakGlass(msgspec.Struct):
    """`POST /v1/router/break-glass`."""

    rollout_id: UUID
    reason: Annotated[str, msgspec.Meta(min_length=1)]


class NewUpstream(msgspec.Struct):
    """`PUT /v1/upstreams/{name}`; `url` without path, as `HONE_RUNTIME_URL`."""

    url: Annotated[str, msgspec.Meta(pattern="^https?://[^/?#]+/?$")]
    expires_in_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)]
    track: Track = Track.REPLAY
    metadata: bool = False
    "Whether it is sent the `metadata` of requests, which may name people."


class TrafficRoutes:
    """Needs neither database nor broker."""

    def __init__(
        self,
        guard: Guard,
        router: Router,
        upstreams: Upstreams,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.guard, self.router, self.upstreams, self.clock = guard, router, upstreams, clock
        metrics.PLAN_AGE_SECONDS.set_function(self._plan_age_s)
        metrics.PLAN_FENCE.set_function(lambda: router.plan.fence if router.plan else -1)
        metrics.CANARY_WEIGHT_RATIO.set_function(lambda: router.weight(clock()))
        metrics.BROKEN_GLASS.set_function(lambda: len(router.broken))

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/router/plan", self.get_plan, methods=["GET"]),
            Route("/v1/router/plan", self.put_plan, methods=["PUT"]),
            Route("/v1/router/break-glass", self.break_glass, methods=["POST"]),
            Route("/v1/upstreams/{name}", self.put_upstream, methods=["PUT"]),
        ]

    async def list_models(self, request: Request) -> Response:
        """GET: the names that a chat request may ask for."""
        await self.guard.require(request.scope, Scope.CHAT)
        names = [MODEL_NAME, *self.upstreams.names()]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "hone"} for name in names]
        return as_json({"object": "list", "data": data})

    async def get_plan(self, request: Request) -> Response:
        """GET: the plan in force and what became of it."""
        await self.guard.require(request.scope, Scope.ROLLOUT_WRITE)
        return as_json(self._state())

    async def put_plan(self, request: Request) -> Response:
        """PUT: 200 once the plan is in force; 409 if its fence is older; 422 if it contradicts itself."""
        await self.guard.require(request.scope, Scope.ROLLOUT_WRITE)
        plan = await body_of(request, TrafficPlan)
        before = self.router.plan
        try:
            self.router.take(plan, self.clock())
        except Conflict as error:
            raise Problem(409, "older fence", str(error)) from None
        except ValueError as error:
            raise Problem(422, "invalid plan", str(error)) from None
        if before is None or (before.stable, before.canary, before.canary_weight) != (
            plan.stable,
            plan.canary,
            plan.canary_weight,
        ):
            logger.info("plan %s: stable %s, canary %s at %s", plan.fence, plan.stable, plan.canary, plan.canary_weight)
        return as_json(self._state())

    async def break_glass(self, request: Request) -> Response:
        """POST: from now on this rollout's canary gets nothing, whatever plan comes."""
        caller = await self.guard.require(request.scope, Scope.ROLLOUT_WRITE)
        order = await body_of(request, BreakGlass)
        self.router.break_glass(order.rollout_id)
        logger.warning("glass of rollout %s broken by %s: %s", order.rollout_id, caller.name, order.reason)
        return as_json(self._state())

    async def put_upstream(self, request: Request) -> Response:
        """PUT: requests for this model name go there, outside of rollouts, until it expires."""
        caller = await self.guard.require(request.scope, Scope.ADMIN)
        new = await body_of(request, NewUpstream)
        if new.track is not Track.REPLAY:
            raise Problem(422, "invalid request", f"track = {new.track}: a registered upstream has track replay")
        name = request.path_params["name"]
        self.upstreams.register(name, new.url, new.track, new.expires_in_s, metadata=new.metadata)
        logger.info("upstream %s at %s for %s s, by %s", name, new.url, new.expires_in_s, caller.name)
        return as_json({"name": name, **msgspec.structs.asdict(new)})

    def _state(self) -> dict[str, Any]:
        now, plan = self.clock(), self.router.plan
        return {
            "plan": plan,
            "expired": plan is None or plan.expires_at <= now,
            "weight_in_force": self.router.weight(now),
            "broken_glass": sorted(self.router.broken),
            "served": dict(self.router.served),
        }

    def _plan_age_s(self) -> float:
        taken = self.router.taken_at
        return float("nan") if taken is None else (self.clock() - taken).total_seconds()
