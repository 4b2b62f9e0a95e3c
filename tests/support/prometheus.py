"""A live Prometheus with the project's own configuration, scraping what a test names every half second."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from hone.local.ports import free_ports
from tests.support.promql import ROOT

CONFIG = ROOT / "monitoring" / "prometheus"


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expr: str) -> list[Any]:
        """The series that the expression gives now."""
        found = self.ask("query", query=expr)
        return list(found["result"]) if found["resultType"] == "vector" else [found["result"]]


@contextmanager
def prometheus(directory: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Scrape `targets` (job -> host:port) under our rules, only faster than in real use."""
    shutil.copytree(CONFIG, directory, dirs_exist_ok=True)
    text = (directory / "prometheus.yml").read_text().replace(": 15s", ": 500ms").replace(": 5s", ": 500ms")
    (directory / "prometheus.yml").write_text(text)
    groups = [{"labels": {"job": job}, "targets": [target]} for job, target in targets.items()]
    (directory / "targets.json").write_text(json.dumps(groups))
    (directory / "alertmanagers.json").write_text("[]")
    (port,) = free_ports(1)
    files = [f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *files, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"], stdout=log, stderr=log
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        assert process.poll() is None and time.monotonic() < deadline, "Prometheus did not start"
        try:
            if httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
