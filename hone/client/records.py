"""What an app says of an answer, as the records that the gateway would have made of it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from hone import ids
from hone.errors import ConfigError, InvalidEvent
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, FeedbackKind, Message, Response, Track
from hone.tokens import Claims, KeyRing, parse_keys

TOKEN_TTL = timedelta(days=30)
MAX_NAME_CHARACTERS = 128
Record = Response | Feedback


@dataclass(frozen=True)
class Identity:
    """The keys that make ids: the gateway's own, so that an id of one is an id of the other."""

    key: bytes
    ring: KeyRing

    @classmethod
    def of(cls, identity_key: str, token_keys: str) -> "Identity":
        """Return it from the texts of `HONE_IDENTITY_KEY` and `HONE_TOKEN_KEYS`.

        Raises:
            ConfigError: one of them is malformed or short. Neither is quoted.
        """
        try:
            key = bytes.fromhex(identity_key)
        except ValueError:
            key = b""
        if len(key) < 16:
            raise ConfigError("identity_key must be 16 bytes or more in hex: give the gateway's HONE_IDENTITY_KEY")
        return cls(key, parse_keys(token_keys))

    def response(
        self,
        messages: Sequence[Mapping[str, Any]],
        completion: str,
        *,
        model: str,
        user: str | None,
        conversation: str | None,
        now: datetime,
        fields: Mapping[str, Any],
    ) -> tuple[Response, str]:
        """Return the record of an answer, and the id (a feedback token) under which feedback may name it.

        Raises:
            InvalidEvent: a message is not {role, content}, or a field is not one of `Response`.
        """
        asked = tuple(message_of(message) for message in messages)
        user_id = ids.user_id(self.key, user) if user else ids.NOBODY
        conversation_id = ids.conversation_id(self.key, user_id, asked, conversation)
        turn_id = ids.turn_id(self.key, conversation_id, asked)
        made = {"response_id": ids.uuid7(), "conversation_id": conversation_id, "turn_id": turn_id, "user_id": user_id}
        said = {"messages": asked, "completion": completion, "model_version": model}
        # What a model ended by itself says "stop"; only such answers are trained on.
        usual = {
            "track": Track.STABLE,
            "created_at": now,
            "finish_reason": "stop" if fields.get("completed", True) else None,
        }
        record = convert({**usual, **fields, **made, **said}, Response)
        claims = Claims(record.response_id, conversation_id, turn_id, user_id, record.created_at + TOKEN_TTL)
        return record, self.ring.mint(claims)

    def feedback(self, body: Mapping[str, Any], user: str | None, now: datetime) -> Feedback:
        """Return the record of an act in the shape that `/v1/feedback` takes.

        Raises:
            MalformedToken, RejectedToken: the answer's id is none of ours, or ran out.
            InvalidEvent: a value is not what its kind needs.
        """
        kind = FeedbackKind(body["kind"])
        held = {"event_id": body["event_id"], "kind": kind, "occurred_at": body["occurred_at"], "received_at": now}
        subject, content = self.subject(body, user, now), self.content(kind, body, now)
        event: Feedback = convert({**held, **subject, **content}, Feedback)
        return event

    def subject(self, body: Mapping[str, Any], user: str | None, now: datetime) -> dict[str, Any]:
        """Return what an act is about."""
        if token := body.get("response_id"):
            claims = self.ring.verify(token, now, ids.user_id(self.key, user) if user else None)
            names = ("response_id", "conversation_id", "turn_id", "user_id")
            return {name: getattr(claims, name) for name in names}
        person, conversation = body.get("user") or user, body.get("conversation_id")
        if body["kind"] != FeedbackKind.OUTCOME or not (person or conversation):
            raise InvalidEvent("bad_value", f"{body['kind']} names no answer; outcomes may name a conversation or user")
        named = ids.conversation_id(self.key, ids.NOBODY, (), conversation) if conversation else None
        return {"user_id": ids.user_id(self.key, person) if person else ids.NOBODY, "conversation_id": named}

    def content(self, kind: FeedbackKind, body: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """Return what an act says."""
        value = body["value"]
        if kind in (FeedbackKind.EDIT, FeedbackKind.COMMENT):
            return {"text": value}
        if kind is FeedbackKind.CHOICE:
            return {"rejected": self.rejected(body, now)}
        if kind in (FeedbackKind.SIGNAL, FeedbackKind.OUTCOME):
            return {"name": named(value["name"]), "value": value.get("value")}
        low, high = (-1, 1) if kind is FeedbackKind.THUMBS else (0, 1)
        if not low <= value <= high or (kind is FeedbackKind.THUMBS and value not in (-1, 0, 1)):
            raise InvalidEvent("bad_value", f"{kind} of {value!r}: send -1, 0, 1 for thumbs, a share for regenerate")
        return {"value": value, "reasons": body.get("reasons", ())}

    def rejected(self, body: Mapping[str, Any], now: datetime) -> list[UUID]:
        """Return the answers that lost; all must be of the chosen one's turn."""
        chosen = self.ring.verify(body["response_id"], now)
        others = [self.ring.verify(token, now, chosen.user_id) for token in body["value"]["rejected"]]
        if not others or any(o.turn_id != chosen.turn_id or o.response_id == chosen.response_id for o in others):
            raise InvalidEvent("bad_value", "a choice rejects other answers to the same messages: name at least one")
        return [other.response_id for other in others]


def convert(fields: Mapping[str, Any], record: type[Any]) -> Any:
    """Return the typed record. Raises InvalidEvent, with the field, where one is wrong."""
    unknown = set(fields) - set(record.__struct_fields__)
    if unknown:
        raise InvalidEvent("wrong_shape", f"{', '.join(sorted(unknown))}: not a field of {record.__name__}")
    try:
        made = msgspec.convert(fields, record)
        body = msgspec.json.encode(made)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise InvalidEvent("wrong_shape", str(error)) from None
    if b"\\u0000" in body.replace(b"\\\\", b""):
        raise InvalidEvent("nul_character", "a text holds U+0000, which Postgres cannot store: remove it")
    return made


def message_of(message: Mapping[str, Any]) -> Message:
    """Return one message; of OpenAI's parts those that are text."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
    if not isinstance(message.get("role"), str) or not isinstance(content, str | None):
        raise InvalidEvent("wrong_shape", "messages: each needs a role and a content that is a text or parts")
    return Message(message["role"], content)


def named(name: str) -> str:
    """Return a name that can be stored."""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidEvent("bad_value", f"a name of {len(name)} characters: give 1 to {MAX_NAME_CHARACTERS}")
    return name


def addressed(record: Record) -> tuple[str, bytes, bytes]:
    """Return topic, key (the conversation, where there is one) and body of a record."""
    topic = RESPONSES_TOPIC if isinstance(record, Response) else FEEDBACK_TOPIC
    key = record.conversation_id or record.response_id or record.user_id
    return topic, key.bytes, msgspec.json.encode(record)
