"""A client of the gateway for Python apps: chat, and feedback that is neither lost nor counted twice.

    with HoneClient("http://127.0.0.1:8700", api_key=key) as hone:
        answer = hone.chat([{"role": "user", "content": "Hi"}], user="ann", conversation="c1")
        hone.thumbs(1, answer=answer.id)            # or, where the app drops ids: conversation="c1"

Every event gets its id before the first try and keeps it through all of them, so that a retry is no second vote.
"""

import asyncio
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, NoReturn, Self
from uuid import UUID

import httpx

from hone.client.acts import Acts, Answer, Call, Memory, Messages
from hone.errors import ConfigError, HoneError, InvalidEvent, MalformedToken, RejectedToken, Retryable

MAX_TRIES = 6
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 10.0
RETRIED = frozenset({408, 429, 500, 502, 503, 504})


class HoneClient(Acts[UUID]):
    """Blocking client; safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._memory = Memory(api_key)
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


class AsyncHoneClient(Acts[Awaitable[UUID]]):
    """The same for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._memory = Memory(api_key)
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
