"""What `hone up` starts to watch the stack: real Prometheus and Alertmanager on the configuration written for it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hone.local.ports import free_ports
from hone.local.processes import Supervisor
from hone.local.prometheus import WatchPorts, find_alertmanager, monitoring_programs
from hone.local.stack import Place, Ports
from tests.support.promql import ROOT, alerts

pytestmark = [pytest.mark.prometheus]


def ask(port: int, path: str, **parameters: str) -> Any:
    return httpx.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=parameters, trust_env=False).json()["data"]


def test_prometheus_watches_every_program_of_the_stack_and_alerts_go_to_the_alertmanager(
    tmp_path: Path, store_url: str, require: Callable[[str, str], None]
) -> None:
    if not find_alertmanager():
        require("prometheus", "not on the path: alertmanager (Debian: apt-get install prometheus-alertmanager)")
    place = Place(root=ROOT, data=tmp_path / "up", libs=tmp_path, ports=Ports.free())
    ports = WatchPorts(*free_ports(3))
    expected = {name: getattr(place.ports, name) for name in ("gateway", "runtime", "ingest", "pairs", "controller")}
    expected["monitor"] = ports.monitor
    with Supervisor(tmp_path / "stack.json") as supervisor:
        supervisor.start_together(monitoring_programs(place, {"HONE_DATABASE_URL": store_url}, ports))
        deadline = time.monotonic() + 40
        while not (targets := ask(ports.prometheus, "targets", state="active")["activeTargets"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        addresses = {target["labels"]["job"]: target["labels"]["instance"] for target in targets}
        assert addresses == {name: f"127.0.0.1:{port}" for name, port in expected.items()}
        rules = [rule for group in ask(ports.prometheus, "rules")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == set(alerts())
        found = ask(ports.prometheus, "alertmanagers")["activeAlertmanagers"]
        assert [entry["url"].split("/")[2] for entry in found] == [f"127.0.0.1:{ports.alertmanager}"]


def test_without_prometheus_only_the_monitor_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("prometheus") is None
    place = Place(root=ROOT, data=tmp_path / "up", libs=tmp_path, ports=Ports.free())
    assert [program.name for program in monitoring_programs(place, {})] == ["monitor"]
