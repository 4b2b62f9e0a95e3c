"""Simulated users over HTTP: they chat in OpenAI's shape through the gateway and send feedback, many at a time.

What users do follows from the seed; when it arrives does not, since requests race.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import uuid4

import httpx

from examples.support.corpus import Fact, Message, as_prompt, fact_of
from examples.support.taste import Taste
from examples.support.users import Action, User, make_users, react, thumb, wants_two
from hone.ids import uuid7

RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})
MAX_TRIES = 6
FIRST_WAIT_S = 0.2
RESEND_SHARE = 0.01
"""Share of events that a flaky client sends twice, under one event id."""


class DriveFailed(RuntimeError):
    """The gateway refused a request or stayed away; the message carries route, status and body."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the users chat."""

    gateway: str
    """Base address, such as http://127.0.0.1:8080."""
    model: str = "hone"
    api_key: str | None = None
    timeout_s: float = 30.0
    max_tokens: int = 120
    temperature: float = 1.0


@dataclass(slots=True)
class Sent:
    """What was sent and acknowledged so far."""

    num_turns: int = 0
    num_answers: int = 0
    num_truncated: int = 0
    """Answers that ended at the token limit."""
    events: Counter[str] = field(default_factory=Counter)
    """Distinct events acknowledged, by kind."""
    num_resent: int = 0
    """Deliveries beyond the first of an event: retries and double sends. Not in `events`."""
    num_retried_answers: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0

    @property
    def events_sent(self) -> int:
        """Distinct events that the gateway acknowledged."""
        return self.events.total()


Behaviour = Callable[[User, Fact, list[str], random.Random], list[Action]]


@dataclass(frozen=True, slots=True)
class Drive:
    """One crowd's traffic: connection, counters and how the users behave."""

    client: httpx.AsyncClient
    target: Target
    sent: Sent
    seed: int
    behaviour: Behaviour
    compares: bool
    """Some turns are asked twice from the start, for two answers side by side."""


