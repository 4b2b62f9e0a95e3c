"""`POST /v1/feedback`: one act or a batch, validated, bound to the answer by its token, acknowledged by the broker."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from hone import ids, metrics
from hone.errors import MalformedToken, RejectedToken, Retryable
from hone.records import FEEDBACK_TOPIC, Feedback
from hone.settings import Gateway as Limits
from hone.store.keys import Scope
from hone.tokens import KeyRing
from serving.gateway.acts import Act, read_act, read_document, wrong
from serving.gateway.guard import Guard
from serving.gateway.publisher import Publisher
from serving.http import (
    ClientGone,
    Problem,
    Receive,
    Send,
    answer,
    answer_problem,
    header,
    read_body,
)
from serving.http import Scope as Http


class FeedbackIntake:
    """Turns acts into events and hands them to the broker. An act on an answer needs no key: its token is one."""

    def __init__(
        self,
        limits: Limits,
        ring: KeyRing,
        identity_key: bytes,
        guard: Guard,
        publisher: Publisher,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits, self.ring, self.identity_key = limits, ring, identity_key
        self.guard, self.publisher, self.clock = guard, publisher, clock

    async def __call__(self, http: Http, receive: Receive, send: Send) -> None:
        """Answer one request: 202 and the ids of the events once the broker has all of them."""
        arrived = time.perf_counter()
        try:
            events = await self._read(http, receive)
            await self.publish(events)
        except ClientGone:
            return
        except Problem as problem:
            metrics.FEEDBACK_REJECTED.labels(problem.title).inc()
            metrics.GATEWAY_REQUESTS.labels("feedback", problem.status).inc()
            return await answer_problem(send, problem)
        metrics.GATEWAY_REQUESTS.labels("feedback", 202).inc()
        await answer(send, 202, msgspec.json.encode({"event_ids": [event.event_id for event in events]}))
        metrics.FEEDBACK_SECONDS.observe(time.perf_counter() - arrived)

    async def publish(self, events: Sequence[Feedback]) -> None:
        """Return once the broker has the events.

        Raises:
            Problem: 503, the broker is away or slow; the same events may be sent again.
        """
        try:
            waiting = [
                self.publisher.send(FEEDBACK_TOPIC, key_of(event), msgspec.json.encode(event)) for event in events
            ]
            await asyncio.wait_for(asyncio.gather(*waiting), self.limits.produce_timeout_s)
        except (Retryable, TimeoutError) as error:
            detail = f"feedback was not stored ({error or 'no answer in time'}): send it again with the same event_id"
            raise Problem(503, "broker away", detail, retry_after_s=2) from None
        for event in events:
            metrics.FEEDBACK_ACCEPTED.labels(event.kind, event.signed).inc()

    async def _read(self, http: Http, receive: Receive) -> list[Feedback]:
        document = read_document(await read_body(receive, self.limits.max_feedback_bytes))
        named, retry = header(http, b"x-user-id"), header(http, b"idempotency-key")
        user = ids.user_id(self.identity_key, named) if named else None
        now = self.clock()
        events = []
        for position, item in enumerate(document.items):
            act = read_act(item, document.path(position), now)
            if act.response_id is None:
                await self.guard.require(http, Scope.FEEDBACK)
                events.append(self._outcome(act, user, retry, position, now))
            else:
                events.append(self._signed(act, act.response_id, user, retry, position, now))
        return events

    def _signed(
        self, act: Act, token: str, user: UUID | None, retry: str | None, position: int, now: datetime
    ) -> Feedback:
        """Return the event of an act on an answer."""
        claims = self._verify(token, now, user)
        rejected = []
        for other in act.rejected:
            loser = self._verify(other, now, claims.user_id)
            if loser.turn_id != claims.turn_id or loser.response_id == claims.response_id:
                remedy = "name other answers to the same messages"
                raise wrong(f"{act.path}value.rejected", other[:24] + "…", remedy)
            rejected.append(loser.response_id)
        return Feedback(
            event_id=act.event_id or self._event_id(retry, claims.response_id, position),
            response_id=claims.response_id,
            conversation_id=claims.conversation_id,
            turn_id=claims.turn_id,
            user_id=claims.user_id,
            rejected=tuple(rejected),
            received_at=now,
            **act.content(now),
        )

    def _outcome(self, act: Act, user: UUID | None, retry: str | None, position: int, now: datetime) -> Feedback:
        """Return the event of an outcome of a conversation or a user, told by who holds a key."""
        key = self.identity_key
        user = ids.user_id(key, act.user) if act.user else user
        conversation = ids.conversation_id(key, ids.NOBODY, (), act.conversation_id) if act.conversation_id else None
        if user is None and conversation is None:
            raise wrong(f"{act.path}response_id", None, "name response_id; an outcome may name conversation_id or user")
        return Feedback(
            event_id=act.event_id or self._event_id(retry, conversation or user or ids.NOBODY, position),
            conversation_id=conversation,
            user_id=user or ids.NOBODY,
            received_at=now,
            **act.content(now),
        )

    def _verify(self, token: str, now: datetime, user: UUID | None) -> Any:
        try:
            return self.ring.verify(token, now, user)
        except MalformedToken as error:
            raise Problem(404, "no such answer", str(error)) from None
        except RejectedToken as error:
            raise Problem(403, "not yours", str(error)) from None

    def _event_id(self, retry: str | None, subject: UUID, position: int) -> UUID:
        """Return the same id for the same Idempotency-Key, else a fresh one."""
        if retry is None:
            return ids.uuid7()
        return ids.keyed_uuid(self.identity_key, "event", subject.bytes, position.to_bytes(4, "big"), retry.encode())


def key_of(event: Feedback) -> bytes:
    """Return the topic key: the conversation, or what is known instead of it."""
    return (event.conversation_id or event.response_id or event.user_id).bytes
