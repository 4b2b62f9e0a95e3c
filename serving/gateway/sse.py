"""What an upstream's answer says, whole or as server-sent events: read once, after it was passed on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

MAX_KEPT_BYTES = 8 << 20
"""More of an answer's text, or of one line, is passed on, but not kept for the record."""


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


class Summary(msgspec.Struct, frozen=True):
    """What the record keeps of an answer; without a finish reason it broke off."""

    text: str
    finish_reason: str | None
    num_prompt_tokens: int | None
    num_completion_tokens: int | None


NO_USAGE = Usage()
CHUNK = msgspec.json.Decoder(Chunk)
MARK = b"data:"
TEXTS = msgspec.json.Decoder(list[str])
TEXT = re.compile(rb'"content":\s?("(?:[^"\\\n]|\\.)*")')
PROBE = "\ue000"
JUST_TEXT = Summary(PROBE, None, None, None)
MIN_RUN_BYTES = 1024
"""Of whole lines: in fewer than a handful of events no run is looked for."""
FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def summarize(body: bytes, *, stream: bool) -> Summary:
    """Return what a body says; pieces that are no JSON of the expected shape are left out."""
    reading = Reading(stream=stream)
    reading.feed(body)
    return reading.summary()


@dataclass(frozen=True)
class Frame:
    """What surrounds the text of events that differ in nothing else: from `data:` to it, and on to the next event."""

    head: bytes
    tail: bytes


class Reading:
    """What an answer says so far, read as it passes; of its bytes only an open line is kept."""

    def __init__(self, *, stream: bool) -> None:
        self._stream, self._open, self._size = stream, b"", 0
        self._frame: Frame | None = None
        self.texts: list[str] = []
        self.finish_reason: str | None = None
        self.usage = NO_USAGE

    def feed(self, data: bytes) -> None:
        """Take the next bytes, of which the wire may have cut an event in two."""
        data = self._open + data
        end = data.rfind(b"\n") + 1 if self._stream else 0
        self._open = data[end:] if len(data) - end <= MAX_KEPT_BYTES else b""
        if end:
            self._add_events(data[:end])

    def summary(self) -> Summary:
        """Return all of it, with the line that is still open."""
        if not self._open:
            return self._summary(self.texts, self.finish_reason, self.usage)
        last = Reading(stream=True)
        for data in events(self._open) if self._stream else (self._open,):
            last.add(data)
        usage = last.usage if last.usage != NO_USAGE else self.usage
        return self._summary([*self.texts, *last.texts], last.finish_reason or self.finish_reason, usage)

    def _summary(self, texts: list[str], finish_reason: str | None, usage: Usage) -> Summary:
        return Summary("".join(texts), finish_reason, usage.prompt_tokens, usage.completion_tokens)

    def add(self, data: bytes) -> None:
        """Take an event, or a whole completion."""
        try:
            chunk = decode_chunk(data)
        except msgspec.DecodeError:
            return
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            part = choice.delta or choice.message
            self._say((part.content if part else None) or "")
            self.finish_reason = choice.finish_reason or self.finish_reason

    def _add_events(self, lines: bytes) -> None:
        """Take whole lines."""
        run = find_run(lines, self._frame) if len(lines) >= MIN_RUN_BYTES else None
        if run is not None:
            self._frame = run.frame
            self._add_each(run.before)
            self._say(run.text)
            lines = run.after
        self._add_each(lines)

    def _add_each(self, lines: bytes) -> None:
        for data in events(lines):
            self.add(data)

    def _say(self, text: str) -> None:
        self._size += len(text)
        if text and self._size <= MAX_KEPT_BYTES:
            self.texts.append(text)


def decode_chunk(data: bytes) -> Chunk:
    """Return an event, or a whole completion; bytes that are no UTF-8 are read as replacement characters.

    Raises:
        msgspec.DecodeError: it is no JSON, or of another shape.
    """
    try:
        return CHUNK.decode(data)
    except UnicodeDecodeError:
        return CHUNK.decode(data.decode("utf-8", "replace"))


@dataclass(frozen=True)
class Run:
    """A stream with many events that differ in nothing but their text: all their text, and the stream around them."""

    before: bytes
    text: str
    after: bytes
    frame: Frame


def find_run(body: bytes, known: Frame | None = None) -> Run | None:
    """Return the run of alike events of a stream, read at once; None where events differ.

    Such events end alike, and their ends, which hold a line break, occur in no text: the stream is split there. Without
    what they begin with the pieces are the strings of one JSON list, and one call reads it, in a fifth of the time of
    event by event. `known` is the frame of the events before, if there was one.
    """
    frame = known if known is not None and known.head in body else find_frame(body)
    if frame is None:
        return None
    head, tail = frame.head, frame.tail
    start, last = body.find(head), body.rfind(tail + head)
    end = body.find(tail, start if last < 0 else last + len(tail))
    if end < 0 or (start > 0 and body[start - 1 : start] != b"\n"):
        return None
    texts = [event.removeprefix(head) for event in body[start:end].split(tail)]
    try:
        read = TEXTS.decode(b"[" + b",".join(texts) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Run(body[:start], "".join(read), body[end + len(tail) :], frame) if len(read) == len(texts) else None


def find_frame(body: bytes) -> Frame | None:
    """Return what surrounds the text of the event in the middle: an event that holds a text and nothing else."""
    start = body.rfind(b"\n" + MARK, 0, len(body) // 2) + 1
    end = body.find(b"\n" + MARK, start) + 1
    text = TEXT.search(body, start, end)
    if not start or not end or text is None:
        return None
    head, tail = body[start : text.start(1)], body[text.end(1) : end]
    probe = Reading(stream=True)
    for data in events(head + msgspec.json.encode(PROBE) + tail):
        probe.add(data)
    return Frame(head, tail) if probe.summary() == JUST_TEXT else None


def events(body: bytes) -> Iterator[bytes]:
    """Yield the data of each whole event but the closing `[DONE]`."""
    for line in body.split(b"\n"):
        if line.startswith(MARK) and (data := line[5:].strip()) != b"[DONE]":
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
