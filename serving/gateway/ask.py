"""A chat request, read once: who asks, in which conversation and turn, and what is sent upstream."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import msgspec

from hone import ids
from hone.records import Message
from serving.http import Problem, Scope, header

PRIVATE = frozenset({"user", "safety_identifier", "metadata", "store"})
"""Fields that name people or are meant for hone: a model server does not get them."""
RECORDED_PARAMETERS = (
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop"),
    *("frequency_penalty", "presence_penalty", "stream"),
)
MAX_ID_CHARACTERS = 512
FIELDS = msgspec.json.Decoder(dict[str, Any])


class ChatMessage(msgspec.Struct):
    """One message as OpenAI's API allows it."""

    role: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatBody(msgspec.Struct):
    """What the gateway reads of a chat request; other fields pass through."""

    model: str
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    n: int | None = None
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None


class Ask(msgspec.Struct, frozen=True):
    """One request and the pseudonyms that it is stored under."""

    fields: Mapping[str, Any]
    model: str
    "The name that the client asked for; it is what the answer shows."
    stream: bool
    messages: tuple[Message, ...]
    user_id: UUID
    conversation_id: UUID
    turn_id: UUID
    metadata: Mapping[str, str]
    idempotency_key: UUID | None = None

    def upstream_body(self, model_version: str, *, metadata: bool = False, stream: bool | None = None) -> bytes:
        """Return the request for a model server, without the fields that name people; with `metadata` if it is told."""
        kept = PRIVATE - {"metadata"} if metadata else PRIVATE
        fields = {key: value for key, value in self.fields.items() if key not in kept}
        fields["model"] = model_version
        if stream is not None:
            fields["stream"] = stream
            fields.pop("stream_options", None)
        return msgspec.json.encode(fields)

    def parameters(self) -> dict[str, Any]:
        """Return the sampling parameters that the client set."""
        return {key: self.fields[key] for key in RECORDED_PARAMETERS if self.fields.get(key) is not None}


def read_ask(body: bytes, http: Scope, identity_key: bytes, response_id: UUID) -> Ask:
    """Return the request.

    Raises:
        Problem: 400, it is not a chat request, or asks for several answers at once.
    """
    fields, chat = decode_body(body)
    metadata = {key: value for key, value in (chat.metadata or {}).items() if isinstance(value, str)}
    messages = tuple(Message(message.role, recorded_text(message)) for message in chat.messages)
    named = header(http, b"x-user-id") or chat.safety_identifier or chat.user
    given = header(http, b"x-conversation-id") or metadata.get("conversation_id")
    check_length(named, given)
    user, conversation = people(identity_key, named, given, messages, response_id)
    retry = header(http, b"idempotency-key")
    return Ask(
        fields=fields,
        model=chat.model,
        stream=bool(chat.stream),
        messages=messages,
        user_id=user,
        conversation_id=conversation,
        turn_id=ids.turn_id(identity_key, conversation, messages),
        metadata=metadata,
        idempotency_key=ids.keyed_uuid(identity_key, "retry", user.bytes, retry.encode()) if retry else None,
    )


def decode_body(body: bytes) -> tuple[dict[str, Any], ChatBody]:
    """Return the body as it is and as far as it is read here.

    Raises:
        Problem: 400.
    """
    try:
        fields = FIELDS.decode(body)
        chat = msgspec.convert(fields, ChatBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "invalid_request_error", f"{error}: send an OpenAI chat request as JSON") from None
    if chat.n not in (None, 1):
        detail = f"n = {chat.n}: one answer a request is given; send the request again for another one"
        raise Problem(400, "invalid_request_error", detail)
    return fields, chat


def people(
    key: bytes, named: str | None, given: str | None, messages: tuple[Message, ...], response_id: UUID
) -> tuple[UUID, UUID]:
    """Return the pseudonyms of user and conversation.

    Who gives no name is a person of their own in each conversation that is named, and in each request otherwise: two
    strangers who ask the same must not look like one who asks again.
    """
    if named:
        user = ids.user_id(key, named)
    else:
        user = ids.keyed_uuid(key, "anonymous", given.encode() if given else response_id.bytes)
    return user, ids.conversation_id(key, user, messages, given)


def check_length(*names: str | None) -> None:
    """Raise Problem 400 if an id of user or conversation is absurdly long."""
    for name in names:
        if name and len(name) > MAX_ID_CHARACTERS:
            detail = f"an id of {len(name)} characters: send at most {MAX_ID_CHARACTERS}"
            raise Problem(400, "invalid_request_error", detail)


def recorded_text(message: ChatMessage) -> str | None:
    """Return the text of a message for the record, with a mark for tool calls, so that other calls are another turn."""
    text = plain_text(message.content)
    if not message.tool_calls:
        return text
    return (text or "") + part_text({"type": "tool_calls", "calls": message.tool_calls})


def plain_text(content: str | list[dict[str, Any]] | None) -> str | None:
    """Return the text of a message for the record; a part that is no text leaves a mark that tells it from others."""
    if isinstance(content, list):
        content = "".join(part_text(part) for part in content)
    return content.replace("\x00", "\ufffd") if content else content


def part_text(part: dict[str, Any]) -> str:
    """Return a part's text, or a mark with the hash of it."""
    if part.get("type") == "text":
        return str(part.get("text", ""))
    digest = ids.keyed_uuid(b"part", "part", msgspec.json.encode(part, order="sorted"))
    return f"[{part.get('type', 'part')} {digest.hex[:16]}]"
