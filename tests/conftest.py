"""What tests share. A test says what it needs by a marker; where that is missing the test is skipped with the reason,
unless HONE_REQUIRE (a comma list) names it: then it fails."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from hone.local import kafka

ROOT = Path(__file__).parents[1]
KAFKA_LIBS = ROOT / "var" / "kafka" / "libs"


def _missing_programs(*programs: str) -> str | None:
    missing = [program for program in programs if not shutil.which(program)]
    return f"not on the path: {', '.join(missing)}" if missing else None


def _missing_path(path: Path) -> str | None:
    return None if path.exists() else f"{path} is missing"


NEEDS: dict[str, Callable[[], str | None]] = {
    "kafka": cache(lambda: kafka.obstacle(KAFKA_LIBS)),
    "airflow": cache(lambda: None if find_spec("airflow") else "apache-airflow is not installed"),
    "prometheus": cache(lambda: _missing_programs("prometheus", "promtool")),
    "shared": cache(lambda: _missing_path(ROOT.parent / "shared" / "data")),
    "seldon": cache(lambda: _missing_path(ROOT / ".venv-seldon")),
}
"""Marker -> why a test that carries it cannot run here, or None."""


def pytest_configure(config: pytest.Config) -> None:
    for name in NEEDS:
        config.addinivalue_line("markers", f"{name}: needs {name}; HONE_REQUIRE={name} turns the skip into a failure")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, obstacle in NEEDS.items():
        if item.get_closest_marker(name) and (reason := obstacle()):
            _skip_or_fail(name, reason)


def _skip_or_fail(name: str, reason: str) -> None:
    if name in os.environ.get("HONE_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"HONE_REQUIRE names {name}, but {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")


@pytest.fixture(scope="session")
def require() -> Callable[[str, str], None]:
    """`require(name, reason)`: skip the running test, or fail it where HONE_REQUIRE names `name`."""
    return _skip_or_fail


@pytest.fixture(scope="session")
def kafka_libs() -> Path:
    """The directory with the broker's jars, fetched at first use."""
    kafka.fetch_jars(KAFKA_LIBS)
    return KAFKA_LIBS
