"""What watches the local stack: the monitor always, Prometheus and Alertmanager where they are installed."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hone.local.processes import Program
from hone.local.stack import Place

ALERTMANAGERS = ("alertmanager", "prometheus-alertmanager")
"""Names of the executable: upstream's and Debian's."""
RETENTION = "30d"


@dataclass(frozen=True)
class WatchPorts:
    """Loopback ports of the three; by default those of `make up`. Airflow takes 8793 and 8794 for its logs."""

    monitor: int = 8724
    prometheus: int = 8790
    alertmanager: int = 8791


def monitoring_programs(place: Place, env: Mapping[str, str], ports: WatchPorts | None = None) -> list[Program]:
    """Return the programs that watch this stack, after writing their configuration below `place.data`."""
    ports = ports or WatchPorts()
    programs = [monitor_program(place, env, ports.monitor)]
    if executable := shutil.which("prometheus"):
        write_prometheus(place, ports)
        programs.append(prometheus_program(place, executable, ports.prometheus))
    if executable := find_alertmanager():
        programs.append(alertmanager_program(place, executable, ports.alertmanager))
    return programs


def find_alertmanager() -> str | None:
    """Return the path of Alertmanager, or None where it is not installed."""
    return next((path for path in map(shutil.which, ALERTMANAGERS) if path), None)


def write_prometheus(place: Place, ports: WatchPorts) -> None:
    """Write the checkout's configuration and rules with this stack's targets; what was there is replaced."""
    directory = place.data / "prometheus"
    shutil.copytree(place.root / "monitoring" / "prometheus", directory, dirs_exist_ok=True)
    jobs = {name: getattr(place.ports, name) for name in ("gateway", "runtime", "ingest", "pairs", "controller")}
    groups = [group(port, job=job) for job, port in {**jobs, "monitor": ports.monitor}.items()]
    (directory / "targets.json").write_text(json.dumps(groups, indent=1))
    alertmanagers = [group(ports.alertmanager)] if find_alertmanager() else []
    (directory / "alertmanagers.json").write_text(json.dumps(alertmanagers))


def group(port: int, **labels: str) -> dict[str, object]:
    """Return one group of Prometheus's file discovery."""
    return {"labels": labels, "targets": [f"127.0.0.1:{port}"]}


def monitor_program(place: Place, env: Mapping[str, str], port: int) -> Program:
    """Return the exporter of what only the database knows."""
    return Program(
        name="monitor",
        argv=(sys.executable, "-m", "monitoring", "--metrics-port", str(port)),
        env=env,
        cwd=place.root,
        log_path=place.logs / "monitor.log",
        address=f"http://127.0.0.1:{port}",
        health_url=f"http://127.0.0.1:{port}/healthz",
    )


def prometheus_program(place: Place, executable: str, port: int) -> Program:
    """Return Prometheus on the configuration that `write_prometheus` wrote."""
    directory = place.data / "prometheus"
    return watcher(
        place,
        "prometheus",
        port,
        executable,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION}",
    )


def alertmanager_program(place: Place, executable: str, port: int) -> Program:
    """Return Alertmanager on the checkout's routes, alone (no gossip)."""
    return watcher(
        place,
        "alertmanager",
        port,
        executable,
        f"--config.file={place.root / 'monitoring' / 'alertmanager' / 'alertmanager.yml'}",
        f"--storage.path={place.data / 'alertmanager'}",
        "--cluster.listen-address=",
    )


def watcher(place: Place, name: str, port: int, executable: str | Path, *options: str) -> Program:
    """Return a server of the Prometheus family."""
    url = f"http://127.0.0.1:{port}"
    return Program(
        name=name,
        argv=(str(executable), *options, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        log_path=place.logs / f"{name}.log",
        address=url,
        health_url=f"{url}/-/ready",
    )
