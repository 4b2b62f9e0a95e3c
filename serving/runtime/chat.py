"""`POST /v1/chat/completions` of the runtime, in OpenAI's shape, streaming or whole.

The id is the caller's `X-Request-Id` and the model name its `X-Model-Alias`, so that a gateway need not rewrite
either; `x-hone-echo` in the answer says so.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any
from uuid import uuid4

import msgspec

from hone import metrics
from serving.http import (
    ClientGone,
    Problem,
    Receive,
    Scope,
    Send,
    answer,
    answer_problem,
    header,
    read_body,
    start,
    until_disconnect,
)
from serving.runtime.batcher import Batcher, GenerationFailed, Job
from serving.runtime.generation import Row, Sampling
from serving.runtime.model import LoadedModel

MAX_BODY_BYTES = 4 << 20
ECHO = [(b"x-hone-echo", b"id,model")]


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """What the runtime reads of a chat request; other fields are ignored."""

    model: str
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class Chat:
    """The route: models by version, and the batcher that runs them."""

    def __init__(self, models: Mapping[str, LoadedModel], batcher: Batcher) -> None:
        self.models, self.batcher = models, batcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a client that leaves takes its row out of the batch."""
        try:
            request = parse(await read_body(receive, MAX_BODY_BYTES))
            job = self.batcher.submit(*self._prepare(request))
        except Problem as problem:
            return await answer_problem(send, problem)
        except ClientGone:
            return
        reply = Reply(request, scope, job)
        work = asyncio.create_task(reply.stream(send) if request.stream else reply.whole(send))
        leaving = asyncio.create_task(until_disconnect(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            job.row.cancelled = not work.done()
            leaving.cancel()
            work.cancel()
        if not work.cancelled() and work.done():
            work.result()

    def _prepare(self, request: ChatRequest) -> tuple[LoadedModel, Row]:
        loaded = self.models.get(request.model)
        if loaded is None or loaded.is_reward:
            known = ", ".join(version for version, model in self.models.items() if not model.is_reward) or "none"
            raise Problem(404, "model not found", f"model {request.model!r} is not served here; served: {known}")
        ids = loaded.prompt_ids([as_text(message) for message in request.messages])
        room = loaded.context - len(ids)
        if room < 1:
            detail = f"{len(ids)} prompt tokens, the model holds {loaded.context} with the answer: send less"
            raise Problem(400, "context_length_exceeded", detail)
        return loaded, Row(ids, sampling(request, loaded, room), loaded.decode, streams=request.stream)


class Reply:
    """One answer on its way to the client."""

    def __init__(self, request: ChatRequest, scope: Scope, job: Job) -> None:
        self.job = job
        self.id = header(scope, b"x-request-id") or f"chatcmpl-{uuid4().hex}"
        self.model = header(scope, b"x-model-alias") or request.model
        self.created = int(time.time())
        self.separate_usage = request.stream_options is not None and request.stream_options.include_usage

    async def texts(self) -> AsyncIterator[str]:
        """Yield the answer's text as it grows.

        Raises:
            GenerationFailed: the model raised.
        """
        while (text := await self.job.texts.get()) is not None:
            if isinstance(text, GenerationFailed):
                raise text
            yield text
        count(self.job.row)

    async def whole(self, send: Send) -> None:
        """Send the answer in one piece."""
        try:
            text = "".join([text async for text in self.texts()])
        except GenerationFailed as error:
            return await answer_problem(send, Problem(500, "generation failed", str(error)))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
        choice["finish_reason"] = self.job.row.finish_reason
        document = self._document("chat.completion", [choice]) | {"usage": usage(self.job.row)}
        await answer(send, 200, msgspec.json.encode(document), headers=ECHO)

    async def stream(self, send: Send) -> None:
        """Send each piece as it is generated; headers leave with the first one, so that an early failure is a 500."""
        begun = False
        try:
            async for text in self.texts():
                delta = {"content": text} if begun else {"role": "assistant", "content": text}
                if not begun:
                    await start(send, 200, b"text/event-stream", [(b"cache-control", b"no-cache"), *ECHO])
                begun = True
                await self._event(send, self._chunk(delta, None))
        except GenerationFailed as error:
            if not begun:
                return await answer_problem(send, Problem(500, "generation failed", str(error)))
            await self._event(send, {"error": {"message": str(error), "type": "generation failed", "code": 500}})
            return await send({"type": "http.response.body", "body": b""})
        if not begun:
            await start(send, 200, b"text/event-stream", [(b"cache-control", b"no-cache"), *ECHO])
        await self._end(send)

    async def _end(self, send: Send) -> None:
        last = self._chunk({}, self.job.row.finish_reason)
        if self.separate_usage:
            await self._event(send, last)
            last = self._document("chat.completion.chunk", [])
        await self._event(send, last | {"usage": usage(self.job.row)})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._document("chat.completion.chunk", [choice])

    async def _event(self, send: Send, document: dict[str, Any]) -> None:
        body = b"data: " + msgspec.json.encode(document) + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})


def parse(body: bytes) -> ChatRequest:
    """Return the request.

    Raises:
        Problem: 400, it is not one.
    """
    try:
        return msgspec.json.decode(body, type=ChatRequest)
    except msgspec.DecodeError as error:
        raise Problem(400, "invalid request", f"{error}: send an OpenAI chat request") from None


def sampling(request: ChatRequest, loaded: LoadedModel, room: int) -> Sampling:
    """Return how to draw this answer; it never grows past `room` tokens."""
    asked = request.max_completion_tokens or request.max_tokens or loaded.default_max_tokens()
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Sampling(
        max_tokens=min(asked, room),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=tuple(text for text in stop if text),
    )


def as_text(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its content as one string: templates of text models know no parts."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return message | {"content": content or ""}


def usage(row: Row) -> dict[str, int]:
    """Return OpenAI's count of tokens."""
    read, written = len(row.prompt_ids), len(row.ids)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def count(row: Row) -> None:
    """Count a finished answer."""
    metrics.RUNTIME_ANSWERS.labels(row.finish_reason).inc()
    metrics.RUNTIME_TOKENS.labels("prompt").inc(len(row.prompt_ids))
    metrics.RUNTIME_TOKENS.labels("completion").inc(len(row.ids))
