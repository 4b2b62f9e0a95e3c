"""Commands for history and for topics and files of another shape; they start `python -m ingest`."""

import os

import click

from hone.cli.context import Verbs, json_option, run_program

mapping_option = click.option(
    "--mapping", type=click.Path(exists=True, dir_okay=False), help="File of streams, instead of `ingest.streams`."
)
stream_option = click.option("--stream", help="Stream that reads a file; needed where the mapping has several.")


def use(mapping: str | None) -> None:
    """Let the programs that are started read another file of streams."""
    if mapping:
        os.environ["HONE_INGEST__STREAMS"] = os.path.abspath(mapping)


@click.group(cls=Verbs)
def streams() -> None:
    """Topics and files of another shape: check."""


@streams.command(name="check")
@click.argument("source")
@mapping_option
@stream_option
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1), help="How many messages to look at.")
@json_option
def streams_check(source: str, mapping: str | None, stream: str | None, limit: int, as_json: bool) -> None:
    """Show what would become of the first lines of a file, or the newest messages of a topic; needs the checkout.

    Nothing is stored and no offset moves. Exit code 1 if nothing would be stored.
    """
    use(mapping)
    words = ["--limit", str(limit), *(["--stream", stream] if stream else []), *(["--json"] if as_json else [])]
    run_program("ingest", "check-streams", *words, "--", source)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--topic", help="Read this topic to its end instead.")
@mapping_option
@click.option("--stream", help="Stream that maps the lines of the files; without it they are hone's own records.")
@click.option("--dry-run", is_flag=True, help="Read everything, store nothing, say what would become of it.")
@click.option("--again", is_flag=True, help="From the first line, though it is done: after a change of the mapping.")
@click.option("--rejects", type=click.Path(), help="Write the refused lines there, with their reasons.")
def backfill(
    files: tuple[str, ...],
    topic: str | None,
    mapping: str | None,
    stream: str | None,
    dry_run: bool,
    again: bool,
    rejects: str | None,
) -> None:
    """Store months of history from files or a topic, once however often it is run.

    FILES are JSON lines or one JSON list (.jsonl, .ndjson, .json), or tables (.csv, .tsv), plain or .gz. A run that
    was stopped goes on where it was; what is refused becomes a dead letter with its line number. Needs the checkout.

    \b
    hone backfill votes.csv --mapping streams.toml --stream ratings --dry-run
    hone backfill votes.csv --mapping streams.toml --stream ratings
    hone backfill --topic acme.ratings --mapping streams.toml
    """  # noqa: D301  # click keeps the lines of such a paragraph
    use(mapping)
    words = [*(["--topic", topic] if topic else []), *(["--stream", stream] if stream else [])]
    words += [*(["--dry-run"] if dry_run else []), *(["--again"] if again else [])]
    words += ["--rejects", rejects] if rejects else []
    run_program("ingest", "backfill", *words, "--", *files)
