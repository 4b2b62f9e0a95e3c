"""`hone archive`: old feedback out of the database, into files."""

import gzip
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from hone.cli.context import actor_option, current_settings, json_option, transaction, utc_now
from hone.cli.output import facts
from hone.errors import ConfigError
from hone.records import Feedback
from hone.store.archive import count_old, take_old
from hone.store.audit import append_audit
from hone.store.engine import make_engine, make_sessions

ROWS_PER_FILE = 50_000


@click.command()
@click.option("--before", required=True, type=click.DateTime(["%Y-%m-%d"]), help="Stored before this day (UTC).")
@click.option("--to", "directory", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@click.option("--yes", is_flag=True, help="Do it. Without this the counts are shown and nothing is changed.")
@actor_option
@json_option
def archive(before: datetime, directory: Path, yes: bool, actor: str, as_json: bool) -> None:
    """Move old feedback, but for edits, into compressed files that `hone backfill` can store again.

    A file is complete on the disk before its rows are gone. Pairs and labels stay as they are.
    """
    settings, before = current_settings(), before.replace(tzinfo=UTC)
    with transaction(settings) as session:
        counts = count_old(session, before)
    if not yes:
        facts({"events": counts, "archived": False}, as_json)
        return None if as_json else click.echo("\nnothing was changed: add --yes")
    files, sessions = [], make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-archive"))
    with (
        sessions() as session,
        click.progressbar(length=sum(counts.values()), label="archiving", hidden=as_json) as bar,
    ):
        for events in take_old(session, before, ROWS_PER_FILE):
            files.append(write_file(directory, events))
            append_audit(session, actor, "feedback.archive", f"before:{before:%Y-%m-%d}", "", files[-1], utc_now())
            session.commit()
            bar.update(len(events))
    facts({"events": sum(int(file["num_events"]) for file in files), "files": files, "archived": True}, as_json)
    return None if as_json else click.echo("\nan erasure does not reach these files: delete them in their time")


def write_file(directory: Path, events: Sequence[Feedback]) -> dict[str, str | int]:
    """Write the events as lines of JSON, on the disk and under their name only when whole; return what is in the file.

    Raises:
        ConfigError: the folder cannot be written.
    """
    body = gzip.compress(msgspec.json.Encoder().encode_lines(events), mtime=0)
    name = f"feedback-{events[0].event_id}-{events[-1].event_id}.jsonl.gz"
    draft = directory / f".{name}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(directory / name)
    except OSError as error:
        raise ConfigError(f"cannot write {directory / name} ({error.strerror}): nothing of it was deleted") from None
    return {"file": name, "sha256": hashlib.sha256(body).hexdigest(), "num_events": len(events)}
