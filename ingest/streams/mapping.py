"""From a foreign document to hone's record: ids made as the gateway makes them, everything else as the mapping says."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from hone import ids
from hone.errors import InvalidEvent, TokenError
from hone.records import Feedback, FeedbackKind, Message, Response, Track
from hone.tokens import KeyRing
from ingest.batch import RawMessage
from ingest.decode import check, reject_not_finite, reject_nul
from ingest.streams.config import RECORDS, Field, Stream
from ingest.streams.values import EPOCH, as_text, defaulted, finder, read_time, translated

Fields = dict[str, Any]
Get = Callable[[Any, RawMessage], Any]

UUID_LENGTHS = frozenset({32, 36, 38, 45})
"""Bare, with dashes, in braces, as an urn."""
TIMES = frozenset({"occurred_at", "received_at", "created_at"})
TEXTS = frozenset({"text", "name", "completion", "model_version", "finish_reason", "license"})


@dataclass(frozen=True)
class Secrets:
    """What ids are made with, the same as the gateway's, so that a person is one person whichever way they come."""

    identity_key: bytes
    ring: KeyRing | None
    "Verifies ids of the gateway's answers; None where no stream has any."


class Mapper:
    """Maps the documents of one stream."""

    def __init__(self, name: str, stream: Stream, secrets: Secrets) -> None:
        self.stream, self.secrets = stream, secrets
        self.space = (stream.topic or name).encode()
        "Event ids that are no uuids count within it: the same in the topic and in files of its history."
        self.record = RECORDS[stream.record]
        self.fields = {name: field for name, field in stream.fields.items() if isinstance(field, Field)}
        self.getters = {name: getter(name, field) for name, field in self.fields.items()}
        self.only = [(finder(path), frozenset(texts)) for path, texts in stream.only.items()]
        self.has_token = any(field.token for field in self.fields.values())

    def wants(self, document: Any) -> bool:
        """Say whether the stream reads this document, or passes over it."""
        return all(as_text(find(document)) in texts for find, texts in self.only)

    def map(self, document: Any, message: RawMessage) -> Response | Feedback:
        """Return the record in a document.

        Raises:
            InvalidEvent: with reason missing, unmapped, bad_timestamp, bad_token, wrong_shape, nul_character or
                bad_value; the detail names the field.
        """
        if not isinstance(document, dict):
            raise InvalidEvent("wrong_shape", f"the message holds {type(document).__name__}, not an object")
        found = {name: value for name, get in self.getters.items() if (value := get(document, message)) is not None}
        sent_at = datetime.fromtimestamp(message.timestamp_ms / 1000, UTC) if message.timestamp_ms > 0 else None
        if self.record is Feedback:
            self.settle_feedback(found, message, sent_at)
        else:
            self.settle_response(found, sent_at)
        record = self.convert(found)
        check(record)
        return record

    def convert(self, found: Fields) -> Response | Feedback:
        """Return the typed record; numbers may be written as texts, as CSV has them."""
        try:
            record: Response | Feedback = msgspec.convert(found, self.record, strict=False)
            reject_nul(record)
            reject_not_finite(record)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise InvalidEvent("wrong_shape", str(error)) from None
        return record

    def settle_feedback(self, found: Fields, message: RawMessage, sent_at: datetime | None) -> None:
        """Make ids and times of an act of feedback."""
        key = self.secrets.identity_key
        self.require(found, "kind")
        found.setdefault("signed", False)
        self.settle_people(found)
        if found["kind"] != FeedbackKind.OUTCOME:
            self.require(found, "response_id")
        if self.has_token and "response_id" in found:
            self.open_tokens(found, sent_at)
        elif "response_id" in found:
            found["response_id"] = self.id_of("response", found["response_id"])
            found["rejected"] = [self.id_of("response", item) for item in as_list(found.get("rejected"))]
        if "event_id" in found:
            found["event_id"] = self.id_of("event", found["event_id"], self.space)
        else:
            # The time belongs to it only where the body tells none: lines of a file know no Kafka timestamp.
            at = b"" if "occurred_at" in found else message.timestamp_ms.to_bytes(8, "big", signed=True)
            found["event_id"] = ids.keyed_uuid(key, "event", self.space, message.body or b"", at)
        if "reasons" in found:
            found["reasons"] = as_list(found["reasons"])
        occurred_at = found.setdefault("occurred_at", sent_at)
        if occurred_at is None:
            self.require({}, "occurred_at")
        found.setdefault("received_at", sent_at or occurred_at)

    def settle_response(self, found: Fields, sent_at: datetime | None) -> None:
        """Make ids, messages and time of an answer."""
        self.require(found, "response_id", "messages", "completion", "model_version")
        key, given = self.secrets.identity_key, found.get("conversation_id")
        messages = found["messages"] = messages_of(found["messages"], self.place("messages"))
        turn = found.get("turn_id")
        self.settle_people(found)
        found["response_id"] = self.id_of("response", found["response_id"])
        if given is None:
            found["conversation_id"] = ids.conversation_id(key, found["user_id"], messages)
        conversation = found["conversation_id"]
        found["turn_id"] = (
            ids.turn_id(key, conversation, messages)
            if turn is None
            else ids.keyed_uuid(key, "turn", conversation.bytes, as_text(turn).encode())
        )
        found.setdefault("track", Track.STABLE)
        if found.setdefault("created_at", sent_at) is None:
            self.require({}, "created_at")

    def settle_people(self, found: Fields) -> None:
        """Make the pseudonyms of person and conversation."""
        key = self.secrets.identity_key
        user = found.get("user_id")
        found["user_id"] = ids.NOBODY if user is None else ids.user_id(key, as_text(user))
        if "conversation_id" in found:
            given = as_text(found["conversation_id"])
            found["conversation_id"] = ids.conversation_id(key, ids.NOBODY, (), given)

    def open_tokens(self, found: Fields, sent_at: datetime | None) -> None:
        """Replace ids of the gateway's answers by what they prove. Whoever holds the id, the act is the person's."""
        at = found.get("occurred_at") or sent_at or EPOCH
        assert self.secrets.ring is not None, "read_secrets makes one where a stream has tokens"
        try:
            claims = self.secrets.ring.verify(as_text(found["response_id"]), at)
            others = [self.secrets.ring.verify(as_text(item), at) for item in as_list(found.get("rejected"))]
        except TokenError as error:
            raise InvalidEvent("bad_token", str(error)) from None
        if any(other.turn_id != claims.turn_id for other in others):
            raise InvalidEvent("bad_token", "rejected names answers to other messages")
        found |= {
            "response_id": claims.response_id,
            "conversation_id": claims.conversation_id,
            "turn_id": claims.turn_id,
            "user_id": claims.user_id,
            "rejected": [other.response_id for other in others],
            "signed": True,
        }

    def id_of(self, purpose: str, value: Any, *space: bytes) -> UUID:
        """Return a uuid as it stands, and of any other name always the same one."""
        if isinstance(value, UUID):
            return value
        text = as_text(value).strip()
        try:
            # Trying costs more than the hash: most names do not have a uuid's length.
            return UUID(text if len(text) in UUID_LENGTHS else "")
        except ValueError:
            return ids.keyed_uuid(self.secrets.identity_key, purpose, *space, text.encode())

    def require(self, found: Fields, *names: str) -> None:
        """Refuse a message that lacks one of the fields."""
        for name in names:
            if name not in found:
                raise InvalidEvent("missing", f"{name}: nothing at {self.place(name)}")

    def place(self, name: str) -> str:
        """Return where a field was looked for."""
        return self.fields[name].place if name in self.fields else "any path: map it"


