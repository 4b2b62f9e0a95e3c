"""The file of recorded conversations: one JSON object a line, gzipped or not. Texts are data, and never printed."""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from hone.errors import ConfigError, InvalidEvent, NotEnoughData

GZIP_MAGIC = b"\x1f\x8b"


class RecordedMessage(msgspec.Struct, frozen=True):
    """One message of the prompt."""

    role: str
    content: str


class RecordedAnswer(msgspec.Struct, frozen=True):
    """One answer to the prompt."""

    text: str
    model: str | None = None


class Preference(msgspec.Struct, frozen=True):
    """Which of two answers (positions in `responses`) a judge preferred, and how surely."""

    a: int
    b: int
    p_b_better: float


class Recording(msgspec.Struct, frozen=True):
    """One conversation: its messages, the answers that were given, and what was said of them.

    A row without a licence is the operator's own.
    """

    id: str
    prompt: tuple[RecordedMessage, ...]
    responses: tuple[RecordedAnswer, ...]
    preferences: tuple[Preference, ...] = ()
    license: str | None = None
    eval_only: bool = False

    def comparable(self) -> list[Preference]:
        """Return the preferences between two answers that are not blank and differ in more than white space."""
        words = [answer.text.split() for answer in self.responses]
        return [p for p in self.preferences if words[p.a] and words[p.b] and words[p.a] != words[p.b]]


ROW = msgspec.json.Decoder(Recording)


def read_recordings(path: Path) -> list[Recording]:
    """Return the conversations of a file.

    Raises:
        ConfigError: it cannot be read.
        InvalidEvent: a line is not a conversation, or its id came before; names file and line.
        NotEnoughData: it holds none.
    """
    found: dict[str, Recording] = {}
    try:
        for number, line in enumerate(lines_of(path), 1):
            recording = read_row(line, f"{path} line {number}")
            if recording.id in found:
                raise InvalidEvent("bad_recording", f"{path} line {number}: id {recording.id!r} came before")
            found[recording.id] = recording
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot read {path} ({error}): give a .jsonl or .jsonl.gz file") from None
    if not found:
        raise NotEnoughData(f"{path} holds no conversation: one JSON object a line, see docs/cli.md")
    return list(found.values())


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines that are not blank."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        with gzip.open(raw) if is_gzip else raw as stream:
            yield from (line for line in stream if line.strip())


def read_row(line: bytes, place: str) -> Recording:
    """Return one conversation. Raises InvalidEvent, naming `place`."""
    try:
        recording = ROW.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent("bad_recording", f"{place}: {error}; see docs/cli.md for the fields") from None
    answers = range(len(recording.responses))
    for preference in recording.preferences:
        if preference.a not in answers or preference.b not in answers or not 0 <= preference.p_b_better <= 1:
            shown = json.dumps(msgspec.to_builtins(preference))
            raise InvalidEvent("bad_recording", f"{place}: preference {shown} names no answer, or is no probability")
    if not recording.prompt:
        raise InvalidEvent("bad_recording", f"{place}: the prompt has no message")
    return recording


def choose(recordings: Sequence[Recording], limit: int | None, seed: int) -> list[Recording]:
    """Return the first `limit` that can be rated, in an order that the seed decides: a larger limit only adds."""
    order = [recording for recording in recordings if recording.comparable()]
    random.Random(f"order-{seed}").shuffle(order)
    return order[:limit]
