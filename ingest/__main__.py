"""The programs of ingest.

python -m ingest events                   Kafka -> Postgres
python -m ingest pairs                    dirty turns -> preference pairs, and the retrain trigger
python -m ingest replay-dead-letters      send refused messages back
python -m ingest backfill                 files or a whole topic -> Postgres
python -m ingest check-streams            how messages of another shape would map
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import click
import msgspec
from sqlalchemy.exc import OperationalError, ProgrammingError

from hone.cli.context import explained
from hone.errors import ConfigError, HoneError
from hone.health import Pulse, serve_health
from hone.settings import Settings, load_settings
from hone.store.engine import make_engine, make_sessions
from hone.store.offsets import Group
from ingest import consumer, pair_worker
from ingest.backfill import tally
from ingest.backfill_run import Backfill
from ingest.batch import decode_native
from ingest.breaker import Breaker
from ingest.publish import Publisher
from ingest.replay import replay
from ingest.source import Source
from ingest.streams import check
from ingest.streams.book import NATIVE_TOPICS, open_book

logger = logging.getLogger(__name__)


def stop_on_signals() -> Event:
    """Return an event that SIGTERM and SIGINT set: programs then finish what they hold."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def bootstrap_servers(settings: Settings) -> str:
    """Return the broker's address.

    Raises:
        ConfigError: none is set.
    """
    if not settings.kafka_bootstrap_servers:
        raise ConfigError("kafka_bootstrap_servers is not set: set HONE_KAFKA_BOOTSTRAP_SERVERS, or use `make up`")
    return settings.kafka_bootstrap_servers


def find_incarnation(settings: Settings, source: Source, pulse: Pulse, stop: Event) -> str | None:
    """Return the name of this life of the broker, waiting for the broker if only that can tell; None when stopped."""
    while not stop.is_set():
        pulse.beat()
        if name := settings.kafka_incarnation or source.cluster_id():
            return name
        logger.warning("no Kafka broker answers at %s: waiting", settings.kafka_bootstrap_servers)
        stop.wait(1)
    return None


def killer(crash_at: str | None) -> Callable[[str], None]:
    """Return what kills this process at the n-th passing of a point: `stored:3`, or stops it: `stored:3:SIGSTOP`."""
    name, number, signal_name = [*(crash_at or "never:1").split(":"), "SIGKILL"][:3]
    passings = 0

    def crash(point: str) -> None:
        nonlocal passings
        passings += point == name
        if point == name and passings == int(number):
            os.kill(os.getpid(), signal.Signals[signal_name])

    return crash


metrics_host = click.option("--metrics-host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a container.")


SERVICES = ("events", "pairs")
"""Run until SIGTERM and write a log; the others are a person's commands."""


class Programs(click.Group):
    """Ends on a HoneError with code 1 and one line: of a service in its log, of a command as `hone` prints it."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the program."""
        try:
            return super().invoke(ctx)
        except (HoneError, OperationalError, ProgrammingError) as found:
            is_service = ctx.invoked_subcommand in SERVICES
            error = found if isinstance(found, HoneError) or is_service else explained(found)
            if not isinstance(error, HoneError):
                raise
            if is_service:
                logger.error("%s", error)
            else:
                click.secho(f"hone: {error}", fg="red", err=True)
            sys.exit(1)


