"""What `hone doctor` looks at: the machine, the configuration, the servers. Each finding names its remedy."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import text

from hone.cli.context import current_settings
from hone.errors import HoneError
from hone.local.broker import cluster_id
from hone.settings import load_settings
from hone.store.engine import make_engine

MIN_FREE_GB = 10
MIN_MEMORY_GB = 4

Finding = dict[str, str]


def examine() -> list[Finding]:
    """Return one row for each check: what, state (ok, note, problem), detail with the remedy."""
    checks: tuple[tuple[str, Callable[[], tuple[str, str]]], ...] = (
        ("python", python),
        ("disk", disk),
        ("memory", memory),
        ("kafka", kafka),
        ("torch", torch),
        ("airflow", airflow),
        ("prometheus", prometheus),
        ("configuration", configuration),
        ("database", database),
        ("broker", broker),
    )
    return [{"check": name, **dict(zip(("state", "detail"), check(), strict=True))} for name, check in checks]


def python() -> tuple[str, str]:
    """Check the interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return ("ok", version) if good else ("problem", f"{version}: hone needs 3.11 to 3.13")


def disk() -> tuple[str, str]:
    """Check free space where the data goes."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    detail = f"{free:.0f} GB free in {Path.cwd()}"
    return ("ok", detail) if free >= MIN_FREE_GB else ("problem", f"{detail}: free at least {MIN_FREE_GB} GB")


def memory() -> tuple[str, str]:
    """Check the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        ("ok", f"{total:.0f} GB")
        if total >= MIN_MEMORY_GB
        else ("problem", f"{total:.1f} GB: the demo needs {MIN_MEMORY_GB}")
    )


def kafka() -> tuple[str, str]:
    """Check whether a real broker can run here."""
    if not find_spec("psutil"):
        return "note", "the local stack is not installed (pip install 'hone[local]'): set HONE_KAFKA_BOOTSTRAP_SERVERS"
    from hone.local.kafka import obstacle

    missing = obstacle(Path("var/kafka/libs"))
    return ("note", f"{missing}; the in-process broker will serve") if missing else ("ok", "a real broker can run here")


def torch() -> tuple[str, str]:
    """Check whether models can be trained and served from this environment."""
    if not find_spec("torch"):
        return "note", "not installed: `make setup` installs it"
    # In a process of its own: the library of a broken wheel may take this one down, and a good one is slow to load.
    tried = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True)
    if tried.returncode:
        return "problem", f"does not import ({tried.stderr.strip().splitlines()[-1]}): remove .venv, then `make setup`"
    return "ok", "imports"


def airflow() -> tuple[str, str]:
    """Check whether DAGs can run from this environment."""
    return ("ok", "installed") if find_spec("airflow") else ("note", "not installed: `make setup` installs it")


def prometheus() -> tuple[str, str]:
    """Check for the optional monitoring servers."""
    found = [name for name in ("prometheus", "prometheus-alertmanager", "promtool") if shutil.which(name)]
    return ("ok", ", ".join(found)) if found else ("note", "not installed: metrics are served, nobody keeps them")


def configuration() -> tuple[str, str]:
    """Check settings and variables."""
    try:
        settings = load_settings()
    except HoneError as error:
        return "problem", str(error)
    return "ok", f"mode {settings.mode}"


def database() -> tuple[str, str]:
    """Check that Postgres answers with a version that hone knows."""
    try:
        engine = make_engine(current_settings().database_url, pool_size=1)
        with engine.connect() as connection:
            version = connection.scalar(text("SHOW server_version_num"))
    except HoneError as error:
        return "problem", str(error)
    except Exception as error:  # any driver error is a finding here, not a crash
        return "note", f"no answer ({str(error).splitlines()[0]}): `hone up` starts one, or set HONE_DATABASE_URL"
    major = int(version or 0) // 10_000
    return ("ok", f"Postgres {major}") if 15 <= major <= 18 else ("problem", f"Postgres {major}: use 15 to 18")


def broker() -> tuple[str, str]:
    """Check that Kafka answers."""
    try:
        servers = current_settings().kafka_bootstrap_servers
    except HoneError as error:
        return "problem", str(error)
    if not servers:
        return "note", "none configured: `hone up` starts one, or set HONE_KAFKA_BOOTSTRAP_SERVERS"
    found = cluster_id(servers, timeout_s=3)
    return ("ok", servers) if found else ("problem", f"no answer at {servers}: check the address and the server")