def getter(name: str, field: Field) -> Get:
    """Return what finds, defaults and translates the value of one field."""
    find = source_of(field)

    def get(document: Any, message: RawMessage) -> Any:
        value = translated(field, defaulted(field, find(document, message)))
        if value is None:
            return None
        if name in TIMES:
            return read_time(field, value)
        return as_text(value) if name in TEXTS and not isinstance(value, dict | list) else value

    return get


def source_of(field: Field) -> Get:
    """Return what finds the raw value."""
    if field.kafka == "key":
        return lambda _, message: message.key.decode("utf-8", "backslashreplace") if message.key else None
    if field.kafka == "timestamp":
        return lambda _, message: datetime.fromtimestamp(message.timestamp_ms / 1000, UTC)
    if field.path is None:
        return lambda *_: field.const
    find = finder(field.path)
    return lambda document, _: find(document)


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, one value as a list of it, nothing as none; a text with commas as its parts."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def messages_of(value: Any, place: str) -> tuple[Message, ...]:
    """Return the messages: of a list in OpenAI's shape, or of a text that is the one question.

    Raises:
        InvalidEvent: `wrong_shape`.
    """
    if isinstance(value, str):
        return (Message("user", value),)
    try:
        return tuple(Message(as_text(item["role"]), content_of(item.get("content"))) for item in value)
    except (TypeError, KeyError, AttributeError):
        raise InvalidEvent(
            "wrong_shape", f"messages at {place}: neither a text nor a list of {{role, content}}"
        ) from None


def content_of(content: Any) -> str | None:
    """Return a message's text; of OpenAI's parts those that are text."""
    if isinstance(content, list):
        return "".join(as_text(part.get("text", "")) for part in content if part.get("type") in ("text", None))
    return None if content is None else as_text(content)
