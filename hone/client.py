"""A client of the gateway for Python apps: chat, and feedback that is neither lost nor counted twice.

    with HoneClient("http://127.0.0.1:8700", api_key=key) as hone:
        answer = hone.chat([{"role": "user", "content": "Hi"}], user="ann", conversation="c1")
        hone.thumbs(1, answer=answer.id)            # or, where the app drops ids: conversation="c1"

Every event gets its id before the first try and keeps it through all of them, so that a retry is no second vote.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar
from uuid import UUID

import httpx

from hone.errors import ConfigError, HoneError, InvalidEvent, MalformedToken, RejectedToken, Retryable
from hone.ids import uuid7

Messages = Sequence[Mapping[str, Any]]
Told = TypeVar("Told")

MAX_TRIES = 6
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 10.0
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class Answer:
    """One answer. `id` is what feedback names; keep it with the answer."""

    id: str
    text: str
    finish_reason: str | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Call:
    """One request, the same through all its tries."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class _Memory:
    """What both clients share: the shape of the calls, and the last answer of each conversation."""

    def __init__(self, api_key: str | None) -> None:
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._last: OrderedDict[str, tuple[str, str | None]] = OrderedDict()

    def chat(self, messages: Messages, user: str | None, conversation: str | None, options: Mapping[str, Any]) -> Call:
        headers = {"Idempotency-Key": str(uuid7())}
        headers |= {"X-User-Id": user} if user else {}
        headers |= {"X-Conversation-Id": conversation} if conversation else {}
        return Call("/v1/chat/completions", {"model": "hone", "messages": list(messages), **options}, headers)

    def answer(self, document: Mapping[str, Any], user: str | None, conversation: str | None) -> Answer:
        choice = document["choices"][0]
        if conversation:
            self._last.pop(conversation, None)
            self._last[conversation] = (document["id"], user)
            if len(self._last) > MAX_REMEMBERED:
                self._last.popitem(last=False)
        return Answer(document["id"], choice["message"]["content"] or "", choice["finish_reason"], document)

    def last(self, conversation: str) -> tuple[str, str | None]:
        """Return id and user of the conversation's last answer.

        Raises:
            MalformedToken: this client saw none, or too many since.
        """
        if conversation not in self._last:
            raise MalformedToken(f"no answer of conversation {conversation!r} is remembered: pass answer=<its id>")
        return self._last[conversation]

    def feedback(self, kind: str, value: Any, answer: str | None, conversation: str | None, **more: Any) -> Call:
        user: str | None = None
        if answer is None and conversation is not None:
            answer, user = self.last(conversation)
        if answer is None:
            raise MalformedToken("nothing to give feedback on: pass answer=<id> or conversation=<name>")
        return self.event({"response_id": answer, "kind": kind, "value": value, **more}, user)

    def event(self, body: Mapping[str, Any], user: str | None = None) -> Call:
        stamped = {"event_id": str(uuid7()), "occurred_at": datetime.now(UTC).isoformat(), **body}
        return Call("/v1/feedback", stamped, {"X-User-Id": user} if user else {})

    def outcome(self, name: str, value: float, answer: str | None, conversation: str | None, user: str | None) -> Call:
        subject = {"response_id": answer, "conversation_id": conversation, "user": user}
        named = {key: text for key, text in subject.items() if text}
        return self.event({**named, "kind": "outcome", "value": {"name": name, "value": value}})


class _Feedback(ABC, Generic[Told]):
    """The acts of feedback; each returns the event's id, in the way of the client, once the broker has the event."""

    _memory: _Memory

    @abstractmethod
    def _tell(self, call: Call) -> Told: ...

    def thumbs(
        self, value: int, *, answer: str | None = None, conversation: str | None = None, reasons: Sequence[str] = ()
    ) -> Told:
        """Say up (1), down (-1) or take it back (0)."""
        return self._tell(self._memory.feedback("thumbs", value, answer, conversation, reasons=list(reasons)))

    def edit(self, text: str, *, answer: str | None = None, conversation: str | None = None) -> Told:
        """Give the text that the answer should have had."""
        return self._tell(self._memory.feedback("edit", text, answer, conversation))

    def regenerate(self, *, answer: str | None = None, conversation: str | None = None, shown: float = 1.0) -> Told:
        """Say that another answer was wanted after this share of it had been shown."""
        return self._tell(self._memory.feedback("regenerate", shown, answer, conversation))

    def choice(self, chosen: str, rejected: Sequence[str]) -> Told:
        """Say which of several answers to the same messages was taken."""
        return self._tell(self._memory.feedback("choice", {"rejected": list(rejected)}, chosen, None))

    def comment(self, text: str, *, answer: str | None = None, conversation: str | None = None) -> Told:
        """Say something about an answer in words."""
        return self._tell(self._memory.feedback("comment", text, answer, conversation))

    def signal(self, name: str, *, answer: str | None = None, conversation: str | None = None) -> Told:
        """Report what was done with an answer, such as `copied`."""
        return self._tell(self._memory.feedback("signal", {"name": name}, answer, conversation))

    def outcome(
        self,
        name: str,
        value: float,
        *,
        answer: str | None = None,
        conversation: str | None = None,
        user: str | None = None,
    ) -> Told:
        """Report a result: of an answer, else (with a key scoped `feedback`) of a conversation or user."""
        return self._tell(self._memory.outcome(name, value, answer, conversation, user))


