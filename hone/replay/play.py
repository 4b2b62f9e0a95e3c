"""Plays scripts against the gateway: a bounded number of people at a time, each act after the answer it is about."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx

from hone.errors import ConfigError, HoneError, Retryable
from hone.replay.person import Act, Ask, Script
from hone.replay.upstream import ANSWER_FIELD, ROW_FIELD
from hone.tokens import peek

UPSTREAM = "recorded"
"""The model name under which the gateway finds our server."""
UPSTREAM_TTL_S = 60.0
RENEW_EVERY_S = 20.0
MAX_TRIES = 6
FIRST_WAIT_S = 0.2
RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
TIMEOUT_S = 30.0


@dataclass
class Sent:
    """What the gateway took: the ids of the answers that it gave and of the events that it acknowledged."""

    num_played: int = 0
    answers: set[UUID] = field(default_factory=set)
    events: set[UUID] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    "Why conversations broke off, and how many did."


class Refused(HoneError):
    """The gateway does not take this request, now or later; its conversation ends."""


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
    target: Target, scripts: Iterable[Script], in_flight: int, rate: float | None, on_progress: Callable[[Sent], None]
) -> Sent:
    sent, queue, pace = Sent(), iter(scripts), Pace(rate)
    headers = {"Authorization": f"Bearer {target.admin_key}"}
    limits = httpx.Limits(max_connections=in_flight + 1, max_keepalive_connections=in_flight + 1)
    async with httpx.AsyncClient(
        base_url=target.gateway, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as client:

        async def work() -> None:
            while (script := next(queue, None)) is not None:
                await pace.wait()
                await converse(client, script, sent)
                on_progress(sent)

        await register(client, target.upstream, UPSTREAM_TTL_S)
        renewal = asyncio.create_task(keep_registered(client, target.upstream))
        try:
            async with asyncio.TaskGroup() as people:
                for _ in range(in_flight):
                    people.create_task(work())
        except* HoneError as failures:
            raise first_of(failures) from None
        finally:
            renewal.cancel()
            with suppress(HoneError):
                await register(client, target.upstream, 1.0)
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


async def register(client: httpx.AsyncClient, url: str, expires_in_s: float) -> None:
    """Tell the gateway where the recorded answers are, for a while."""
    body = {"url": url, "track": "replay", "expires_in_s": expires_in_s}
    await request(client, "PUT", f"/v1/upstreams/{UPSTREAM}", body, {})


async def keep_registered(client: httpx.AsyncClient, url: str) -> None:
    """Renew the registration until cancelled; it runs out by itself when this process is killed."""
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        with suppress(Retryable):
            await register(client, url, UPSTREAM_TTL_S)


async def converse(client: httpx.AsyncClient, script: Script, sent: Sent) -> None:
    """Play one script; where the gateway refuses a step, the rest of it is left out."""
    answer_ids: list[str] = []
    try:
        for step in script.steps:
            if isinstance(step, Ask):
                answer_ids.append(await ask(client, script, step, len(answer_ids)))
                sent.answers.add(peek(answer_ids[-1]).response_id)
            else:
                await tell(client, script, step, answer_ids)
                sent.events.add(step.event_id)
    except Refused as error:
        sent.refused[str(error)] += 1
    sent.num_played += 1


async def ask(client: httpx.AsyncClient, script: Script, step: Ask, position: int) -> str:
    """Ask the turn once more and return the answer's id. The key is new for each ask, and the same in every run."""
    recording = script.recording
    metadata = {ROW_FIELD: recording.id, ANSWER_FIELD: str(step.answer), "eval_only": str(recording.eval_only).lower()}
    if recording.license is not None:
        metadata["license"] = recording.license
    body = {
        "model": UPSTREAM,
        "messages": [{"role": message.role, "content": message.content} for message in recording.prompt],
        "metadata": metadata,
    }
    headers = {
        "X-User-Id": script.name,
        "X-Conversation-Id": script.name,
        "Idempotency-Key": f"{script.name}-{position}",
    }
    answer = await request(client, "POST", "/v1/chat/completions", body, headers)
    return str(answer["id"])


async def tell(client: httpx.AsyncClient, script: Script, act: Act, answer_ids: list[str]) -> None:
    """Send one act of feedback; returns once the broker has it."""
    await request(client, "POST", "/v1/feedback", act.body(answer_ids), {"X-User-Id": script.name})


async def request(
    client: httpx.AsyncClient, method: str, route: str, body: dict[str, Any], headers: dict[str, str]
) -> dict[str, Any]:
    """Return the answer's body; what may pass by itself is tried six times, with the same ids.

    Raises:
        ConfigError: our key is refused. Refused: this request is. Retryable: no try succeeded.
    """
    problem = ""
    for number in range(MAX_TRIES):
        try:
            response = await client.request(method, route, json=body, headers=headers)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if response.is_success:
                found: dict[str, Any] = response.json()
                return found
            problem = f"HTTP {response.status_code}: {reason_of(response)}"
            if response.status_code not in RETRIED_STATUS:
                break
        await asyncio.sleep(FIRST_WAIT_S * 2**number)
    else:
        raise Retryable(
            f"{method} {client.base_url}{route.lstrip('/')} failed {MAX_TRIES} times, at last with {problem}"
        )
    if response.status_code in (401, 403) and route.startswith("/v1/upstreams"):
        raise ConfigError(f"the gateway refuses HONE_ADMIN_KEY ({problem}): it must be the gateway's own")
    raise Refused(f"{route}: {problem}")


def reason_of(response: httpx.Response) -> str:
    """Return the title of a problem body, or the start of any other; never the text of a conversation."""
    try:
        return str(response.json()["title"])
    except (ValueError, KeyError, TypeError):
        return response.text[:100]
