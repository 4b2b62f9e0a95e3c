"""The command `backfill`: rehearse, or read all of it into the tables and say what became of it."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import msgspec
from sqlalchemy.orm import Session, sessionmaker

from hone.cli.output import progress
from hone.errors import ConfigError, HoneError
from hone.health import Pulse
from hone.settings import Settings
from hone.store.history import count_attempts, give_again, letters_of
from hone.store.offsets import Group
from ingest import consumer
from ingest.backfill import GROUP, FileSource, WholeTopic, decode_line, fingerprint, rehearse
from ingest.batch import Decode, decode_native
from ingest.breaker import Breaker
from ingest.files import TABLES, suffix_of
from ingest.streams.book import Book

Say = Callable[[str], None]


@dataclass(frozen=True)
class Backfill:
    """What the command was asked for."""

    settings: Settings
    sessions: sessionmaker[Session]
    book: Book
    halt: Event
    say: Say

    def loop(self, source: FileSource | WholeTopic, group: Group, decode: Decode) -> None:
        """Run the consumer's loop over a source until it is done, or `halt` is set."""
        limits = self.settings.ingest
        consumer.run(
            consumer.Ingest(
                source=source,
                sessions=self.sessions,
                group=group,
                owner=f"{socket.gethostname()}:{os.getpid()}",
                max_rows=limits.max_rows,
                poll_timeout_s=limits.poll_timeout_s,
                on_retention_gap="continue",
                breaker=Breaker(limits.max_invalid_share, limits.max_invalid_run),
                pulse=Pulse(),
                decode=decode,
            ),
            source.stop,
        )

    def decode_of(self, path: Path, stream: str | None) -> Decode:
        """Return what reads a file's lines: the stream, or hone's own shape where none is named.

        Raises:
            ConfigError: there is no such stream, or a table comes without one.
        """
        if stream is not None:
            return self.book.file_source(stream).decode
        if suffix_of(path) in TABLES:
            raise ConfigError(
                f"{path} is a table: name the stream that maps its columns (--stream), see docs/streams.md"
            )
        return decode_line

    def file(self, path: Path, stream: str | None, *, again: bool) -> str:
        """Store all lines of a file that are not stored yet; return the name under which they are known.

        Raises:
            HoneError: the file is broken, too many lines are invalid, or it was stopped; run again, it goes on.
        """
        decode, prefix = self.decode_of(path, stream), fingerprint(path, stream)
        with self.sessions.begin() as session:
            attempt = count_attempts(session, GROUP, prefix)
            if again and attempt:
                give_again(session, prefix, datetime.now(UTC))
            attempt = attempt + 1 if again or not attempt else attempt
        group = Group(GROUP, f"{prefix}#{attempt}")
        with bar(path.stat().st_size, path.name, in_bytes=True) as show:
            source = FileSource(path, self.halt, show)
            try:
                self.loop(source, group, decode)
            finally:
                source.close()
        if not source.is_done:
            raise HoneError(f"{path} was stopped before its end: run the same again, it goes on where it stopped")
        return group.incarnation

    def topic(self, topic: str, incarnation: str | None) -> None:
        """Store every message that a topic holds now.

        Raises:
            HoneError: there is no such topic, no stream maps it, or it was stopped; run again, it goes on.
        """
        self.book.require_topic(topic)
        servers = self.settings.kafka_bootstrap_servers
        if not servers:
            raise ConfigError("kafka_bootstrap_servers is not set: set HONE_KAFKA_BOOTSTRAP_SERVERS")
        shown: list[Callable[[int], None]] = []
        source = WholeTopic(servers, topic, self.halt, lambda number: shown[-1](number) if shown else None)
        try:
            life = incarnation or source.cluster_id()
            if life is None:
                raise HoneError(f"no Kafka broker answers at {servers}")
            with bar(source.num_messages, topic, in_bytes=False) as show:
                shown.append(show)
                self.loop(source, Group(GROUP, life), self.book.decode if self.book.topics else decode_native)
        finally:
            source.close()
        if not source.is_done:
            raise HoneError(f"{topic} was stopped before its end: run the same again, it goes on where it stopped")

    def rehearsal(self, paths: Sequence[Path], stream: str | None) -> None:
        """Say what would become of each file; store nothing."""
        for path in paths:
            with bar(path.stat().st_size, path.name, in_bytes=True) as show:
                found = rehearse(path, self.decode_of(path, stream), show, self.say)
            self.say(f"{path}: would be {found.text()}")
        self.say("dry run: nothing was stored; what is there already was not looked up")

    def rejects(self, path: Path, incarnations: Sequence[str]) -> None:
        """Write the refused lines, one JSON object each: file, line, reason, detail, body."""
        with self.sessions() as session, path.open("wb") as out:
            for incarnation in incarnations:
                for letter in letters_of(session, incarnation):
                    body = None if letter.body is None else letter.body.decode("utf-8", "backslashreplace")
                    where = {"file": letter.topic.removeprefix("file:"), "line": letter.offset}
                    why = {"reason": letter.reason, "detail": letter.detail, "body": body}
                    out.write(msgspec.json.encode(where | why) + b"\n")


@contextmanager
def bar(total: int, what: str, *, in_bytes: bool) -> Iterator[Callable[[int], None]]:
    """Show how far it is; yields what is called with how much is done."""
    with progress(total, what, in_bytes=in_bytes) as shown:
        yield lambda done: shown.update(shown.task_ids[0], completed=done)