class HoneClient(_Feedback[UUID]):
    """Blocking client; safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._memory = _Memory(api_key)
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, headers=self._memory.headers, transport=transport, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(
        self, messages: Messages, *, user: str | None = None, conversation: str | None = None, **options: Any
    ) -> Answer:
        """Ask for an answer; `options` are OpenAI's (`temperature`, `max_tokens`, …). A retry is no regeneration.

        Raises:
            HoneError: see `raise_for`.
        """
        document = self._send(self._memory.chat(messages, user, conversation, options))
        return self._memory.answer(document, user, conversation)

    def _tell(self, call: Call) -> UUID:
        return UUID(self._send(call)["event_ids"][0])

    def _send(self, call: Call) -> Any:
        for number in range(MAX_TRIES):
            answer = self._try(call)
            if isinstance(answer, httpx.Response) and answer.status_code not in RETRIED:
                return document_of(answer)
            if number < MAX_TRIES - 1:
                time.sleep(wait_s(answer, number))
        give_up(call, answer)

    def _try(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.post(call.path, json=call.body, headers=call.headers)
        except httpx.TransportError as error:
            return error


class AsyncHoneClient(_Feedback[Awaitable[UUID]]):
    """The same for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._memory = _Memory(api_key)
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout_s, headers=self._memory.headers, transport=transport, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def chat(
        self, messages: Messages, *, user: str | None = None, conversation: str | None = None, **options: Any
    ) -> Answer:
        """See `HoneClient.chat`."""
        document = await self.send(self._memory.chat(messages, user, conversation, options))
        return self._memory.answer(document, user, conversation)

    def _tell(self, call: Call) -> Awaitable[UUID]:
        async def tell() -> UUID:
            return UUID((await self.send(call))["event_ids"][0])

        return tell()

    async def send(self, call: Call) -> Any:
        """Send a call with its retries, and return the answer's JSON: for ids that must be the same in every run.

        Raises:
            HoneError: see `raise_for`.
        """
        for number in range(MAX_TRIES):
            answer = await self._try(call)
            if isinstance(answer, httpx.Response) and answer.status_code not in RETRIED:
                return document_of(answer)
            if number < MAX_TRIES - 1:
                await asyncio.sleep(wait_s(answer, number))
        give_up(call, answer)

    async def _try(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.post(call.path, json=call.body, headers=call.headers)
        except httpx.TransportError as error:
            return error


def wait_s(answer: httpx.Response | httpx.TransportError, number: int) -> float:
    """Return how long to wait before the next try: what the server asks for, else twice as long each time."""
    asked = answer.headers.get("retry-after", "") if isinstance(answer, httpx.Response) else ""
    return min(float(asked) if asked.isdigit() else FIRST_WAIT_S * 2.0**number, MAX_WAIT_S)


def document_of(answer: httpx.Response) -> Any:
    """Return the JSON of a success.

    Raises:
        HoneError: see `raise_for`.
    """
    if not answer.is_success:
        raise_for(answer.status_code, problem_text(answer))
    return answer.json()


def problem_text(answer: httpx.Response) -> str:
    """Return what the server says of a refusal."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]


def raise_for(status: int, detail: str) -> NoReturn:
    """Raise what a refusal means.

    Raises:
        MalformedToken: 404, no such answer.
        RejectedToken: 403, the id is forged, expired or another user's, or the key lacks a scope.
        ConfigError: 401, no key that is known.
        InvalidEvent: another 4xx, a field is wrong.
        HoneError: anything else, such as a redirect.
    """
    kinds: dict[int, type[HoneError]] = {404: MalformedToken, 403: RejectedToken, 401: ConfigError}
    if status in kinds:
        raise kinds[status](detail)
    if 400 <= status < 500:
        raise InvalidEvent("refused", detail)
    raise HoneError(f"the gateway answered {status}: {detail}")


def give_up(call: Call, answer: httpx.Response | httpx.TransportError) -> NoReturn:
    """Raise after the last try.

    Raises:
        Retryable: the gateway or what is behind it is away.
    """
    said = repr(answer) if isinstance(answer, httpx.TransportError) else f"{answer.status_code}: {problem_text(answer)}"
    raise Retryable(f"{call.path} failed {MAX_TRIES} times, at last with {said}: try again later")
