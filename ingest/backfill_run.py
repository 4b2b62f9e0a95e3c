"""The command `backfill`: rehearse, or read all of it into the tables and say what became of it."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from threading import Event

from sqlalchemy.orm import Session, sessionmaker

from hone.cli.output import progress
from hone.cli.overview_text import orphans_text
from hone.errors import ConfigError, HoneError, InvalidEvent
from hone.health import Pulse
from hone.settings import Settings
from hone.store.history import count_attempts, count_letters, follow_name, letters_of, supersede_letters
from hone.store.offsets import Group
from hone.store.unpaired import count_unanswered
from ingest import consumer
from ingest.backfill import GROUP, FileSource, Tally, WholeTopic, decode_line, fingerprint, partition_of, rehearse
from ingest.batch import Decode, RawMessage, decode_native
from ingest.breaker import Breaker, BreakerOpen
from ingest.files import TABLES, suffix_of
from ingest.rejects import open_rejects
from ingest.streams.book import Book

Say = Callable[[str], None]
MAX_SHOWN = 20
"""How many refused lines a dry run shows."""


@dataclass(frozen=True)
class Backfill:
    """What the command was asked for."""

    settings: Settings
    sessions: sessionmaker[Session]
    book: Book
    halt: Event
    say: Say
    begun_at: datetime = field(default_factory=lambda: datetime.now(UTC))

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
            raise ConfigError(f"{path} is a table: name the stream that maps its columns: {self.with_stream([path])}")
        return decode_line

    def file(self, path: Path, stream: str | None, *, again: bool) -> str:
        """Store all lines of a file that are not stored yet, and say where an earlier run had read some already.

        Returns the name under which its dead letters are kept.

        Raises:
            HoneError: the file is broken, too many lines are invalid, or it was stopped; run again, it goes on.
        """
        decode, prefix = self.decode_of(path, stream), fingerprint(path, stream)
        with self.sessions.begin() as session:
            attempt = count_attempts(session, GROUP, prefix)
            attempt = attempt + 1 if again or not attempt else attempt
            group = Group(GROUP, f"{prefix}#{attempt}", letters=letters_name(prefix))
            follow_name(session, group, partition_of(path).topic)
            if stream is not None:
                supersede_letters(session, letters_name(fingerprint(path, None)))
        with bar(path.stat().st_size, path.name, in_bytes=True) as show:
            source = FileSource(path, self.halt, show)
            try:
                self.loop(source, group, decode)
            except BreakerOpen as error:
                raise HoneError(f"{path}: {error.found}. {self.what_to_do([path], stream)}") from None
            finally:
                source.close()
        if not source.is_done:
            raise HoneError(f"{path} was stopped before its end: run the same again, it goes on where it stopped")
        if (source.begun_at or 0) > 1:
            self.say_known(path, group, source)
        return group.letters_name

    def say_known(self, path: Path, group: Group, source: FileSource) -> None:
        """Say what an earlier run has read of a file."""
        with self.sessions() as session:
            num_refused = count_letters(session, group.letters_name)
        letters = f"; {plural(num_refused, 'refused line')} of this file {'is' if num_refused == 1 else 'are'} kept"
        if source.num_read:
            self.say(f"{path}: went on at line {source.begun_at}, where an earlier run was stopped")
        else:
            self.say(
                f"{path}: nothing to do, an earlier run has read all of it{letters if num_refused else ''} "
                "(--again reads it from its first line)"
            )

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
        if not source.num_read:
            self.say(f"{topic}: nothing to do, an earlier run has read all that it holds")

    def report(self, what: str, found: Tally, stream: str | None, paths: Sequence[Path] = ()) -> None:
        """Say what became of everything.

        Raises:
            HoneError: every line of the files was refused.
        """
        self.say(f"{what}: {found.text()}")
        if found.num_refused and not (paths and found.is_all_refused):
            again = self.book.command("backfill", *paths, "--stream", stream, "--again") if stream else ""
            self.say(
                "what was refused is kept: `hone dead-letters list --waiting` says why"
                + (f"; after a change of the mapping `{again}`" if again else "")
            )
        with self.sessions() as session:
            orphans = asdict(count_unanswered(session, self.begun_at, datetime.now(UTC)))
        if orphans["num_events"]:
            self.say(f"{what}: {orphans_text(orphans, '')}")
        if paths and found.is_all_refused:
            raise HoneError(f"{what}: every line was refused. {self.what_to_do(paths, stream)}")

    def rehearsal(self, paths: Sequence[Path], stream: str | None, rejects: Path | None) -> None:
        """Say what would become of each file, and write the refused lines where `rejects` is given; store nothing.

        Raises:
            HoneError: every line would be refused.
        """
        total = Tally({}, None, {}, 0)
        with open_rejects(rejects) as refused:

            def refuse(message: RawMessage, error: InvalidEvent) -> None:
                topic, line = message.partition.topic, message.offset
                refused.add(topic, line, error.reason, error.detail, message.body)
                if refused.num <= MAX_SHOWN:
                    self.say(f"{topic.removeprefix('file:')}:{line}: {error}")

            for path in paths:
                with bar(path.stat().st_size, path.name, in_bytes=True) as show:
                    found = rehearse(path, self.decode_of(path, stream), show, refuse)
                self.say(f"{path}: {found.text()}")
                total += found
        if refused.num > MAX_SHOWN:
            self.say(f"{plural(refused.num - MAX_SHOWN, 'more refused line')} not shown (--rejects FILE writes all)")
        self.say_rejects(rejects, refused.num)
        self.say("dry run: nothing was stored; which records are there already was not looked up")
        if total.is_all_refused:
            raise HoneError(f"every line would be refused. {self.what_to_do(paths, stream)}")

    def rejects(self, path: Path, names: Sequence[str]) -> None:
        """Write the refused lines, one JSON object each: file, line, reason, detail, body."""
        with self.sessions() as session, open_rejects(path) as refused:
            for letter in chain.from_iterable(letters_of(session, name) for name in names):
                refused.add(letter.topic, letter.offset, letter.reason, letter.detail, letter.body)
        self.say_rejects(path, refused.num)

    def say_rejects(self, path: Path | None, num: int) -> None:
        """Say where refused lines were written."""
        if path:
            self.say(f"{plural(num, 'refused line')} written to {path}")

    def what_to_do(self, paths: Sequence[Path], stream: str | None) -> str:
        """Return the remedy for lines that are refused, with commands that can be typed as they are."""
        if stream is None:
            return (
                "Without --stream the lines are read as hone's own records; for another shape name the stream that "
                f"maps them: {self.with_stream(paths)}"
            )
        look, again = (
            self.book.command("backfill", *paths, "--stream", stream, word) for word in ("--dry-run", "--again")
        )
        return f"See why with `{look}`, correct the mapping, then `{again}`"

    def with_stream(self, paths: Sequence[Path]) -> str:
        """Return the command that reads files through a stream."""
        command = self.book.command("backfill", *paths, "--stream", next(iter(self.book.for_files), "NAME"))
        return f"`{command}{'' if self.book.path else ' --mapping FILE'}` (docs/streams.md)"


def letters_name(prefix: str) -> str:
    """Return the name under which all runs over a content keep its dead letters: that of the first one's life."""
    return f"{prefix}#1"


def plural(number: int, noun: str) -> str:
    """Return `1 file` or `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextmanager
def bar(total: int, what: str, *, in_bytes: bool) -> Iterator[Callable[[int], None]]:
    """Show how far it is; yields what is called with how much is done."""
    with progress(total, what, in_bytes=in_bytes) as shown:
        yield lambda done: shown.update(shown.task_ids[0], completed=done)
