"""Refused lines in a file of their own, for people to repair."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from hone.errors import ConfigError


@dataclass
class Rejects:
    """Counts refused lines, and writes each as one JSON object where there is a file."""

    out: IO[bytes] | None
    num: int = 0

    def add(self, topic: str, line: int, reason: str, detail: str, body: bytes | None) -> None:
        """Take one line: its file, number, reason, and bytes."""
        self.num += 1
        if self.out is not None:
            text = None if body is None else body.decode("utf-8", "backslashreplace")
            where = {"file": topic.removeprefix("file:"), "line": line}
            self.out.write(msgspec.json.encode(where | {"reason": reason, "detail": detail, "body": text}) + b"\n")


@contextmanager
def open_rejects(path: Path | None) -> Iterator[Rejects]:
    """Yield what takes refused lines.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        yield Rejects(None)
        return
    try:
        out = path.open("wb")
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror}): choose another file for --rejects") from None
    with out:
        yield Rejects(out)
