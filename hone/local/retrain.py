"""Looks for an open retrain request and starts the real DAG for it: `python -m hone.local.retrain`.

It decides nothing and claims nothing: the DAG's first task does. It is off where Airflow itself is live:
there the DAG's own schedule looks.
"""

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import HoneError
from hone.settings import Settings, load_settings
from hone.store.engine import make_engine, make_sessions
from hone.store.tables import RetrainRequestRow

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_POLL_S = 60.0
"""Waits double up to this while a run leaves the request open: the platform is frozen, or the DAG is broken."""


def is_waiting(sessions: sessionmaker[Session]) -> bool:
    """Say whether any request waits to be claimed."""
    waiting = select(RetrainRequestRow.request_id).where(RetrainRequestRow.status == "open").limit(1)
    with sessions() as session:
        return session.scalar(waiting) is not None


def run_dag(dag_file: Path) -> int:
    """Run the DAG from claim to rollout in a process of its own (`dag.test()`); return its exit code."""
    return subprocess.run([sys.executable, str(dag_file)], stdin=subprocess.DEVNULL).returncode


def poll(sessions: sessionmaker[Session], dag_file: Path, stop: threading.Event) -> None:
    """Until `stop` is set: look, and while there is an open request run the DAG, one run at a time."""
    wait_s = POLL_S
    while not stop.wait(wait_s):
        if not is_waiting(sessions):
            wait_s = POLL_S
            continue
        logger.info("an open request: starting %s", dag_file.name)
        logger.info("%s ended with code %s", dag_file.name, run_dag(dag_file))
        wait_s = min(2 * wait_s, MAX_POLL_S) if is_waiting(sessions) else POLL_S


def main(settings: Settings) -> int:
    """Poll until SIGTERM; return the exit code."""
    if settings.airflow_url:
        logger.error(
            "airflow_url is %s: the live Airflow looks by itself; this poller is for `make demo`", settings.airflow_url
        )
        return 2
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    root = Path(__file__).resolve().parents[2]
    poll(
        make_sessions(make_engine(settings.database_url, pool_size=1, program="hone-retrain-poller")),
        root / "dags" / "retrain.py",
        stop,
    )
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        raise SystemExit(main(load_settings()))
    except HoneError as error:
        raise SystemExit(f"retrain poller: {error}") from None