def collect(
    target: Target,
    users: Iterable[User],
    *,
    seed: int = 0,
    in_flight: int = 16,
    max_turns_per_s: float | None = None,
    until: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Let every user ask all their questions and react in full, until all are done or `until()` says so.

    At most `in_flight` users wait for an answer at a time. `on_progress` is called after every turn.

    Raises:
        DriveFailed: the gateway refused a request, or failed one six times in a row.
    """
    turns = ((user, question) for user in users for question in user.questions)
    return asyncio.run(_run(target, turns, react, True, seed, in_flight, max_turns_per_s, until, on_progress))


def keep_rating(
    target: Target,
    taste: Taste,
    *,
    until: Callable[[], bool],
    seed: int = 0,
    prefix: str = "visitor",
    in_flight: int = 16,
    max_turns_per_s: float | None = None,
    on_progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Send ever new users, each with one question and (most of them) one thumb on its answer, until `until()`.

    This is the traffic of a rollout, whose unit of evidence is the user.

    Raises:
        DriveFailed: as `collect`.
    """
    turns = ((user, user.questions[0]) for user in fresh_users(taste, seed, prefix))
    return asyncio.run(_run(target, turns, thumb, False, seed, in_flight, max_turns_per_s, until, on_progress))


def fresh_users(taste: Taste, seed: int, prefix: str) -> Iterator[User]:
    """Endless users with one question each; no id comes twice."""
    for crowd in count():
        yield from make_users(500, taste, seed, prefix=f"{prefix}-{crowd}", questions_each=1)


def ask_all(target: Target, questions: Iterable[str], *, in_flight: int = 16) -> list[str]:
    """Ask each question once, as strangers whose answers nobody rates; answers in the order of the questions."""
    return asyncio.run(_ask_all(target, list(questions), in_flight))


async def _ask_all(target: Target, questions: list[str], in_flight: int) -> list[str]:
    slots = asyncio.Semaphore(in_flight)
    async with _client(target, in_flight) as client:
        drive = Drive(client, target, Sent(), 0, thumb, compares=False)

        async def ask_one(question: str) -> str:
            async with slots:
                return (await _ask(drive, as_prompt(question), f"judge-{uuid4().hex}", uuid4().hex))[1]

        return await asyncio.gather(*map(ask_one, questions))


async def _run(
    target: Target,
    turns: Iterator[tuple[User, str]],
    behaviour: Behaviour,
    compares: bool,
    seed: int,
    in_flight: int,
    max_turns_per_s: float | None,
    until: Callable[[], bool],
    on_progress: Callable[[Sent], None],
) -> Sent:
    sent = Sent()
    pace = Pace(max_turns_per_s)
    async with _client(target, in_flight) as client:
        drive = Drive(client, target, sent, seed, behaviour, compares)

        async def work() -> None:
            while not until() and (turn := next(turns, None)):
                await pace.wait()
                await _take_turn(drive, *turn)
                sent.num_turns += 1
                on_progress(sent)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(in_flight):
                    workers.create_task(work())
        except* DriveFailed as failures:
            raise failures.exceptions[0] from None
    return sent


def _client(target: Target, in_flight: int) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    return httpx.AsyncClient(
        base_url=target.gateway, headers=headers, timeout=target.timeout_s, limits=limits, trust_env=False
    )


@dataclass(slots=True)
class Pace:
    """Lets at most `per_s` callers through a second, evenly spaced; all of them at once when it is null."""

    per_s: float | None
    next_at: float = 0.0

    async def wait(self) -> None:
        """Return when the caller's turn has come."""
        if self.per_s is None:
            return
        at = max(self.next_at, time.monotonic())
        self.next_at = at + 1 / self.per_s
        await asyncio.sleep(at - time.monotonic())


async def _take_turn(drive: Drive, user: User, question: str) -> None:
    """One question in a conversation of its own, with everything the user does about it."""
    rng = random.Random(f"{drive.seed}-{user.id}-{question}")
    fact, conversation = fact_of(question), uuid4().hex
    ids: list[str] = []
    texts: list[str] = []
    asks_again = drive.compares and wants_two(user, rng)
    while len(texts) < 1 + asks_again:
        response_id, text = await _ask(drive, as_prompt(question), user.id, conversation)
        ids.append(response_id)
        texts.append(text)
        if asks_again and len(texts) == 1:
            continue
        actions = drive.behaviour(user, fact, texts, rng)
        for action in actions:
            await _tell(drive, user, action, ids, rng)
        asks_again = asks_again or any(action.kind == "regenerate" for action in actions)


async def _ask(drive: Drive, messages: list[Message], user: str, conversation: str) -> tuple[str, str]:
    body = {
        "model": drive.target.model,
        "messages": messages,
        "max_tokens": drive.target.max_tokens,
        "temperature": drive.target.temperature,
    }
    # With the same key a repeated request is a retry and not a regeneration.
    headers = {"X-User-Id": user, "X-Conversation-Id": conversation, "Idempotency-Key": str(uuid4())}
    answer, tries = await _post(drive.client, "/v1/chat/completions", body, headers)
    choice = answer["choices"][0]
    drive.sent.num_answers += 1
    drive.sent.num_retried_answers += tries - 1
    drive.sent.num_truncated += choice["finish_reason"] == "length"
    return answer["id"], choice["message"]["content"]


async def _tell(drive: Drive, user: User, action: Action, ids: list[str], rng: random.Random) -> None:
    body = feedback_body(action, ids, event_id=str(uuid7()), occurred_at=datetime.now(UTC))
    deliveries = 2 if rng.random() < RESEND_SHARE else 1
    for _ in range(deliveries):
        _, tries = await _post(drive.client, "/v1/feedback", body, {"X-User-Id": user.id})
        drive.sent.num_resent += tries
    drive.sent.num_resent -= 1
    drive.sent.events[action.kind] += 1
    if action.kind == "thumbs":
        drive.sent.thumbs_up += action.value == 1.0
        drive.sent.thumbs_down += action.value == -1.0


def feedback_body(action: Action, ids: list[str], *, event_id: str, occurred_at: datetime) -> dict[str, Any]:
    """The action as the feedback route takes it; `ids` are those of the turn's answers, oldest first."""
    value: Any = action.value
    if action.kind == "choice":
        assert isinstance(action.value, tuple)
        value = {"rejected": [ids[k] for k in action.value]}
    return {
        "event_id": event_id,
        "response_id": ids[action.answer],
        "kind": action.kind,
        "value": value,
        "reasons": list(action.reasons),
        "occurred_at": occurred_at.isoformat(),
    }


async def _post(
    client: httpx.AsyncClient, route: str, body: dict[str, Any], headers: dict[str, str]
) -> tuple[dict[str, Any], int]:
    """The answer's body and the number of tries that it took."""
    problem = ""
    for tries in range(1, MAX_TRIES + 1):
        try:
            response = await client.post(route, json=body, headers=headers)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if response.is_success:
                return response.json(), tries
            problem = f"{response.status_code}: {response.text[:500]}"
            if response.status_code not in RETRIED_STATUS:
                break
        if tries < MAX_TRIES:
            await asyncio.sleep(FIRST_WAIT_S * 2 ** (tries - 1))
    raise DriveFailed(f"POST {str(client.base_url).rstrip('/')}{route} failed {tries} times, at last with {problem}")
