"""Plays scripts against the gateway: a bounded number of people at a time, each act after the answer it is about."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx

from hone.client import AsyncHoneClient, Call, problem_text
from hone.errors import ConfigError, HoneError, InvalidEvent, Retryable, TokenError
from hone.replay.person import Ask, Script
from hone.replay.upstream import ANSWER_FIELD, ROW_FIELD
from hone.tokens import peek

UPSTREAM = "recorded"
"""The model name under which the gateway finds our server."""
UPSTREAM_TTL_S = 60.0
RENEW_EVERY_S = 20.0
TIMEOUT_S = 30.0


@dataclass
class Sent:
    """What the gateway took: the ids of the answers that it gave and of the events that it acknowledged."""

    num_played: int = 0
    answers: set[UUID] = field(default_factory=set)
    events: set[UUID] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    "Why conversations broke off, and how many did."


@dataclass(frozen=True)
class Target:
    """The gateway, and our server as it sees it."""

    gateway: str
    admin_key: str
    upstream: str


def play(
    target: Target,
    scripts: Iterable[Script],
    *,
    in_flight: int,
    rate: float | None,
    on_progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Play the scripts, at most `in_flight` at a time and `rate` begun a second; return what was taken.

    Raises:
        ConfigError: the gateway refuses our key. Retryable: it does not answer, after six tries.
    """
    return asyncio.run(_play(target, iter(scripts), in_flight, rate, on_progress))


async def _play(
    target: Target, scripts: Iterator[Script], in_flight: int, rate: float | None, on_progress: Callable[[Sent], None]
) -> Sent:
    sent, pace = Sent(), Pace(rate)
    async with AsyncHoneClient(target.gateway, api_key=target.admin_key, timeout_s=TIMEOUT_S) as client:

        async def work() -> None:
            while (script := next(scripts, None)) is not None:
                await pace.wait()
                await converse(client, script, sent)
                on_progress(sent)

        async with registered(target):
            try:
                async with asyncio.TaskGroup() as people:
                    for _ in range(in_flight):
                        people.create_task(work())
            except* HoneError as failures:
                raise first_of(failures) from None
    return sent


def first_of(group: BaseExceptionGroup[HoneError]) -> HoneError:
    """Return one of the errors with which several people ended at once."""
    found = group.exceptions[0]
    return first_of(found) if isinstance(found, BaseExceptionGroup) else found


@dataclass
class Pace:
    """Lets `per_s` callers through a second, evenly spaced; all of them at once when it is None."""

    per_s: float | None
    next_at: float = 0.0

    async def wait(self) -> None:
        """Return when the caller's turn has come."""
        if self.per_s is None:
            return
        at = max(self.next_at, time.monotonic())
        self.next_at = at + 1 / self.per_s
        await asyncio.sleep(at - time.monotonic())


@asynccontextmanager
async def registered(target: Target) -> AsyncIterator[None]:
    """Keep our server known to the gateway until the block ends; after a kill the registration runs out by itself."""
    await asyncio.to_thread(register, target, UPSTREAM_TTL_S)
    renewal = asyncio.create_task(renew(target))
    try:
        yield
    finally:
        renewal.cancel()
        with suppress(Retryable):
            await asyncio.to_thread(register, target, 1.0)


async def renew(target: Target) -> None:
    """Renew the registration until cancelled; a gateway that is away for a moment gets it the next time."""
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        with suppress(Retryable):
            await asyncio.to_thread(register, target, UPSTREAM_TTL_S)


def register(target: Target, expires_in_s: float) -> None:
    """Tell the gateway where the recorded answers are, for a while.

    Raises:
        ConfigError: it refuses our key or the address. Retryable: it does not answer.
    """
    url, headers = f"{target.gateway}/v1/upstreams/{UPSTREAM}", {"Authorization": f"Bearer {target.admin_key}"}
    body = {"url": target.upstream, "track": "replay", "expires_in_s": expires_in_s, "metadata": True}
    try:
        answer = httpx.put(url, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False)
    except httpx.TransportError as error:
        raise Retryable(
            f"no gateway answers at {target.gateway} ({error!r}): start it, or set HONE_GATEWAY_URL"
        ) from None
    if answer.is_error:
        raise ConfigError(
            f"PUT {url} got {answer.status_code} ({problem_text(answer)}): is HONE_ADMIN_KEY the gateway's?"
        )


async def converse(client: AsyncHoneClient, script: Script, sent: Sent) -> None:
    """Play one script; where the gateway refuses a step, the rest of it is left out."""
    answer_ids: list[str] = []
    try:
        for step in script.steps:
            if isinstance(step, Ask):
                answer = await client.send(question(script, step, len(answer_ids)))
                answer_ids.append(answer["id"])
                sent.answers.add(peek(answer["id"]).response_id)
            else:
                await client.send(Call("/v1/feedback", step.body(answer_ids), {"X-User-Id": script.name}))
                sent.events.add(step.event_id)
    except (InvalidEvent, TokenError) as error:
        sent.refused[str(error)] += 1
    sent.num_played += 1


def question(script: Script, step: Ask, position: int) -> Call:
    """Return the chat request. Its Idempotency-Key is new for each ask, and the same in every run."""
    recording = script.recording
    metadata = {ROW_FIELD: recording.id, ANSWER_FIELD: str(step.answer), "eval_only": str(recording.eval_only).lower()}
    if recording.license is not None:
        metadata["license"] = recording.license
    messages = [{"role": message.role, "content": message.content} for message in recording.prompt]
    headers = {
        "X-User-Id": script.name,
        "X-Conversation-Id": script.name,
        "Idempotency-Key": f"{script.name}-{position}",
    }
    return Call("/v1/chat/completions", {"model": UPSTREAM, "messages": messages, "metadata": metadata}, headers)
