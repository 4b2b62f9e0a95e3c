"""What every command needs: settings, a session, and a way to print."""

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session

from hone.errors import ConfigError
from hone.local.stack_state import read_state
from hone.settings import Settings, load_settings
from hone.store.engine import make_engine, make_sessions

STATE_FILE = Path("var/run/stack.json")
ENVIRONMENT_FILE = Path("var/run/stack.env")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
reason_option = click.option("--reason", required=True, help="Why; kept in the audit log.")
actor_option = click.option("--actor", default=getpass.getuser, help="Who; kept in the audit log. Default: you.")


def current_settings() -> Settings:
    """Return the settings of the environment, or of the local stack that runs here where the environment names none."""
    environ = dict(os.environ)
    if "HONE_DATABASE_URL" not in environ and ENVIRONMENT_FILE.exists() and read_state(STATE_FILE):
        stored = dict(line.split("=", 1) for line in ENVIRONMENT_FILE.read_text().splitlines() if "=" in line)
        os.environ.update({name: value for name, value in stored.items() if name not in environ})
    return load_settings()


@contextmanager
def transaction(settings: Settings) -> Iterator[Session]:
    """Give one session in one transaction; commits at the end of the block."""
    with make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-cli")).begin() as session:
        yield session


def utc_now() -> datetime:
    """Return the time; the only clock of the command line."""
    return datetime.now(UTC)


def show(value: Any, as_json: bool) -> None:
    """Print a dict as JSON, or its lines."""
    if as_json:
        click.echo(json.dumps(value, default=str))
        return
    for key, item in value.items():
        click.echo(f"{key.replace('_', ' '):<22} {item}")


def table(rows: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    """Print rows as JSON, or as aligned columns."""
    if as_json:
        click.echo(json.dumps(rows, default=str))
        return
    if not rows:
        click.echo(empty)
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    click.secho("  ".join(f"{key:<{width}}" for key, width in widths.items()), bold=True)
    for row in rows:
        click.echo("  ".join(f"{row[key]!s:<{width}}" for key, width in widths.items()))


def existing_file(path: Path) -> Path:
    """Return `path`, or raise ConfigError naming it."""
    if not path.is_file():
        raise ConfigError(f"no file {path}: check the path")
    return path
