"""`POST /v1/chat/completions`: routed, passed on byte by byte, and recorded once it is over."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
from prometheus_client import Counter, Histogram

from hone import metrics
from hone.ids import uuid7
from hone.records import Response, Track
from hone.settings import Gateway as Limits
from hone.store.keys import Scope
from hone.tokens import KeyRing
from serving.gateway.ask import Ask, read_ask
from serving.gateway.exchange import Exchange
from serving.gateway.guard import Guard
from serving.gateway.hook import Hook, withheld
from serving.gateway.recorder import Recorder
from serving.gateway.shadow import Shadow
from serving.gateway.sse import Rewriter, summarize
from serving.gateway.turns import FirstAnswer, Turns
from serving.gateway.upstreams import Opened, UpstreamFailed, Upstreams
from serving.http import (
    PROBLEM_JSON,
    AsgiOutlet,
    ClientGone,
    Outlet,
    Problem,
    Receive,
    Send,
    read_body,
    until_disconnect,
)
from serving.http import Scope as Http
from serving.router import Decision, Router
from serving.short_way import Cycle

logger = logging.getLogger(__name__)

CLIENTS_FAULT = frozenset({400, 413, 422})
"""Statuses of a model server that tell the client something about its own request."""
RATE_LIMITED = 429
"""Of a model server: our quota there is used up."""
CLIENT_LEFT = 499
"""What is counted, and never sent, for a client that left before the first byte; the number is nginx's."""
EVENT_STREAM = b"text/event-stream"
NO_CACHE = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class Chat:
    """The route. Nothing is buffered: a chunk leaves before the next one is read, unless a hook judges answers."""

    limit = 64 * 1024
    "Bytes of a request on the short way; a key is asked for before more than that is read."

    def __init__(
        self,
        limits: Limits,
        ring: KeyRing,
        identity_key: bytes,
        guard: Guard,
        router: Router,
        upstreams: Upstreams,
        recorder: Recorder,
        shadow: Shadow,
        hook: Hook | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits, self.ring, self.identity_key, self.guard = limits, ring, identity_key, guard
        self.router, self.upstreams, self.recorder, self.shadow = router, upstreams, recorder, shadow
        self.hook, self.clock = hook, clock
        self.turns = Turns()
        self._in_flight = 0
        metrics.GATEWAY_IN_FLIGHT.set_function(lambda: self._in_flight)

    def take(self, http: Http, body: bytes, out: Cycle) -> bool:
        """Answer a request on the short way."""
        if len(body) > self.limits.max_chat_bytes:
            return False
        out.run(self._serve(http, body, out))
        return True

    async def __call__(self, http: Http, receive: Receive, send: Send) -> None:
        """Answer a request on the ordinary way, unless the client leaves first."""
        out = AsgiOutlet(send)
        read = functools.partial(read_body, receive, self.limits.max_chat_bytes, self.limits.body_timeout_s)
        exchange = await self._admit(http, read, out)
        if exchange is None:
            return
        answering, gone = asyncio.current_task(), asyncio.Event()
        assert answering is not None
        leaving = asyncio.create_task(cancel_when_gone(receive, answering, gone))
        try:
            await self._respond(exchange, out)
        except asyncio.CancelledError:
            if not gone.is_set() or answering.uncancel() > 0:
                raise
        finally:
            leaving.cancel()

    async def _serve(self, http: Http, body: bytes, out: Outlet) -> None:
        exchange = await self._admit(http, functools.partial(given, body), out)
        if exchange is not None:
            await self._respond(exchange, out)

    async def _admit(self, http: Http, read: Callable[[], Awaitable[bytes]], out: Outlet) -> Exchange | None:
        """Check key, size and shape, and decide who answers; None where the client has heard why nobody does."""
        arrived = time.perf_counter()
        try:
            await self.guard.require(http, Scope.CHAT)
            self._check_room()
            return self._begin(http, await read(), arrived)
        except Problem as problem:
            count("refused" if problem.status < 500 else "failed", problem.status)
            await tell(out, problem)
        except ClientGone:
            pass
        except Exception:
            count("failed", 500)
            raise
        return None

    def _check_room(self) -> None:
        if self._in_flight >= self.limits.max_in_flight:
            detail = f"{self._in_flight} answers are being written: try again in a second"
            raise Problem(503, "overloaded", detail, retry_after_s=1)

    def _begin(self, http: Http, body: bytes, arrived: float) -> Exchange:
        response_id = uuid7()
        ask = read_ask(body, http, self.identity_key, response_id)
        named = self.upstreams.named(ask.model)
        decision = Decision(named.track, named.name) if named else self._decide(ask)
        return Exchange(ask, decision, named, response_id, arrived)

    def _decide(self, ask: Ask) -> Decision:
        again = self.turns.again(ask.turn_id, ask.idempotency_key)
        decision = self.router.decide(ask.user_id, self.clock(), again)
        if decision is None:
            detail = "no stable model yet: `hone models add DIR --stable`, with the controller running"
            raise Problem(503, "no model", detail, retry_after_s=2)
        return decision

    async def _respond(self, exchange: Exchange, out: Outlet) -> None:
        """Answer one request; whatever was answered, even in part, is recorded."""
        self._in_flight += 1
        opened = None
        try:
            opened = await self._open(exchange)
            if self.hook is not None:
                await self._judged(exchange, opened, self.hook, out)
            else:
                await (self._relay if exchange.ask.stream else self._whole)(exchange, opened, out)
        except UpstreamFailed as error:
            exchange.ended = time.perf_counter()
            exchange.failed, exchange.refused = True, error.status in {*CLIENTS_FAULT, RATE_LIMITED}
            await give_up(exchange, error, out)
        except asyncio.CancelledError:
            exchange.left, exchange.status = True, CLIENT_LEFT
            raise
        finally:
            if opened is not None and not exchange.whole:
                opened.reply.close()
            self._in_flight -= 1
            self._finish(exchange)

    async def _open(self, exchange: Exchange) -> Opened:
        """Ask the arm that was chosen; if it is the canary and fails before its first byte, ask stable."""
        token = self.ring.mint(exchange.claims(self.clock(), self.limits.token_ttl_s))
        decision = exchange.decision
        try:
            return await self._ask(exchange, token, decision.model_version)
        except UpstreamFailed:
            if decision.fallback is None:
                raise
            opened = await self._ask(exchange, token, decision.fallback)
            exchange.fallback = True
            metrics.CHAT_FALLBACKS.inc()
            return opened

    async def _ask(self, exchange: Exchange, token: str, model_version: str) -> Opened:
        ask = exchange.ask
        exchange.token = token
        exchange.asked_at = time.perf_counter()
        named = exchange.named
        target = named.target() if named else self.upstreams.target(model_version)
        body = ask.upstream_body(target.model, metadata=named is not None and named.metadata)
        try:
            opened = await self.upstreams.open(target, body, answer_id=token, model=ask.model, stream=ask.stream)
        except UpstreamFailed as error:
            self.upstreams.note(model_version, None if error.status in CLIENTS_FAULT else error)
            raise
        self.upstreams.note(model_version, None)
        return opened

    async def _whole(self, exchange: Exchange, opened: Opened, out: Outlet) -> None:
        """Send an answer that came in one piece."""
        exchange.upstream_ended = time.perf_counter()
        exchange.reading.feed(opened.first)
        rewriter = None if opened.echoes else Rewriter(exchange.token, exchange.ask.model)
        body = rewriter.document(opened.first) if rewriter else opened.first
        if body is None:
            logger.warning("%s gave an answer that is no JSON object, or is nested too deeply", exchange.model_version)
            exchange.failed = True
            return await give_up(exchange, UpstreamFailed(None, "an answer that cannot be read"), out)
        exchange.first_byte = time.perf_counter()
        exchange.begun = True
        self._remember(exchange)
        await out.answer(200, body)
        exchange.whole, exchange.ended = True, time.perf_counter()

    async def _judged(self, exchange: Exchange, opened: Opened, hook: Hook, out: Outlet) -> None:
        """Send what the hook lets out. Nothing of an answer leaves, or is recorded, before the hook has seen all."""
        stream = exchange.ask.stream
        try:
            body = opened.first + await opened.reply.all()
        except OSError as error:
            logger.warning("%s broke off in the middle: %r", exchange.model_version, error)
            exchange.failed = True
            return await give_up(exchange, UpstreamFailed(None, repr(error)), out)
        summary = summarize(body, stream=stream)
        if not summary.is_read or summary.finish_reason is None:
            logger.warning(
                "%s gave an answer that no hook can judge: it breaks off, or is unreadable", exchange.model_version
            )
            exchange.failed = True
            return await give_up(exchange, UpstreamFailed(None, "an answer that cannot be judged"), out)
        judgement = await hook.judge(exchange, summary)
        exchange.upstream_ended = time.perf_counter()
        if not judgement.allow:
            exchange.withheld = judgement.reason
            body = withheld(body, judgement.replacement, stream=stream)
        exchange.reading.feed(body)
        rewriter = None if opened.echoes else Rewriter(exchange.token, exchange.ask.model)
        if rewriter:
            body = rewriter.feed(body) + rewriter.flush() if stream else rewriter.document(body) or body
        exchange.begun, exchange.first_byte = True, time.perf_counter()
        self._remember(exchange)
        await (out.answer(200, body, EVENT_STREAM, NO_CACHE) if stream else out.answer(200, body))
        exchange.whole, exchange.ended = True, time.perf_counter()

    async def _relay(self, exchange: Exchange, opened: Opened, out: Outlet) -> None:
        """Pass the stream on as it comes."""
        rewriter = None if opened.echoes else Rewriter(exchange.token, exchange.ask.model)
        await out.start(200, EVENT_STREAM, NO_CACHE)
        exchange.begun, reply, data = True, opened.reply, opened.first
        try:
            while not reply.is_over:
                try:
                    await pass_on(exchange, rewriter.feed(data) if rewriter else data, out)
                finally:
                    exchange.reading.feed(data)
                data = await reply.some()
            exchange.whole = True
        except OSError as error:
            logger.warning("%s broke off in the middle: %r", exchange.model_version, error)
            exchange.failed, data = True, b""
        exchange.upstream_ended = time.perf_counter()
        exchange.reading.feed(data)
        last = rewriter.feed(data) + rewriter.flush() if rewriter else data
        if exchange.whole:
            self._remember(exchange)
        await out.end(last if exchange.whole else last + broken_event())
        exchange.ended = time.perf_counter()
        exchange.first_byte = exchange.first_byte or exchange.ended

    def _remember(self, exchange: Exchange) -> None:
        """Note a whole answer while duels are on; before its last byte leaves, after which it may be asked again."""
        if self.router.holds_duels() and exchange.is_complete():
            self.turns.note(exchange.ask.turn_id, first_answer(exchange))

    def _finish(self, exchange: Exchange) -> None:
        """Count what was answered, and have it recorded."""
        if exchange.refused:
            return count("refused", exchange.status, exchange.track)
        exchange.ended = exchange.ended or time.perf_counter()
        self.recorder.record(functools.partial(settle, exchange, self.clock()))
        if exchange.whole:
            self.router.served[exchange.track] += 1
            if exchange.decision.shadow:
                self.shadow.copy(exchange)


async def pass_on(exchange: Exchange, data: bytes, out: Outlet) -> None:
    """Send a chunk; of a foreign server's first bytes there may be no whole line yet."""
    if data:
        await out.write(data)
        exchange.first_byte = exchange.first_byte or time.perf_counter()


async def given(body: bytes) -> bytes:
    """Return a body that is there already."""
    return body


async def give_up(exchange: Exchange, error: UpstreamFailed, out: Outlet) -> None:
    """Send what became of a request that no model server answered."""
    problem = as_problem(error)
    exchange.status = problem.status
    await tell(out, problem)


async def tell(out: Outlet, problem: Problem) -> None:
    """Send a problem."""
    await out.answer(problem.status, problem.body(), PROBLEM_JSON, problem.headers())


def settle(exchange: Exchange, ended_at: datetime) -> Response:
    """Return the record of an answer that has ended, and count it."""
    response = exchange.response(ended_at)
    observe(exchange, completed=response.completed)
    return response


async def cancel_when_gone(receive: Receive, answering: "asyncio.Task[None]", gone: asyncio.Event) -> None:
    """End `answering` once the client has left."""
    await until_disconnect(receive)
    gone.set()
    answering.cancel()


def first_answer(exchange: Exchange) -> FirstAnswer | None:
    """Return what a regenerate of this turn repeats; None unless the user's own arm of a rollout answered."""
    decision = exchange.decision
    if decision.rollout_id is None or decision.duel or exchange.fallback:
        return None
    return FirstAnswer(decision.rollout_id, exchange.track, exchange.ask.idempotency_key)


def as_problem(error: UpstreamFailed) -> Problem:
    """Return what the client hears: its own mistakes in the server's words, else nothing that tells the arm."""
    if error.status in CLIENTS_FAULT:
        return Problem(error.status or 400, "invalid_request_error", upstream_message(error.detail))
    if error.status == RATE_LIMITED:
        detail = "the model server takes no more requests for now: try again later"
        return Problem(RATE_LIMITED, "rate limited upstream", detail, retry_after_s=error.retry_after_s)
    return Problem(502, "upstream failed", "the model server failed before it answered: try again", retry_after_s=1)


def upstream_message(body: str) -> str:
    """Return the message in an OpenAI or RFC 9457 error body, or the body."""
    try:
        document = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return body
    error = document.get("error")
    return str(document.get("detail") or (error.get("message") if isinstance(error, dict) else None) or body)


def broken_event() -> bytes:
    """Return the event that ends a stream whose server broke off; no `[DONE]` follows it."""
    error = {"message": "the model server broke off: ask again", "type": "upstream failed", "code": 502}
    return b"\n\ndata: " + msgspec.json.encode({"error": error}) + b"\n\n"


def count(outcome: str, status: int, track: Track | str = "none") -> None:
    """Count an answer."""
    for counter in counters(outcome, status, track):
        counter.inc()


@functools.cache
def counters(outcome: str, status: int, track: Track | str) -> tuple[Counter, Counter]:
    """Return the counters of such an answer; prometheus-client looks its children up under a lock."""
    return metrics.CHAT_ANSWERS.labels(track, outcome), metrics.GATEWAY_REQUESTS.labels("chat", status)


@functools.cache
def clocks(track: Track) -> tuple[Histogram, Histogram]:
    """Return the histograms of an arm's answers: to the end, and to the first byte."""
    return metrics.CHAT_SECONDS.labels(track), metrics.CHAT_FIRST_BYTE_SECONDS.labels(track)


def observe(exchange: Exchange, *, completed: bool) -> None:
    """Count a chat, its times, and what the gateway added to the upstream's time."""
    status = 200 if exchange.begun else exchange.status
    count(exchange.outcome(completed=completed), status, exchange.track)
    ended = exchange.ended or exchange.arrived
    to_end, to_first_byte = clocks(exchange.track)
    to_end.observe(ended - exchange.arrived)
    if exchange.first_byte is not None:
        to_first_byte.observe(exchange.first_byte - exchange.arrived)
    if exchange.asked_at is not None and exchange.upstream_ended is not None:
        added = (exchange.asked_at - exchange.arrived) + (ended - exchange.upstream_ended)
        metrics.CHAT_OVERHEAD_SECONDS.observe(added)
