"""Routes over the database: lineage, rollouts, erasure. Each request is one transaction in a thread."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hone import ids
from hone.errors import Conflict, MalformedToken, RejectedToken
from hone.store.erasure import erase_user
from hone.store.keys import Scope
from hone.store.lineage import lineage_of
from hone.store.rollouts import list_rollouts, request_action
from hone.store.tables import RolloutRow
from hone.tokens import KeyRing
from serving.gateway.guard import Guard
from serving.gateway.replies import as_json, body_of
from serving.http import Problem

Result = TypeVar("Result")


class ActionBody(msgspec.Struct):
    """Why a person acts on a rollout; it is kept in the audit log."""

    reason: Annotated[str, msgspec.Meta(min_length=1)]


class StoredRoutes:
    """The routes; a database that is away is a 503."""

    def __init__(
        self,
        guard: Guard,
        sessions: sessionmaker[Session],
        identity_key: bytes,
        ring: KeyRing,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.guard, self.sessions, self.identity_key = guard, sessions, identity_key
        self.ring, self.clock = ring, clock

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/v1/lineage/{id}", self.lineage, methods=["GET"]),
            Route("/v1/rollouts", self.rollouts, methods=["GET"]),
            Route("/v1/rollouts/{rollout_id:uuid}:{action}", self.act, methods=["POST"]),
            Route("/v1/users/{user}", self.erase, methods=["DELETE"]),
        ]

    async def lineage(self, request: Request) -> Response:
        """GET: from an answer (its id or uuid) to the events that trained the model that gave it."""
        await self.guard.require(request.scope, Scope.REVIEW)
        response_id = self._response_id(request.path_params["id"])
        found = await self._run(lambda session: lineage_of(session, response_id))
        if found is None:
            raise Problem(404, "no such answer", f"response {response_id} is not stored (yet): try again in seconds")
        return as_json(found)

    async def rollouts(self, request: Request) -> Response:
        """GET: the rollouts, the newest first."""
        await self.guard.require(request.scope, Scope.REVIEW)
        return as_json({"rollouts": await self._run(lambda session: [describe(r) for r in list_rollouts(session)])})

    async def act(self, request: Request) -> Response:
        """POST: promote, roll back, pause or resume; the controller carries it out."""
        caller = await self.guard.require(request.scope, Scope.ROLLOUT_WRITE)
        order, rollout_id = await body_of(request, ActionBody), request.path_params["rollout_id"]
        action, now = request.path_params["action"], self.clock()

        def act(session: Session) -> int:
            return request_action(session, rollout_id, action, actor=caller.name, reason=order.reason, now=now)

        return as_json({"rollout_id": rollout_id, "action": action, "epoch": await self._run(act)}, 202)

    async def erase(self, request: Request) -> Response:
        """DELETE: forget a user, by the name that the app uses; done when this answers."""
        caller = await self.guard.require(request.scope, Scope.ADMIN)
        user, now = ids.user_id(self.identity_key, request.path_params["user"]), self.clock()
        counts = await self._run(lambda session: erase_user(session, user, actor=caller.name, now=now))
        return as_json({"user_id": user, "counts": counts})

    def _response_id(self, text: str) -> UUID:
        try:
            return UUID(text)
        except ValueError:
            pass
        try:
            return self.ring.verify(text, datetime.min.replace(tzinfo=UTC)).response_id
        except MalformedToken as error:
            raise Problem(404, "no such answer", str(error)) from None
        except RejectedToken as error:
            raise Problem(403, "not yours", str(error)) from None

    async def _run(self, work: Callable[[Session], Result]) -> Result:
        """Run `work` in a transaction of its own, in a thread; what it raises on purpose becomes a problem."""

        def transact() -> Result:
            with self.sessions.begin() as session:
                return work(session)

        try:
            return await asyncio.to_thread(transact)
        except LookupError as error:
            raise Problem(404, "not found", str(error)) from None
        except Conflict as error:
            raise Problem(409, "conflict", str(error)) from None
        except ValueError as error:
            raise Problem(422, "invalid request", str(error)) from None
        except OperationalError as error:
            detail = f"the database does not answer ({type(error.orig).__name__}): try again"
            raise Problem(503, "database away", detail, retry_after_s=5) from error


def describe(row: RolloutRow) -> dict[str, Any]:
    """Return every column of a rollout."""
    return {column.key: getattr(row, column.key) for column in RolloutRow.__table__.columns}
