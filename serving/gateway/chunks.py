"""The events of an OpenAI stream, as far as the gateway reads them."""

from collections.abc import Iterator
from typing import TypeVar

import msgspec


class Usage(msgspec.Struct, frozen=True):
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


NO_USAGE = Usage()
Shape = TypeVar("Shape")
CHUNK = msgspec.json.Decoder(Chunk)
MARK = b"data:"


def decode_chunk(data: bytes) -> Chunk:
    """Return an event, or a whole completion; raises as `decode`."""
    return decode(CHUNK, data)


def decode(decoder: msgspec.json.Decoder[Shape], data: bytes) -> Shape:
    """Return what a foreign server's JSON says; bytes that are no UTF-8 are read as replacement characters.

    Raises:
        msgspec.DecodeError: it is no JSON, of another shape, or nested too deeply to be read.
    """
    try:
        return decoder.decode(data)
    except UnicodeDecodeError:
        return decode(decoder, data.decode("utf-8", "replace").encode())
    except RecursionError:
        raise msgspec.DecodeError("JSON nested too deeply") from None


def events(body: bytes) -> Iterator[bytes]:
    """Yield the data of each whole event but the closing `[DONE]`."""
    for line in body.split(b"\n"):
        if line.startswith(MARK) and (data := line[5:].strip()) != b"[DONE]":
            yield data
