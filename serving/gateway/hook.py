"""A team's own check of answers (safety, grounding), asked over HTTP before an answer leaves."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from hone import metrics
from hone.settings import Gateway as Limits
from serving.gateway.breaker import CLOSED, Policy, abandoned, admit, failed, succeeded
from serving.gateway.chunks import decode, events
from serving.gateway.exchange import MAX_COMPLETION_BYTES, Exchange
from serving.gateway.sse import Summary
from serving.gateway.wire import Wire

logger = logging.getLogger(__name__)

WITHHELD = "content_filter"
"""Finish reason, OpenAI's own, of an answer that the hook did not let out; such answers are never trained on."""
MAX_REASON_CHARACTERS = 500
OBJECT = msgspec.json.Decoder(dict[str, Any])
Text = Annotated[str, msgspec.Meta(max_length=MAX_COMPLETION_BYTES // 4)]


class HookAnswer(msgspec.Struct):
    """What a hook says. Other fields are ignored."""

    allow: bool
    replacement: Text | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What happens to an answer; `result` is what the metric counts."""

    result: str
    allow: bool
    replacement: str = ""
    reason: str = ""


class HookFailed(Exception):
    """The hook gave no answer to use. `result`: `timeout`, `unreachable`, `invalid`; `skipped`: it was not asked."""

    def __init__(self, result: str, detail: str) -> None:
        super().__init__(detail)
        self.result = result


class Hook:
    """The check. Make it inside the event loop that uses it."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """`limits.response_hook_url` is set."""
        self._url, self._passes = limits.response_hook_url or "", limits.response_hook_on_failure == "pass"
        self._timeout_s = limits.response_hook_timeout_s
        self._wire = Wire(connect_timeout_s=self._timeout_s, timeout_s=self._timeout_s)
        self._policy = Policy(limits.response_hook_breaker_failures, limits.response_hook_breaker_open_s)
        self._breaker, self._clock = CLOSED, clock
        self._failing = False

    async def judge(self, exchange: Exchange, summary: Summary) -> Judgement:
        """Return what to do with an answer; a hook that fails is answered for by `response_hook_on_failure`.

        A hook that failed too often in a row is not asked for a while, and nobody waits for it.
        """
        try:
            judgement = judgement_of(await self._try(question(exchange, summary)))
        except HookFailed as error:
            judgement = Judgement(error.result, self._passes, reason=f"the response hook failed: {error.result}")
        metrics.HOOK_CALLS.labels(judgement.result).inc()
        return judgement

    async def _try(self, body: bytes) -> HookAnswer:
        """Ask, if the breaker lets this call through, and tell it what came of it."""
        admitted = admit(self._breaker, self._clock())
        if admitted is None:
            raise HookFailed("skipped", "it failed too often in a row")
        was_trial, self._breaker = admitted.trying, admitted
        try:
            with metrics.HOOK_SECONDS.time():
                answer = await self._ask(body)
        except HookFailed as error:
            self._breaker = failed(self._breaker, self._policy, self._clock(), was_trial=was_trial)
            self._note(error)
            raise
        except asyncio.CancelledError:
            self._breaker = abandoned(self._breaker, was_trial=was_trial)
            raise
        self._breaker = succeeded(self._breaker)
        self._note(None)
        return answer

    async def close(self) -> None:
        """Close every connection that is idle."""
        await self._wire.close()

    async def _ask(self, body: bytes) -> HookAnswer:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._wire.request("POST", self._url, headers, body)
                with closing(reply):
                    answer = await reply.all()
        except TimeoutError:
            raise HookFailed("timeout", "no answer in time") from None
        except OSError as error:
            raise HookFailed("unreachable", f"{type(error).__name__}: {error}") from None
        return read_answer(reply.status, answer)

    def _note(self, error: HookFailed | None) -> None:
        """Log when the hook begins to fail, and when it answers again; metrics count each failure."""
        if error is not None and not self._failing:
            policy = "pass unchecked" if self._passes else "are withheld"
            logger.warning("response hook %s fails (%s); until it answers again, answers %s", self._url, error, policy)
        elif error is None and self._failing:
            logger.info("response hook %s answers again", self._url)
        self._failing = error is not None


def question(exchange: Exchange, summary: Summary) -> bytes:
    """Return what the hook is asked: never who asks, nor the answer's id, which is a credential."""
    return msgspec.json.encode(
        {
            "response_id": exchange.response_id,
            "model": exchange.ask.model,
            "model_version": exchange.model_version,
            "messages": exchange.ask.fields["messages"],
            "completion": summary.text,
            "finish_reason": summary.finish_reason,
        }
    )


def read_answer(status: int, body: bytes) -> HookAnswer:
    """Return the hook's answer.

    Raises:
        HookFailed: it is no 200, not of the shape, or allows an answer and replaces it at once.
    """
    if status != 200:
        raise HookFailed("invalid", f"status {status}")
    try:
        answer = msgspec.json.decode(body, type=HookAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HookFailed("invalid", str(error)) from None
    if answer.allow and answer.replacement is not None:
        raise HookFailed("invalid", "it allows the answer and gives a replacement: send allow false to replace it")
    return answer


def judgement_of(answer: HookAnswer) -> Judgement:
    """Return what the hook's answer means."""
    if answer.allow:
        return Judgement("allowed", True)
    result = "withheld" if answer.replacement is None else "replaced"
    reason = (answer.reason or "").replace("\x00", "\ufffd")[:MAX_REASON_CHARACTERS]
    return Judgement(result, False, answer.replacement or "", reason)


def withheld(body: bytes, replacement: str, *, stream: bool) -> bytes:
    """Return the answer with the replacement in place of all that it said, under the same id and model name."""
    if not stream:
        message = {"role": "assistant", "content": replacement}
        choice = {"index": 0, "message": message, "finish_reason": WITHHELD}
        return msgspec.json.encode(object_in(body) | {"choices": [choice]})
    base = next(map(object_in, events(body)), {})
    base.pop("usage", None)
    deltas: tuple[tuple[dict[str, str], str | None], ...] = (
        ({"role": "assistant", "content": replacement}, None),
        ({}, WITHHELD),
    )
    chunks = [base | {"choices": [{"index": 0, "delta": delta, "finish_reason": why}]} for delta, why in deltas]
    return b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def object_in(body: bytes) -> dict[str, Any]:
    """Return the JSON object; empty where it is none."""
    try:
        return decode(OBJECT, body)
    except msgspec.DecodeError:
        return {}
