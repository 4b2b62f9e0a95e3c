"""Files of history: JSON lines, one JSON list, and CSV, plain or gzipped, read record by record."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from hone.errors import ConfigError, HoneError
from ingest.decode import MAX_BODY_BYTES
from ingest.json_list import MARK, BrokenList, is_list, records

LINES, TABLES = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}
SUFFIXES = ", ".join((*LINES, *TABLES))


class Line(NamedTuple):
    """One record of a file."""

    number: int
    "From 1; of a row of a table that of its last line, of a list the record's own."
    body: bytes
    "JSON, or what should have been JSON."


class History:
    """An open file; `num_bytes` of it, as they lie on disk, have been read."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self.path, self.raw = path, raw
        self.suffix = suffix_of(path)
        self.content: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw

    @property
    def num_bytes(self) -> int:
        """Return how much of the file was read."""
        return self.raw.tell()

    def lines(self) -> Iterator[Line]:
        """Yield each record, and each line that is not blank where these should be records.

        Raises:
            HoneError: the file is broken or cut off; what came before has been yielded.
        """
        number = 0
        try:
            for line in self.read():
                number = line.number
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
            raise HoneError(
                f"{self.path} is broken after line {number} ({error}): get the whole file, run again"
            ) from None
        except BrokenList as error:
            raise HoneError(
                f"{self.path} is a JSON list that is broken after its record {number} ({error}): repair it, or write "
                "one record a line, and run again; what is stored stays once"
            ) from None

    def read(self) -> Iterator[Line]:
        """Yield records as the file's name and first lines say that they are written."""
        if self.suffix in TABLES:
            return rows(self.content, TABLES[self.suffix])
        first, second = first_lines(self.content)
        if first == b"{":
            raise HoneError(
                f"{self.path} holds a JSON object over several lines: write one object a line "
                f"(`jq -c . {self.path}`), or one list of objects"
            )
        if is_list(first, second):
            return (Line(number, body) for number, body in enumerate(records(self.content), 1))
        return plain(self.content)


@contextmanager
def open_history(path: Path) -> Iterator[History]:
    """Open a file of history.

    Raises:
        ConfigError: it cannot be read, or its name does not say what it is.
    """
    suffix_of(path)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})") from None
    with raw:
        yield History(path, raw)


def suffix_of(path: Path) -> str:
    """Return the ending that says what the file holds."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (*LINES, *TABLES):
        raise ConfigError(f"{path}: the name must end in one of {SUFFIXES}, or one of these and .gz")
    return suffix


def first_lines(content: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the first two lines that are not blank, as far as a message may be long; the content is at its start."""
    lines = (line.removeprefix(MARK).strip() for line in iter(lambda: content.readline(MAX_BODY_BYTES), b""))
    found = [*islice(filter(None, lines), 2), b"", b""]
    content.seek(0)
    return found[0], found[1]


def plain(content: IO[bytes]) -> Iterator[Line]:
    """Yield lines as they are."""
    for number, line in enumerate(content, 1):
        if body := line.removeprefix(MARK if number == 1 else b"").strip():
            yield Line(number, body)


def rows(content: IO[bytes], delimiter: str) -> Iterator[Line]:
    """Yield rows as JSON objects of texts; empty cells are left out, so that a default may stand for them."""
    csv.field_size_limit(2 * MAX_BODY_BYTES)
    # Bytes that are no UTF-8 pass as lone surrogates, so that their row is refused and kept, and not the whole file.
    text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter=delimiter, restkey="_more")
    for row in reader:
        yield Line(reader.line_num, body_of({name: cell for name, cell in row.items() if cell not in ("", None)}))
    text.detach()


def body_of(row: dict[str, str]) -> bytes:
    """Return the row as JSON, or its bytes as they are where they are no UTF-8."""
    try:
        return msgspec.json.encode(row)
    except UnicodeEncodeError:
        return ",".join(map(str, row.values())).encode("utf-8", "surrogateescape")
