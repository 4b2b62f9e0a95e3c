"""Feedback in the shape of other platforms: TensorZero's `POST /feedback`, Langfuse's `POST /api/public/scores`.

They name an answer without proving it: a key with the scope `feedback:unsigned` is needed, and the events are unsigned.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hone import ids
from hone.errors import TokenError
from hone.records import Feedback, FeedbackKind
from hone.store.keys import Scope
from serving.gateway.acts import number, wrong
from serving.gateway.feedback import FeedbackIntake
from serving.gateway.guard import Guard
from serving.gateway.replies import as_json, body_of

THUMBS_NAMES = frozenset({"thumbs", "thumbs_up", "user-feedback", "user_feedback"})


class TensorZeroFeedback(msgspec.Struct):
    """Body of `POST /feedback`. `inference_id` is the uuid of a response, or the id of an answer of ours."""

    metric_name: str
    value: bool | float | str
    inference_id: str | None = None
    episode_id: str | None = None
    dryrun: bool = False


class LangfuseScore(msgspec.Struct):
    """Body of `POST /api/public/scores`. `traceId` is the uuid of a response, or the id of an answer of ours."""

    traceId: str
    name: str
    value: float | str
    id: str | None = None
    comment: str | None = None


class CompatRoutes:
    """Both routes."""

    def __init__(self, intake: FeedbackIntake, guard: Guard) -> None:
        self.intake, self.guard = intake, guard

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/feedback", self.tensorzero, methods=["POST"]),
            Route("/api/public/scores", self.langfuse, methods=["POST"]),
        ]

    async def tensorzero(self, request: Request) -> Response:
        """Booleans are thumbs, numbers outcomes; `comment` and `demonstration` (an edit) carry text."""
        await self.guard.require(request.scope, Scope.FEEDBACK_UNSIGNED)
        body = await body_of(request, TensorZeroFeedback)
        now = self.intake.clock()
        where = self._subject("inference_id", body.inference_id, body.episode_id, now)
        event = unsigned(where, from_metric(body.metric_name, body.value), ids.uuid7(), now)
        if not body.dryrun:
            await self.intake.publish([event])
        return as_json({"feedback_id": event.event_id})

    async def langfuse(self, request: Request) -> Response:
        """A score named like a thumb is one (above zero: up); others are outcomes; a comment is an event of its own."""
        await self.guard.require(request.scope, Scope.FEEDBACK_UNSIGNED)
        body = await body_of(request, LangfuseScore)
        now, key = self.intake.clock(), self.intake.identity_key
        where = self._subject("traceId", body.traceId, None, now)
        given = body.id or str(ids.uuid7())
        event_id = ids.keyed_uuid(key, "score", given.encode())
        events = [unsigned(where, from_score(body.name, body.value), event_id, now)]
        if body.comment:
            said = {"kind": FeedbackKind.COMMENT, "text": body.comment}
            events.append(unsigned(where, said, ids.keyed_uuid(key, "score comment", given.encode()), now))
        await self.intake.publish(events)
        return as_json({"id": given})

    def _subject(self, field: str, answer: str | None, episode: str | None, now: datetime) -> dict[str, Any]:
        """Return what the feedback is about, in the fields of an event."""
        if answer is None:
            if episode is None:
                raise wrong(field, None, "name the answer")
            conversation = ids.conversation_id(self.intake.identity_key, ids.NOBODY, (), episode)
            return {"conversation_id": conversation, "user_id": ids.NOBODY}
        try:
            claims = self.intake.ring.verify(answer, now)
        except TokenError:
            return {"response_id": as_uuid(field, answer), "user_id": ids.NOBODY}
        return {
            "response_id": claims.response_id,
            "conversation_id": claims.conversation_id,
            "turn_id": claims.turn_id,
            "user_id": claims.user_id,
        }


def unsigned(where: dict[str, Any], act: dict[str, Any], event_id: UUID, now: datetime) -> Feedback:
    """Return the event."""
    if "response_id" not in where and act["kind"] is not FeedbackKind.OUTCOME:
        raise wrong("episode_id", str(where["conversation_id"]), "name an answer: only numbers go to whole episodes")
    return Feedback(event_id=event_id, occurred_at=now, received_at=now, signed=False, **where, **act)


def from_metric(name: str, value: bool | float | str) -> dict[str, Any]:
    """Return kind and content of a TensorZero metric."""
    if isinstance(value, bool):
        return {"kind": FeedbackKind.THUMBS, "value": 1.0 if value else -1.0}
    if not isinstance(value, str):
        return {"kind": FeedbackKind.OUTCOME, "name": named(name), "value": number(value, "")}
    kinds = {"comment": FeedbackKind.COMMENT, "demonstration": FeedbackKind.EDIT}
    if name not in kinds:
        raise wrong("metric_name", name, "a text goes with the metric comment or demonstration")
    return {"kind": kinds[name], "text": value}


def from_score(name: str, value: float | str) -> dict[str, Any]:
    """Return kind and content of a Langfuse score."""
    if isinstance(value, str):
        return {"kind": FeedbackKind.COMMENT, "text": f"{name}: {value}"}
    if name in THUMBS_NAMES:
        return {"kind": FeedbackKind.THUMBS, "value": 1.0 if value > 0 else -1.0}
    return {"kind": FeedbackKind.OUTCOME, "name": named(name), "value": number(value, "")}


def named(name: str) -> str:
    """Return a name that can be stored."""
    if not 0 < len(name) <= 128 or "\x00" in name:
        raise wrong("name", name, "send a name of 1 to 128 characters")
    return name


def as_uuid(field: str, text: str) -> UUID:
    """Return the uuid that names a response."""
    try:
        return UUID(text)
    except ValueError:
        raise wrong(field, text, "send the uuid of a response, or the id of an answer of this gateway") from None