@click.group(cls=Programs)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Feedback from Kafka to Postgres, and from feedback to pairs."""
    if ctx.invoked_subcommand in SERVICES:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    else:
        logging.basicConfig(level=logging.WARNING, format="hone: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # each schema that is fetched is not news


@cli.command()
@metrics_host
@click.option("--metrics-port", default=8721, show_default=True, help="Port of /metrics and /healthz.")
@click.option("--crash-at", hidden=True, help="For tests: POINT:N[:SIGNAL].")
def events(metrics_host: str, metrics_port: int, crash_at: str | None) -> None:
    """Store responses and feedback, each exactly once, until SIGTERM."""
    settings, stop, pulse = load_settings(), stop_on_signals(), Pulse()
    book = open_book(settings)
    serve_health(metrics_port, pulse, metrics_host)
    group, topics = settings.ingest.consumer_group, [*NATIVE_TOPICS, *book.topics]
    source = Source(bootstrap_servers(settings), group, topics, settings.ingest.rebalancing)
    try:
        incarnation = find_incarnation(settings, source, pulse, stop)
        if incarnation is None:
            return
        program = consumer.Ingest(
            source=source,
            sessions=make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-ingest")),
            group=Group(group, incarnation),
            owner=f"{socket.gethostname()}:{os.getpid()}",
            max_rows=settings.ingest.max_rows,
            poll_timeout_s=settings.ingest.poll_timeout_s,
            on_retention_gap=settings.ingest.on_retention_gap,
            breaker=Breaker(settings.ingest.max_invalid_share, settings.ingest.max_invalid_run),
            pulse=pulse,
            decode=book.decode if book.topics else decode_native,
            crash=killer(crash_at),
        )
        consumer.spare_collector()
        consumer.run(program, stop)
    finally:
        source.close()


@cli.command()
@metrics_host
@click.option("--metrics-port", default=8722, show_default=True, help="Port of /metrics and /healthz.")
def pairs(metrics_host: str, metrics_port: int) -> None:
    """Derive pairs from dirty turns, and ask for retrainings, until SIGTERM."""
    settings, stop, pulse = load_settings(), stop_on_signals(), Pulse()
    serve_health(metrics_port, pulse, metrics_host)
    sessions = make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-pairs"))
    publisher = Publisher(bootstrap_servers(settings))
    pair_worker.run(pair_worker.Worker(sessions, settings, publisher, pulse), stop)


@cli.command()
@click.option("--id", "ids", type=int, multiple=True, required=True, help="Dead letter to send; may be repeated.")
@click.option("--fixed", type=click.Path(path_type=Path), help="File with the repaired message, for one --id.")
@click.option("--dry-run", is_flag=True, help="Only show what would be sent.")
def replay_dead_letters(ids: tuple[int, ...], fixed: Path | None, dry_run: bool) -> None:
    """Send dead letters back to the topic that they came from."""
    if fixed and len(ids) > 1:
        raise ConfigError("--fixed repairs one message: give one --id")
    settings = load_settings()
    sessions = make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-replay"))
    publisher, book = Publisher(bootstrap_servers(settings)), open_book(settings)
    for dead_letter_id in ids:
        now = datetime.now(UTC)
        replay(sessions, publisher, dead_letter_id, book=book, fixed=fixed, dry_run=dry_run, now=now, show=click.echo)


@cli.command()
@click.argument("source")
@click.option("--stream", help="Stream that reads a file; needed where the mapping has several.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1), help="How many messages to look at.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def check_streams(source: str, stream: str | None, limit: int, as_json: bool) -> None:
    """Show what would become of the first lines of a file or the newest messages of a topic; store nothing."""
    settings = load_settings()
    book, path = open_book(settings, is_trial=True), Path(source)
    if path.exists():
        samples = check.samples_of_file(path, book.file_source(stream).decode, limit)
    else:
        samples = check.samples_of_topic(bootstrap_servers(settings), source, book.decode, limit)
    if as_json:
        click.echo(msgspec.json.encode([sample.as_json() for sample in samples]).decode())
    else:
        check.show(samples, click.echo)
    if samples and not any(sample.records for sample in samples):
        raise HoneError(f"nothing of {source} would be stored: correct {settings.ingest.streams}")


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--topic", help="Read this topic to its end instead.")
@click.option("--stream", help="Stream that maps the lines of the files; without it they are hone's own records.")
@click.option("--dry-run", is_flag=True, help="Read everything, store nothing, say what would become of it.")
@click.option("--again", is_flag=True, help="From the first line, though it is done: after a change of the mapping.")
@click.option("--rejects", type=click.Path(path_type=Path), help="Write the refused lines there, with their reasons.")
def backfill(
    files: tuple[Path, ...], topic: str | None, stream: str | None, dry_run: bool, again: bool, rejects: Path | None
) -> None:
    """Store history: files of JSON lines or CSV, or what a topic holds now; running it twice stores it once."""
    if bool(files) == (topic is not None) or (topic and (dry_run or stream or again or rejects)):
        raise ConfigError("give files, or one --topic alone (`hone streams check TOPIC` is its dry run)")
    settings, stop = load_settings(), stop_on_signals()
    sessions = make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-backfill"))
    run = Backfill(settings, sessions, open_book(settings, is_trial=dry_run), stop, click.echo)
    consumer.spare_collector()
    if dry_run:
        return run.rehearsal(files, stream, rejects)
    if topic:
        run.topic(topic, settings.kafka_incarnation)
        return run.report(topic, tally(), stream)
    done = [run.file(path, stream, again=again) for path in files]
    if rejects:
        run.rejects(rejects, done)
    run.report(str(files[0]) if len(files) == 1 else f"{len(files)} files", tally(), stream, files)


if __name__ == "__main__":
    cli()
