"""`python -m serving controller` as a process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from hone.local.ports import free_ports
from hone.store.engine import make_engine, migrate

ROOT = Path(__file__).parents[2]


def environment(database_url: str, **more: str) -> dict[str, str]:
    """Routers and runtime are away: port 9 refuses."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    away = "http://127.0.0.1:9"
    ours = {"HONE_DATABASE_URL": database_url, "HONE_GATEWAY_URL": away, "HONE_RUNTIME_URL": away}
    return plain | ours | {"HONE_ADMIN_KEY": "k", "HONE_ROLLOUT__INTERVAL_S": "0.1", "HONE_STABLE_MODEL": "base"} | more


def start(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving", "controller", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def until_up(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("not up in 60 s")


def test_it_stays_up_while_routers_are_away_says_so_and_gives_its_lease_back_when_stopped(database_url: str) -> None:
    migrate(database_url)
    (port,) = free_ports(1)
    process = start(environment(database_url), "--metrics-port", str(port))
    try:
        until_up(url := f"http://127.0.0.1:{port}", process)
        deadline = time.monotonic() + 20
        while 'hone_reconcile_failures_total{reason="retryable"}' not in (page := httpx.get(f"{url}/metrics").text):
            assert time.monotonic() < deadline, page
            time.sleep(0.1)
        assert "hone_controller_leader 1.0" in page
        process.terminate()
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "http://127.0.0.1:9 does not answer" in output
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT expires_at <= now() FROM lease"))
    engine.dispose()


@pytest.mark.parametrize("backend", ["seldon_v1", "seldon_v2"])
def test_outside_of_a_cluster_seldon_asks_for_a_way_in(database_url: str, backend: str) -> None:
    process = start(environment(database_url, HONE_TRAFFIC_BACKEND=backend))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: seldon.token_file = " in output
    assert "set seldon.kubernetes_url to the address of `kubectl proxy`" in output
