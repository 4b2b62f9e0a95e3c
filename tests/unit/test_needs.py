"""The rule for tests that need something: skip with the reason, or fail where HONE_REQUIRE names it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = """
import pytest

@pytest.mark.kafka
def test_marked():
    raise AssertionError("must not run")

@pytest.mark.seldon
def test_environment():
    raise AssertionError("must not run")

def test_asks(require):
    require("airflow", "no Airflow at hand")
"""


@pytest.mark.parametrize(
    ("required", "num_skipped", "failing"),
    [("", 3, []), ("kafka", 2, ["kafka"]), ("airflow, kafka", 1, ["airflow", "kafka"])],
)
def test_what_is_required_fails_instead_of_skipping(
    tmp_path: Path, required: str, num_skipped: int, failing: list[str]
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-rs"]
    options = [f"--rootdir={tmp_path}", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    environment = {**os.environ, "PATH": str(tmp_path), "HONE_REQUIRE": required, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert result.returncode == (1 if failing else 0), result.stdout
    assert "must not run" not in result.stdout
    assert result.stdout.count("SKIPPED") == num_skipped
    assert sorted(set(re.findall(r"^HONE_REQUIRE names (\w+), but ", result.stdout, re.M))) == failing
    assert "Kafka needs Java 17 or newer, found none (Debian: apt-get install openjdk-17-jre-headless" in result.stdout
    assert ".venv-seldon is missing (make seldon)" in result.stdout
