"""What an upstream's answer says, whole or as server-sent events: read once, after it was passed on."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

MAX_TEE_BYTES = 8 << 20
"""More of an answer than this is passed on, but not kept for the record."""


class Usage(msgspec.Struct):
    """OpenAI's count of tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Delta(msgspec.Struct):
    """A piece of an answer, or the whole message."""

    content: str | None = None


class Choice(msgspec.Struct):
    """An answer or a piece of one."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """A completion, or one event of its stream."""

    choices: list[Choice] = []
    usage: Usage | None = None


@dataclass(frozen=True)
class Summary:
    """What the record keeps of an answer; without a finish reason it broke off."""

    text: str
    finish_reason: str | None
    num_prompt_tokens: int | None
    num_completion_tokens: int | None


CHUNK = msgspec.json.Decoder(Chunk)
FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def summarize(body: bytes | bytearray, *, stream: bool) -> Summary:
    """Return what the answer says; pieces that are no JSON of the expected shape are left out."""
    texts, finish_reason, usage = [], None, Usage()
    for data in events(body) if stream else (bytes(body),):
        try:
            chunk = CHUNK.decode(data)
        except msgspec.DecodeError:
            continue
        usage = chunk.usage or usage
        for choice in chunk.choices[:1]:
            part = choice.delta or choice.message
            texts.append((part.content if part else None) or "")
            finish_reason = choice.finish_reason or finish_reason
    return Summary("".join(texts), finish_reason, usage.prompt_tokens, usage.completion_tokens)


def events(body: bytes | bytearray) -> Iterator[bytes]:
    """Yield the data of each whole event but the closing `[DONE]`."""
    for line in bytes(body).split(b"\n"):
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield data


class Rewriter:
    """Gives a foreign upstream's answer our id and the model name that the client asked for."""

    def __init__(self, answer_id: str, model: str) -> None:
        self._id, self._model = msgspec.Raw(msgspec.json.encode(answer_id)), msgspec.Raw(msgspec.json.encode(model))
        self._rest = b""

    def document(self, body: bytes) -> bytes:
        """Return a completion or chunk with id and model replaced; what is not a JSON object stays as it is."""
        try:
            fields = FIELDS.decode(body)
        except msgspec.DecodeError:
            return body
        fields.pop("system_fingerprint", None)
        return msgspec.json.encode(fields | {"id": self._id, "model": self._model})

    def feed(self, data: bytes) -> bytes:
        """Return the whole lines of the stream so far, rewritten; the last, open line waits."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def flush(self) -> bytes:
        """Return the line that was left open at the end; a piece of an event would only tell whose server it is."""
        rest, self._rest = self._rest.strip(), b""
        data = rest.removeprefix(b"data:").strip()
        return self._line(rest) if data == b"[DONE]" or is_object(data) else b""

    def _line(self, line: bytes) -> bytes:
        data = line[5:].strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            return line
        return b"data: " + self.document(data)


def is_object(data: bytes) -> bool:
    """Say whether this is a whole JSON object."""
    try:
        FIELDS.decode(data)
    except msgspec.DecodeError:
        return False
    return True
