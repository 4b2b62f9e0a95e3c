import subprocess
import sys

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, inspect

from hone.errors import ConfigError, Retryable
from hone.store.engine import MIGRATIONS, make_engine, migrate
from hone.store.tables import Base


def test_models_equal_migrations(store_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database_url"] = store_url
    command.check(config)  # raises where autogenerate would still find a change
    tables = set(inspect(create_engine(store_url, poolclass=NullPool)).get_table_names())
    assert tables == set(Base.metadata.tables) | {"alembic_version"}


def test_migrations_from_many_processes_at_once_happen_once(database_url: str) -> None:
    program = "import sys; from hone.store.engine import migrate; migrate(sys.argv[1])"
    children = [
        subprocess.Popen([sys.executable, "-c", program, database_url], cwd=MIGRATIONS.parent) for _ in range(3)
    ]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    engine = create_engine(database_url, poolclass=NullPool)
    assert "response" in inspect(engine).get_table_names()


def test_a_server_that_is_away_is_retryable_and_named() -> None:
    with pytest.raises(Retryable, match="HONE_DATABASE_URL"):
        migrate("postgresql+psycopg2://nobody@127.0.0.1:1/none")


def test_another_driver_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg2"):
        make_engine("sqlite:///x")
