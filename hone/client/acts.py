"""What every client shares: the acts of feedback, the shape of the calls, and the last answer of each conversation."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from hone.errors import MalformedToken
from hone.ids import uuid7

Messages = Sequence[Mapping[str, Any]]
Told = TypeVar("Told")

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


class Memory:
    """What both clients share: the shape of the calls, and the last answer of each conversation."""

    def __init__(self, api_key: str | None) -> None:
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._last: OrderedDict[str, tuple[str, str | None]] = OrderedDict()

    def chat(self, messages: Messages, user: str | None, conversation: str | None, options: Mapping[str, Any]) -> Call:
        """Return the call of a chat; its key is the same through all tries."""
        headers = {"Idempotency-Key": str(uuid7())}
        headers |= {"X-User-Id": user} if user else {}
        headers |= {"X-Conversation-Id": conversation} if conversation else {}
        return Call("/v1/chat/completions", {"model": "hone", "messages": list(messages), **options}, headers)

    def answer(self, document: Mapping[str, Any], user: str | None, conversation: str | None) -> Answer:
        """Return the answer in OpenAI's document, and remember it as its conversation's last."""
        choice = document["choices"][0]
        if conversation:
            self.remember(conversation, document["id"], user)
        return Answer(document["id"], choice["message"]["content"] or "", choice["finish_reason"], document)

    def remember(self, conversation: str, answer: str, user: str | None) -> None:
        """Keep the id of the conversation's last answer, and who asked for it."""
        self._last.pop(conversation, None)
        self._last[conversation] = (answer, user)
        if len(self._last) > MAX_REMEMBERED:
            self._last.popitem(last=False)

    def last(self, conversation: str) -> tuple[str, str | None]:
        """Return id and user of the conversation's last answer.

        Raises:
            MalformedToken: this client saw none, or too many since.
        """
        if conversation not in self._last:
            raise MalformedToken(f"no answer of conversation {conversation!r} is remembered: pass answer=<its id>")
        return self._last[conversation]

    def feedback(self, kind: str, value: Any, answer: str | None, conversation: str | None, **more: Any) -> Call:
        """Return the call of an act on an answer, named or remembered. Raises MalformedToken without one."""
        user: str | None = None
        if answer is None and conversation is not None:
            answer, user = self.last(conversation)
        if answer is None:
            raise MalformedToken("nothing to give feedback on: pass answer=<id> or conversation=<name>")
        return self.event({"response_id": answer, "kind": kind, "value": value, **more}, user)

    def event(self, body: Mapping[str, Any], user: str | None = None) -> Call:
        """Return the call of an act, with its id and time."""
        stamped = {"event_id": str(uuid7()), "occurred_at": datetime.now(UTC).isoformat(), **body}
        return Call("/v1/feedback", stamped, {"X-User-Id": user} if user else {})

    def outcome(self, name: str, value: float, answer: str | None, conversation: str | None, user: str | None) -> Call:
        """Return the call of an outcome of whatever is named."""
        subject = {"response_id": answer, "conversation_id": conversation, "user": user}
        named = {key: text for key, text in subject.items() if text}
        return self.event({**named, "kind": "outcome", "value": {"name": name, "value": value}})


class Acts(ABC, Generic[Told]):
    """The acts of feedback; each returns the event's id, in the way of the client, once the broker has the event."""

    _memory: Memory

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
