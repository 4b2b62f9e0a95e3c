"""What an upstream's answer says, whole or as server-sent events: read once, after it was passed on."""

import msgspec

from serving.gateway.chunks import NO_USAGE, Usage, decode, decode_chunk, events
from serving.gateway.runs import PROBE_JSON, Frame, find_run

MAX_KEPT_BYTES = 8 << 20
"""More of an answer's text, or of one line, is passed on, but not kept for the record."""


class Summary(msgspec.Struct, frozen=True):
    """What the record keeps of an answer; without a finish reason it broke off."""

    text: str
    finish_reason: str | None
    num_prompt_tokens: int | None
    num_completion_tokens: int | None
    is_read: bool = True
    "Whether every piece was JSON of the expected shape."


FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def summarize(body: bytes, *, stream: bool) -> Summary:
    """Return what a body says; pieces that are no JSON of the expected shape are left out."""
    reading = Reading(stream=stream)
    reading.feed(body)
    return reading.summary()


class Reading:
    """What an answer says so far, read as it passes; of its bytes only an open line is kept."""

    def __init__(self, *, stream: bool) -> None:
        self._stream, self._open, self._size = stream, b"", 0
        self._frame: Frame | None = None
        self.texts: list[str] = []
        self.finish_reason: str | None = None
        self.usage = NO_USAGE
        self.is_read = True

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
            return self._summary(self.texts, self.finish_reason, self.usage, is_read=self.is_read)
        last = Reading(stream=True)
        for data in events(self._open) if self._stream else (self._open,):
            last.add(data)
        usage = last.usage if last.usage != NO_USAGE else self.usage
        is_read = self.is_read and last.is_read
        return self._summary(
            [*self.texts, *last.texts], last.finish_reason or self.finish_reason, usage, is_read=is_read
        )

    def _summary(self, texts: list[str], finish_reason: str | None, usage: Usage, *, is_read: bool) -> Summary:
        return Summary("".join(texts), finish_reason, usage.prompt_tokens, usage.completion_tokens, is_read)

    def add(self, data: bytes) -> None:
        """Take an event, or a whole completion."""
        try:
            chunk = decode_chunk(data)
        except msgspec.DecodeError:
            self.is_read = False
            return
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            part = choice.delta or choice.message
            self._say((part.content if part else None) or "")
            self.finish_reason = choice.finish_reason or self.finish_reason

    def _add_events(self, lines: bytes) -> None:
        """Take whole lines."""
        run = find_run(lines, self._frame)
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


class Rewriter:
    """Gives a foreign upstream's answer our id and the model name that the client asked for."""

    def __init__(self, answer_id: str, model: str) -> None:
        self._id, self._model = msgspec.Raw(msgspec.json.encode(answer_id)), msgspec.Raw(msgspec.json.encode(model))
        self._rest = b""
        self._frame: Frame | None = None
        "What the server puts around the texts of alike events."
        self._ours: Frame | None = None
        "What stands there instead."

    def document(self, body: bytes) -> bytes | None:
        """Return a completion or chunk with id and model replaced; None where it is no JSON object, or not readable."""
        try:
            fields = decode(FIELDS, body)
        except msgspec.DecodeError:
            return None
        fields.pop("system_fingerprint", None)
        return msgspec.json.encode(fields | {"id": self._id, "model": self._model})

    def feed(self, data: bytes) -> bytes:
        """Return the whole lines of the stream so far, rewritten; the last, open line waits."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        lines, self._rest = data[:end], data[end:]
        run = find_run(lines, self._frame)
        ours = self._frame_for(run.frame) if run is not None else None
        if run is None or ours is None:
            return self._lines(lines)
        return self._lines(run.before) + run.framed(ours) + self._lines(run.after)

    def _frame_for(self, frame: Frame) -> Frame | None:
        """Return what stands around the texts of events that are rewritten; None where the texts are no longer seen."""
        if self._frame != frame:
            head, _, tail = self._lines(frame.head + PROBE_JSON + frame.tail).partition(PROBE_JSON)
            self._frame, self._ours = frame, Frame(head, tail) if tail and PROBE_JSON not in tail else None
        return self._ours

    def _lines(self, lines: bytes) -> bytes:
        return b"".join([self._line(line) + b"\n" for line in lines.split(b"\n")[:-1]])

    def flush(self) -> bytes:
        """Return the line that was left open at the end; a piece of an event would only tell whose server it is."""
        rest, self._rest = self._rest.strip(), b""
        data = rest.removeprefix(b"data:").strip()
        return self._line(rest) if data == b"[DONE]" or is_object(data) else b""

    def _line(self, line: bytes) -> bytes:
        data = line[5:].strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            return line
        ours = self.document(data)
        return line if ours is None else b"data: " + ours


def is_object(data: bytes) -> bool:
    """Say whether this is a whole JSON object."""
    try:
        decode(FIELDS, data)
    except msgspec.DecodeError:
        return False
    return True
