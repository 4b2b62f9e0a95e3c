"""The embedded Postgres server: real, lasting, and never left behind."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from hone.errors import HoneError
from hone.local.postgres import (
    PostgresServer,
    create_database,
    drop_database,
    find_postmaster,
    start_postgres,
    stop_postgres,
)
from hone.local.processes import Supervisor

STARTER = (
    "import pathlib, sys; from hone.local.postgres import start_postgres; start_postgres(pathlib.Path(sys.argv[1]))"
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A path too long for a Unix socket: the server must find another place for it."""
    directory = tmp_path_factory.mktemp("pg") / ("long" * 25) / "data"
    yield directory
    stop_postgres(directory)


@pytest.fixture
def server(data_dir: Path) -> PostgresServer:
    return start_postgres(data_dir)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def test_it_survives_its_starter_and_is_stopped_by_another_process(data_dir: Path) -> None:
    subprocess.run([sys.executable, "-c", STARTER, str(data_dir)], check=True, timeout=90)
    postmaster = find_postmaster(data_dir)
    assert postmaster
    children = postmaster.children()
    assert stop_postgres(data_dir)
    assert [p for p in (postmaster, *children) if p.is_running()] == []
    assert not stop_postgres(data_dir)


def test_committed_rows_survive_a_killed_server(server: PostgresServer) -> None:
    url = server.create_database("lasting")
    execute(url, "CREATE TABLE IF NOT EXISTS t (x int)")
    execute(url, "INSERT INTO t SELECT generate_series(1, 1000)")
    psutil.Process(server.pid).kill()
    while find_postmaster(server.data_dir):
        time.sleep(0.01)
    again = start_postgres(server.data_dir)
    assert again.pid != server.pid
    assert execute(url, "SELECT count(*) FROM t") == [(1000,)]


def test_starting_twice_is_the_same_server(server: PostgresServer) -> None:
    assert start_postgres(server.data_dir) == server


def test_it_speaks_utc_and_flushes_every_commit(server: PostgresServer) -> None:
    assert execute(server.url, "SHOW timezone") == [("UTC",)]
    assert execute(server.url, "SHOW fsync") == [("on",)]


def test_a_recycled_pid_in_the_pid_file_is_not_taken_for_the_server(server: PostgresServer) -> None:
    stop_postgres(server.data_dir)
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        lines = [str(innocent.pid), str(server.data_dir), "0", "5432", "/tmp", "", "0 0", "ready"]
        (server.data_dir / "postmaster.pid").write_text("\n".join(lines) + "\n")
        assert not stop_postgres(server.data_dir)
        again = start_postgres(server.data_dir)
        assert again.pid != innocent.pid
        assert execute(again.url, "SELECT 1") == [(1,)]
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_supervisor_stops_an_adopted_server_with_its_sessions_open(server: PostgresServer, tmp_path: Path) -> None:
    with create_engine(server.url, poolclass=NullPool).connect():
        with Supervisor(tmp_path / "stack.json") as supervisor:
            supervisor.adopt(server.running())
        assert find_postmaster(server.data_dir) is None
    log = server.log_path.read_text().splitlines()
    assert "database system is shut down" in log[-1]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HoneError, match=r"cannot write Postgres' data directory .*file/data"):
        start_postgres(tmp_path / "file" / "data")


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(HoneError, match=r"disk full: .* MB free at"):
        start_postgres(tmp_path / "data", min_free_bytes=1 << 60)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_server_that_cannot_start_tells_the_reason(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "somebody's file").write_text("")
    with pytest.raises(HoneError, match=r"exists but is not empty"):
        start_postgres(tmp_path / "data")


def test_a_database_is_copied_from_a_template(postgres_url: str) -> None:
    template = create_database(postgres_url, "a_template")
    execute(template, "CREATE TABLE t AS SELECT 42 AS x")
    copy = create_database(postgres_url, "a_copy", template="a_template")
    assert execute(copy, "SELECT x FROM t") == [(42,)]
    assert create_database(postgres_url, "a_copy") == copy
    for name in ("a_copy", "a_template", "a_copy"):
        drop_database(postgres_url, name)


def test_a_missing_template_is_a_clear_error(postgres_url: str) -> None:
    with pytest.raises(HoneError, match=r"database x could not be created.*no_such"):
        create_database(postgres_url, "x", template="no_such")


@pytest.mark.parametrize("run", ["first", "second"])
def test_each_test_gets_an_empty_database(database_url: str, run: str) -> None:
    assert execute(database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    execute(database_url, "CREATE TABLE left_over (x int)")
