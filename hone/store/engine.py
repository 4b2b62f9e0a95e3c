"""Engines and sessions on Postgres, and the migration of its schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, Retryable

BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL random_page_cost = 1.1"
"""For transactions that touch few rows of large tables: small or unanalysed ones the planner would read whole."""

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def make_engine(database_url: str, *, pool_size: int = 5, program: str = "hone") -> Engine:
    """Return an engine; connects lazily, pings before use, sessions speak UTC.

    Raises:
        ConfigError: the address is not one of `postgresql+psycopg2`.
    """
    if not database_url.startswith("postgresql+psycopg2://"):
        scheme = database_url.split(":", 1)[0]
        raise ConfigError(f"database_url has scheme {scheme!r}: use postgresql+psycopg2://user@host/name")
    options = f"-c timezone=UTC -c application_name={program}"
    try:
        return create_engine(
            database_url,
            pool_size=pool_size,
            pool_pre_ping=True,
            connect_args={"options": options, "connect_timeout": 10},
        )
    except ArgumentError as error:
        raise ConfigError(
            f"database_url cannot be parsed ({error}): use postgresql+psycopg2://user@host/name"
        ) from None


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return a factory whose `.begin()` block is one transaction."""
    return sessionmaker(engine, expire_on_commit=False)


def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`. Safe to run from many processes at once: an advisory lock serialises them.

    Raises:
        Retryable: the server cannot be reached.
        ConfigError: the migrations are not here (a wheel without the checkout).
    """
    if not MIGRATIONS.is_dir():
        raise ConfigError(f"no migrations at {MIGRATIONS}: run this from a checkout or a hone image")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database_url"] = database_url
    try:
        command.upgrade(config, revision)
    except OperationalError as error:
        raise Retryable(f"Postgres does not answer ({error.orig}): check HONE_DATABASE_URL and the server") from None
