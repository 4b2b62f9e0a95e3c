"""What every command needs: settings, a session, and the environment of the stack that runs here."""

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from hone.errors import ConfigError, Conflict, Retryable
from hone.local.checkout import checkout
from hone.settings import Settings, load_settings
from hone.store.engine import make_engine, make_sessions

STATE_FILE = Path("var/run/stack.json")
ENVIRONMENT_FILE = Path("var/run/stack.env")
UNDEFINED_TABLE, UNDEFINED_COLUMN = "42P01", "42703"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
reason_option = click.option("--reason", required=True, help="Why; kept in the audit log.")
actor_option = click.option("--actor", default=getpass.getuser, help="Who; kept in the audit log. Default: you.")
limit_option = click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many."
)


class Verbs(click.Group):
    """A group that lists its commands in the order of their use, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as they were defined."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them without cutting anything off."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(500)) for name in self.commands])


def current_settings() -> Settings:
    """Return the settings of the environment, or of the local stack that runs here where the environment names none."""
    if "HONE_DATABASE_URL" not in os.environ and ENVIRONMENT_FILE.exists() and STATE_FILE.exists():
        stored = dict(line.split("=", 1) for line in ENVIRONMENT_FILE.read_text().splitlines() if "=" in line)
        os.environ.update({name: value for name, value in stored.items() if name not in os.environ})
    return load_settings()


@contextmanager
def transaction(settings: Settings) -> Iterator[Session]:
    """Give one session in one transaction; commits at the end of the block.

    Raises:
        Retryable: the database does not answer. ConfigError: it lacks hone's tables.
        Conflict: what the block names does not exist, or it asks for something that makes no sense.
    """
    engine = make_engine(settings.database_url, pool_size=1, program="hone-cli")
    try:
        with make_sessions(engine).begin() as session:
            yield session
    except (OperationalError, ProgrammingError) as error:
        raise explained(error) from None
    except (LookupError, ValueError) as error:
        if type(error) not in (LookupError, ValueError):  # a KeyError is a defect of ours, and keeps its traceback
            raise
        raise Conflict(str(error)) from None
    finally:
        engine.dispose()


def explained(error: DBAPIError) -> Exception:
    """Return what the driver's error means to a person; a defect of ours comes back as it is."""
    detail = str(error.orig).strip().splitlines()[0]
    if getattr(error.orig, "pgcode", None) in (UNDEFINED_TABLE, UNDEFINED_COLUMN):
        return ConfigError(f"the database lacks this version's tables ({detail}): run `hone migrate`")
    if isinstance(error, OperationalError):
        return Retryable(f"the database does not answer ({detail}): `hone up` starts one, or set HONE_DATABASE_URL")
    return error


def utc_now() -> datetime:
    """Return the time; the only clock of the command line."""
    return datetime.now(UTC)


def read_uuid(text: str, what: str) -> UUID:
    """Return the id. Raises ConfigError where it is none."""
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an id (of one {what}): copy it from the list") from None


def run_program(*words: str) -> None:
    """Run `python -m …` of the checkout with the current settings, to its end.

    Raises:
        ConfigError: this is a wheel without the programs.
        SystemExit: the program failed; it has said why.
    """
    root = checkout()
    current_settings()
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH")) if part)
    code = subprocess.run([sys.executable, "-m", *words], env={**os.environ, "PYTHONPATH": path}).returncode
    if code:
        raise SystemExit(code)
