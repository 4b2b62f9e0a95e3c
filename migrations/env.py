"""Alembic's entry: an advisory lock, timeouts, and one transaction for each migration."""

from alembic import context
from sqlalchemy import Connection, create_engine, text

from hone.store.tables import Base

LOCK = 0x686F6E65  # "hone"


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        compare_server_default=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_online() -> None:
    engine = create_engine(context.config.attributes["database_url"])
    with engine.connect() as guard, engine.connect() as connection:
        # Held on its own connection: a migration's commit must not release it.
        guard.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.execute(text("SET statement_timeout = '30min'"))
        connection.commit()
        run(connection)
        connection.commit()
    engine.dispose()


migrate_online()
