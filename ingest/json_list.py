"""The records of a file that is one JSON list, read piece by piece: the whole need not fit into memory."""

import io
import json
import re
from collections.abc import Iterator
from typing import IO

import msgspec

MARK = b"\xef\xbb\xbf"
"""Of UTF-8: what some programs write first into a file."""
PIECE_CHARACTERS = 1 << 20
MAX_RECORD_CHARACTERS = 1 << 24
"""Beyond it a record is taken for one that never ends. What is larger than a message may be is refused later."""

OPENS_RECORDS = re.compile(rb"\[\s*(\{.*|\]?)$", re.DOTALL)
BETWEEN = re.compile(r"[\s,]*")
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)
"""Finds where a record ends, and judges as little as it can: that is for whoever reads the record."""


class BrokenList(ValueError):
    """Where a list cannot be read on, and why."""


def is_list(first: bytes, second: bytes) -> bool:
    """Say whether a file with these first lines is one list of objects, and not one list a line."""
    return bool(OPENS_RECORDS.match(first)) and not (second.startswith(b"[") and is_json(first))


def is_json(text: bytes) -> bool:
    """Say whether the text is one whole JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def records(content: IO[bytes]) -> Iterator[bytes]:
    """Yield the records of one JSON list as they stand there.

    Raises:
        BrokenList: nothing after this can be read. What came before has been yielded.
    """
    text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape")
    held, at = text.read(PIECE_CHARACTERS).lstrip().removeprefix("["), 0
    while True:
        at = BETWEEN.match(held, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if held[at : at + 1] == "]":
            break
        try:
            end = DECODER.raw_decode(held, at)[1] if at < len(held) else at
            problem = "it is not closed: the file is cut off"
        except (json.JSONDecodeError, RecursionError) as error:
            end, problem = len(held), getattr(error, "msg", str(error))
        if end < len(held):
            yield held[at:end].encode("utf-8", "surrogateescape")
            at = end
        elif len(held) - at < MAX_RECORD_CHARACTERS and (more := text.read(max(PIECE_CHARACTERS, len(held) - at))):
            held, at = held[at:] + more, 0
        else:
            raise BrokenList(problem)
    if held[at + 1 :].strip() or text.read(PIECE_CHARACTERS).strip():
        raise BrokenList("something follows the end of the list")
    text.detach()
