"""The configuration before promtool, and a live Prometheus before the real programs: every panel shows something."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from hone.local.mock_kafka import MockCluster
from hone.local.ports import free_ports
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC
from hone.rollout import Phase, Transition
from hone.store.rollouts import transition
from monitoring.board.dashboard import ENDED, ROWS
from serving.runtime.app import runtime_app
from serving.runtime.model import load_model
from tests.support.gateway import KEY, Served, gateway
from tests.support.ingest_process import produce
from tests.support.learning import NOW, add_request, add_run, add_verdict, write_progress
from tests.support.prometheus import Prometheus, prometheus
from tests.support.promql import ROOT, RULE_FILES, selectors, without_variables
from tests.support.rollouts import POLICY, add_models, start_rollout
from tests.support.tiny_model import make_tiny_model
from tests.support.web import serving

pytestmark = [pytest.mark.prometheus]

TOPICS = {RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1}
TESTS = sorted((ROOT / "monitoring" / "prometheus" / "tests").glob("*.yml"))
QUERIES = {
    f"{panel.title} · {query.legend}": without_variables(query.expr)
    for row in ROWS
    for panel in row.panels
    for query in panel.queries
} | {"rollouts that ended": ENDED}


def tool(*arguments: str | Path) -> str:
    result = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    assert tool("promtool", "check", "rules", *RULE_FILES).count("SUCCESS") == len(RULE_FILES)
    tool("promtool", "check", "config", "monitoring/prometheus/prometheus.yml")


def test_alerts_fire_and_stay_silent_where_they_must() -> None:
    assert tool("promtool", "test", "rules", *TESTS).count("SUCCESS") == len(TESTS)


def test_amtool_accepts_the_routes_and_each_severity_has_one(require: Callable[[str, str], None]) -> None:
    if not shutil.which("amtool"):
        require("prometheus", "not on the path: amtool (Debian: apt-get install prometheus-alertmanager)")
    config = "monitoring/alertmanager/alertmanager.yml"
    tool("amtool", "check-config", config)
    found = [tool("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={s}") for s in SEVERITIES]
    assert [receiver.strip() for receiver in found] == ["pager", "tickets", "notes"]


@pytest.fixture(scope="module")
def runtime_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("models")
    models = {name: load_model(name, make_tiny_model(directory / name, n)) for n, name in enumerate(("old", "new"))}
    with serving(runtime_app(models)) as url:
        yield url


@pytest.fixture
def served(tmp_path: Path, runtime_url: str, store_url: str) -> Iterator[Served]:
    cluster = MockCluster(TOPICS)
    with gateway(tmp_path, runtime_url, bootstrap=cluster.bootstrap_servers, database_url=store_url) as served:
        yield served
    cluster.close()


def fill(sessions: sessionmaker[Session], run: Path) -> None:
    """A past retraining that failed, one that was judged, one that trains; a rollout that ended, one that is live."""
    hour = timedelta(hours=1)
    write_progress(run, datetime.now(UTC) + hour, tokens_per_s=9e3, mfu=0.4, wait_share=0.1, memory_bytes=1e9)
    with sessions.begin() as session:
        add_models(session)
        add_request(session, "failed", created=9 * hour, ended=8 * hour)
        add_run(session, "r1", "done", ended=5 * hour)
        add_run(session, "r2", "running", directory=run)
        add_verdict(session, "new", "win_rate", "pass", -60)
        policy = POLICY | {"stages": [{"weight": 0.5, "min_users": 500}], "outcome_window_s": 1, "block_s": 5}
        over = start_rollout(session, policy, now=NOW - hour)
        for epoch, phase in enumerate((Phase.ROLLING_BACK, Phase.ROLLED_BACK)):
            transition(
                session, over, epoch=epoch, change=Transition(phase, 0, 0.0, "lost"), actor="test", now=NOW - hour / 6
            )
        start_rollout(session, policy, now=datetime.now(UTC))


@contextmanager
def programs(served: Served, store_url: str, runtime_url: str) -> Iterator[dict[str, str]]:
    """The other four as processes; gives job -> host:port of all six."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("HONE_")} | {
        "HONE_DATABASE_URL": store_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": served.bootstrap,
        "HONE_KAFKA_INCARNATION": "mock",
        "HONE_GATEWAY_URL": served.url,
        "HONE_RUNTIME_URL": runtime_url,
        "HONE_ADMIN_KEY": KEY,
        "HONE_MODE": "active",
        "HONE_ROLLOUT__INTERVAL_S": "0.3",
    }
    commands = {
        "ingest": ("ingest", "events"),
        "pairs": ("ingest", "pairs"),
        "controller": ("serving", "controller"),
        "monitor": ("monitoring", "--interval-s=0.5", "--settle-s=0.5", "--baseline=5", "--score-model=old"),
    }
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    running = [
        subprocess.Popen([sys.executable, "-m", *words, f"--metrics-port={ports[name]}"], env=env, cwd=ROOT)
        for name, words in commands.items()
    ]
    here = {"gateway": served.url.removeprefix("http://"), "runtime": runtime_url.removeprefix("http://")}
    try:
        yield here | {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def talk(served: Served, round_: int) -> None:
    """Two answers to one question for each of six people, a thumb on each, and what no client should send."""
    for number in range(6):
        user = f"user {round_} {number}"
        for vote in (-1, 1):
            answer = served.answer_id(user, max_tokens=6, seed=vote + 9, temperature=1.0)
            said = served.tell({"response_id": answer, "kind": "thumbs", "value": vote}, **{"X-User-Id": user})
            assert said.status_code == 202, said.text
    assert served.tell({"response_id": "chatcmpl-forged", "kind": "thumbs", "value": 1}).status_code >= 400
    produce(served.bootstrap, b"not json")


def shown(server: Prometheus, expr: str) -> bool:
    """Whether the query gives at least one number."""
    return any(series["value"][1] != "NaN" for series in server.query(expr))


def missing(server: Prometheus) -> list[str]:
    """The queries that show nothing, and the metrics that are not there though nothing says that they may be."""
    metrics = {
        f'{selector.metric}{{job="{job}"}}'
        for expr in QUERIES.values()
        for selector in selectors(expr)
        if selector.metric not in ABSENT_WITHOUT_TROUBLE
        for job in selector.values("job")
    }
    return [name for name, expr in QUERIES.items() if not shown(server, expr)] + [
        metric for metric in sorted(metrics) if not server.query(metric)
    ]


ABSENT_WITHOUT_TROUBLE = {
    "hone_reconcile_failures_total",
    "hone_ingest_retention_gaps_total",
    "hone_ingest_skipped_total",  # only foreign topics have messages to pass over
    "hone_monitor_failures_total",
    "hone_response_hook_calls_total",  # only where a hook is configured
}
SEVERITIES = ("page", "ticket", "info")


@pytest.mark.slow
def test_every_panel_shows_something_of_a_platform_at_work(
    tmp_path: Path, served: Served, sessions: sessionmaker[Session], store_url: str, runtime_url: str
) -> None:
    fill(sessions, tmp_path / "run")
    with (
        programs(served, store_url, runtime_url) as targets,
        prometheus(tmp_path / "prometheus", targets) as server,
    ):
        deadline = time.monotonic() + 150
        round_ = 0
        while lacking := missing(server):
            assert time.monotonic() < deadline, lacking
            talk(served, round_)
            round_ += 1
            time.sleep(0.5)
        firing = {a["labels"]["alertname"] for a in server.ask("alerts")["alerts"] if a["state"] == "firing"}
        assert firing - {"DeadLettersRising"} == {"RetrainFailed", "RolloutRolledBack"}
