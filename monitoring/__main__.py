"""`python -m monitoring` serves what only the database knows; `python -m monitoring dashboard` writes the dashboard."""

import logging
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import click
import httpx

from hone.errors import HoneError
from hone.health import Pulse, serve_health
from hone.settings import load_settings
from hone.store.engine import make_engine, make_sessions
from monitoring.board import dashboard as board
from monitoring.exporter import SETTLE_S, Monitor, Watch, keep_looking
from monitoring.rewards import Rewards

logger = logging.getLogger(__name__)

SCORE_TIMEOUT_S = 60.0


@click.group(invoke_without_command=True)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a container.")
@click.option("--metrics-port", default=8724, show_default=True, help="Port of /metrics and /healthz.")
@click.option("--interval-s", default=10.0, show_default=True, help="Time between two looks.")
@click.option("--score-model", help="Version in the runtime that scores live answers; a reward model, as a rule.")
@click.option("--baseline", "num_baseline", default=2000, show_default=True, help="Events of a drift baseline.")
@click.option("--settle-s", default=SETTLE_S, show_default=True, help="Thumbs are read this long after their storage.")
@click.option("--false-alarm-events", default=1e6, show_default=True, help="Events between two false drift alarms.")
@click.pass_context
def cli(
    context: click.Context,
    metrics_host: str,
    metrics_port: int,
    interval_s: float,
    score_model: str | None,
    num_baseline: int,
    settle_s: float,
    false_alarm_events: float,
) -> None:
    """Watch the database until SIGTERM."""
    if context.invoked_subcommand:
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings, stop, now = load_settings(), stop_on_signals(), datetime.now(UTC)
    pulse = Pulse(max_age_s=60 + 2 * interval_s + SCORE_TIMEOUT_S)
    serve_health(metrics_port, pulse, metrics_host)
    sessions = make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-monitor"))
    watch = Watch(num_baseline=num_baseline, false_alarm_events=false_alarm_events, settle_s=settle_s)
    with httpx.Client(base_url=settings.runtime_url, timeout=SCORE_TIMEOUT_S, trust_env=False) as client:
        rewards = Rewards(client, score_model, now) if score_model else None
        monitor = Monitor(sessions, settings, watch, now, rewards, pulse.beat)
        keep_looking(monitor, stop, interval_s)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), default=board.PATH)
def dashboard(path: Path) -> None:
    """Write the Grafana dashboard as JSON."""
    path.write_text(board.as_json())
    click.echo(f"wrote {path}")


def stop_on_signals() -> Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    try:
        cli()
    except HoneError as error:
        logger.error("%s", error)
        sys.exit(1)
