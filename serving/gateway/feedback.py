"""`POST /v1/feedback`: one act or a batch, validated, bound to the answer by its token, acknowledged by the broker."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from prometheus_client import Counter

from hone import ids, metrics
from hone.errors import HoneError, InvalidEvent, MalformedToken, RejectedToken
from hone.records import FEEDBACK_TOPIC, Feedback, FeedbackKind
from hone.settings import Gateway as Limits
from hone.store.keys import Scope
from hone.tokens import KeyRing
from serving.gateway.acts import Act, ActBody, check_act, read_act, read_document, wrong
from serving.gateway.guard import Guard
from serving.gateway.publisher import Publisher
from serving.http import (
    PROBLEM_JSON,
    ClientGone,
    Problem,
    Receive,
    Send,
    answer,
    answer_problem,
    fault,
    header,
    read_body,
)
from serving.http import Scope as Http
from serving.short_way import Cycle

ACT = msgspec.json.Decoder(ActBody)
EVENT = msgspec.json.Encoder()


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
        self.limit = limits.max_feedback_bytes

    async def __call__(self, http: Http, receive: Receive, send: Send) -> None:
        """Answer one request: 202 and the ids of the events once the broker has all of them."""
        arrived = time.perf_counter()
        try:
            events = await self._read(http, receive)
            await self.publish(events)
        except ClientGone:
            return
        except Problem as problem:
            count_problem(problem)
            return await answer_problem(send, problem)
        except Exception as error:
            count_problem(fault(error))
            raise
        await answer(send, 202, event_ids(events))
        count_answered(arrived)

    def take(self, http: Http, body: bytes, out: Cycle) -> bool:
        """Take a request that is one well-formed act on an answer; the ordinary way takes the others, and says why.

        `out` gets 202 once the broker has the event, or 503.
        """
        arrived, now = time.perf_counter(), self.clock()
        try:
            act = check_act(ACT.decode(body), "", now)
            if act.response_id is None:
                return False
            named, retry = header(http, b"x-user-id"), header(http, b"idempotency-key")
            user = ids.user_id(self.identity_key, named) if named else None
            event = self._signed(act, act.response_id, user, retry, 0, now)
            done = functools.partial(acknowledge, event, arrived, out)
            self.publisher.post(FEEDBACK_TOPIC, key_of(event), EVENT.encode(event), done)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Problem, HoneError):
            return False
        return True

    async def publish(self, events: Sequence[Feedback]) -> None:
        """Return once the broker has the events.

        Raises:
            Problem: 503, the broker is away or slow; the same events may be sent again. 413: it takes no such size.
        """
        try:
            await asyncio.gather(
                *[self.publisher.send(FEEDBACK_TOPIC, key_of(event), EVENT.encode(event)) for event in events]
            )
        except HoneError as error:
            raise not_stored(error) from None
        for event in events:
            accepted(event.kind, event.signed).inc()

    async def _read(self, http: Http, receive: Receive) -> list[Feedback]:
        document = read_document(await read_body(receive, self.limits.max_feedback_bytes, self.limits.body_timeout_s))
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


def acknowledge(event: Feedback, arrived: float, out: Cycle, error: HoneError | None) -> None:
    """Answer a request of the short way with what became of its event."""
    if error is not None:
        problem = not_stored(error)
        count_problem(problem)
        return out.answer_now(problem.status, problem.body(), PROBLEM_JSON, problem.headers())
    accepted(event.kind, event.signed).inc()
    out.answer_now(202, event_ids((event,)))
    count_answered(arrived)


def not_stored(error: HoneError) -> Problem:
    """Return what it means that the broker did not take an event."""
    if isinstance(error, InvalidEvent):
        return Problem(413, "body too large", str(error))
    detail = f"feedback was not stored ({error}): send it again with the same event_id"
    return Problem(503, "broker away", detail, retry_after_s=2)


def event_ids(events: Sequence[Feedback]) -> bytes:
    """Return the body of a 202."""
    return EVENT.encode({"event_ids": [event.event_id for event in events]})


@functools.cache
def accepted(kind: FeedbackKind, signed: bool) -> Counter:
    """Return the counter of such events."""
    return metrics.FEEDBACK_ACCEPTED.labels(kind, signed)


@functools.cache
def answered() -> Counter:
    """Return the counter of 202s."""
    return metrics.GATEWAY_REQUESTS.labels("feedback", 202)


def count_answered(arrived: float) -> None:
    """Count a request that was answered with 202."""
    answered().inc()
    metrics.FEEDBACK_SECONDS.observe(time.perf_counter() - arrived)


def count_problem(problem: Problem) -> None:
    """Count a request that was refused."""
    metrics.FEEDBACK_REJECTED.labels(problem.title).inc()
    metrics.GATEWAY_REQUESTS.labels("feedback", problem.status).inc()


def key_of(event: Feedback) -> bytes:
    """Return the topic key: the conversation, or what is known instead of it."""
    return (event.conversation_id or event.response_id or event.user_id).bytes
