"""The monitor on Postgres: rows in, gauges out, nothing written."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client import REGISTRY
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import Retryable
from hone.local.ports import free_ports
from hone.rollout import Phase, Transition
from hone.settings import Settings
from hone.store import facts
from hone.store.models import get_alias, set_alias
from hone.store.rollouts import live_rollout, save_evidence, transition
from hone.store.switches import FREEZE, set_switch
from hone.store.tables import (
    DeadLetterRow,
    ResponseScoreRow,
)
from monitoring import drift
from monitoring.exporter import Monitor, Watch, reading
from monitoring.rewards import Rewards
from serving.runtime.app import runtime_app
from serving.runtime.model import load_model
from tests.support.learning import NOW, add_request, add_run, add_thumbs, add_verdict, write_progress
from tests.support.rollouts import add_answer, add_models, enter_canary, start_rollout
from tests.support.tiny_model import make_tiny_model
from tests.support.web import serving

ROOT = Path(__file__).parents[2]
Sessions = sessionmaker[Session]


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def monitor(sessions: Sessions, started_at: datetime = NOW, num_baseline: int = 40, **fields: Any) -> Monitor:
    return Monitor(sessions, Settings(), Watch(num_baseline=num_baseline, settle_s=0), started_at, **fields)


def test_requests_runs_gates_and_dead_letters_are_shown(sessions: Sessions) -> None:
    hour = timedelta(hours=1)
    with sessions.begin() as session:
        add_models(session)
        add_request(session, "open", created=hour)
        add_request(session, "claimed", created=3 * hour)
        add_request(session, "failed", created=9 * hour, ended=2 * hour)
        add_run(session, "r1", "done", ended=5 * hour)
        add_run(session, "r2", "running")
        add_verdict(session, "old", "win_rate", "fail", -500)
        add_verdict(session, "new", "win_rate", "pass", -60)
        add_verdict(session, "new", "forgetting", "inconclusive", -60)
        coordinates = {"incarnation": "i", "topic": "t", "partition": 0, "reason": "no json", "detail": "d"}
        session.add_all(
            [
                DeadLetterRow(offset=1, **coordinates),
                DeadLetterRow(offset=2, replayed_at=NOW, **coordinates),
                DeadLetterRow(offset=3, dismissed_at=NOW, **coordinates),
            ]
        )
    monitor(sessions).look(NOW)
    assert value("hone_pending_requests", status="open") == 1
    assert value("hone_pending_request_age_seconds") == pytest.approx(3 * 3600)
    failed_at, done_at = NOW - 2 * hour, NOW - 5 * hour
    assert value("hone_request_ended_timestamp_seconds", status="failed") == pytest.approx(failed_at.timestamp())
    assert value("hone_training_ended_timestamp_seconds", status="done") == pytest.approx(done_at.timestamp())
    assert value("hone_training_runs", status="running") == 1
    assert value("hone_training_running_seconds") == pytest.approx(3600, abs=1)
    assert value("hone_gate_verdicts", gate="win_rate", verdict="fail") == 1
    assert value("hone_gate_verdict", gate="win_rate", verdict="fail") == 0, "that was of an older challenger"
    assert value("hone_gate_verdict", gate="win_rate", verdict="pass") == 1
    assert value("hone_gate_verdict", gate="forgetting", verdict="inconclusive") == 1
    assert value("hone_waiting_dead_letters") == 1
    assert value("hone_stable_model_info", model_version="old") == 1
    assert value("hone_observe_mode") == 1
    assert value("hone_plan_ttl_seconds") == Settings().rollout.plan_ttl_s


def test_the_speed_of_the_run_that_trains_now_is_shown_and_is_unknown_once_it_is_silent(
    sessions: Sessions, tmp_path: Path
) -> None:
    run = write_progress(tmp_path / "run", NOW, tokens_per_s=1200.0, wait_share=0.05, memory_bytes=3e9)
    with sessions.begin() as session:
        add_models(session)
        add_run(session, "r1", "done", ended=timedelta(hours=5))
        add_run(session, "r2", "running", directory=run)
    watching = monitor(sessions)
    watching.look(NOW + timedelta(seconds=5))
    assert value("hone_training_progress_ratio") == 0.25
    assert value("hone_training_tokens_per_second") == 1200
    assert value("hone_training_wait_ratio") == 0.05
    assert value("hone_training_memory_bytes", of="host") == 3e9
    for unknown in (value("hone_training_mfu_ratio"), value("hone_training_memory_bytes", of="gpu")):
        assert unknown != unknown
    watching.look(NOW + timedelta(minutes=3))
    silent = value("hone_training_tokens_per_second")
    assert silent != silent


def test_an_empty_database_is_no_error_and_what_went_away_goes_back_to_zero(sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_request(session, "open", created=timedelta(hours=1))
        set_switch(session, FREEZE, True, actor="ann", reason="holiday", now=NOW - timedelta(hours=2))
    watching = monitor(sessions)
    watching.look(NOW)
    assert value("hone_freeze_age_seconds") == pytest.approx(7200)
    with sessions.begin() as session:
        session.execute(text("DELETE FROM retrain_request"))
        set_switch(session, FREEZE, False, actor="ann", reason="back", now=NOW)
    watching.look(NOW)
    assert value("hone_pending_requests", status="open") == 0
    assert value("hone_pending_request_age_seconds") == 0
    assert value("hone_freeze_age_seconds") == 0


def test_a_canary_that_is_not_loaded_and_a_rollout_that_ended_are_shown(sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_models(session)
        rollout_id = start_rollout(session)
        epoch = enter_canary(session, rollout_id)
        since = (NOW - timedelta(seconds=90)).isoformat()
        save_evidence(session, rollout_id, epoch=epoch, evidence={"unready_since": since})
    watching = monitor(sessions)
    watching.look(NOW)
    assert value("hone_canary_unready_seconds") == pytest.approx(90)
    assert value("hone_rollouts", phase="canary") == 1
    with sessions.begin() as session:
        row = live_rollout(session)
        assert row
        for phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK):
            change = Transition(phase, 0, 0.0, "lost")
            epoch = transition(session, rollout_id, epoch=epoch, change=change, actor="test", now=NOW)
    watching.look(NOW)
    assert value("hone_canary_unready_seconds") == 0
    assert value("hone_rollouts", phase="canary") == 0
    assert value("hone_rollout_ended_timestamp_seconds", phase="rolled_back") == pytest.approx(NOW.timestamp())


def test_thumbs_are_counted_by_arm_once_and_only_those_stored_since_the_start(sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_models(session)
        add_thumbs(session, [1, 1, -1], NOW - timedelta(minutes=5))
        add_thumbs(session, [1, 1, -1, 0], NOW + timedelta(milliseconds=1), model_version="counted")
        add_thumbs(session, [-1], NOW + timedelta(milliseconds=1), model_version="counted", track="canary")
        add_thumbs(session, [1], NOW + timedelta(milliseconds=1), model_version="counted", signed=False)
    time.sleep(0.02)
    watching = monitor(sessions)
    for _ in range(2):
        watching.look(NOW)
    arm = {"track": "stable", "model_version": "counted"}
    assert value("hone_thumbs_total", value="up", **arm) == 2
    assert value("hone_thumbs_total", value="down", **arm) == 1
    assert value("hone_thumbs_total", track="canary", model_version="counted", value="down") == 1
    assert value("hone_thumbs_total", track="stable", model_version="old", value="up") is None


def test_a_restarted_monitor_comes_to_the_same_evidence_and_a_new_model_starts_anew(sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_models(session)
        session.execute(text("UPDATE model_alias SET updated_at = :at"), {"at": NOW - timedelta(hours=1)})
        add_thumbs(session, [-1.0] * 9, NOW - timedelta(hours=2))
        add_thumbs(session, [1, 1, 1, -1] * 10, NOW - timedelta(minutes=50))
        add_thumbs(session, [1, 1, 1, -1] * 10, NOW - timedelta(minutes=40), track="canary")
    first = monitor(sessions)
    first.look(NOW)
    assert drift.baseline_mean(first.streams["thumbs"]) == 0.75, "what was said before it became stable is left out"
    with sessions.begin() as session:
        add_thumbs(session, [-1.0] * 60, NOW - timedelta(minutes=30))
    first.look(NOW)
    second = monitor(sessions)
    second.look(NOW)
    found = value("hone_drift_log_e", stream="thumbs")
    assert found == pytest.approx(drift.evidence(first.streams["thumbs"]))
    assert found and found > (value("hone_drift_threshold_log") or 0) > 13
    assert value("hone_drift_mean_ratio", stream="thumbs", of="recent") == 0
    with sessions.begin() as session:
        alias = get_alias(session, "stable")
        assert alias
        set_alias(session, "stable", "new", expected_generation=alias.generation)
    second.look(NOW)
    assert value("hone_drift_log_e", stream="thumbs") == 0
    assert value("hone_drift_baseline_ratio", stream="thumbs") == 0
    assert value("hone_stable_model_info", model_version="old") is None


def test_postgres_refuses_what_a_look_would_write(sessions: Sessions) -> None:
    with pytest.raises(DBAPIError, match="read-only transaction"), reading(sessions) as session:
        session.execute(text("DELETE FROM response"))


def test_thumbs_are_read_through_their_index(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        values = {"stored_at": NOW, "event_id": facts.BEFORE_ALL, "settle_s": 10, "limit": 5}
        plan = "\n".join(session.scalars(text(f"EXPLAIN {facts.THUMBS}"), values))
    assert "feedback_event_thumbs_idx" in plan and "Sort" not in plan


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    torch.set_num_threads(1)
    model = load_model("judge", make_tiny_model(tmp_path_factory.mktemp("judge"), 1))
    with serving(runtime_app({"judge": model})) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def test_rewards_of_live_answers_come_from_the_runtime_and_each_answer_is_scored_once(
    sessions: Sessions, runtime: httpx.Client
) -> None:
    with sessions.begin() as session:
        add_models(session)
        session.execute(text("UPDATE model_alias SET updated_at = :at"), {"at": NOW - timedelta(hours=1)})
        for number in range(6):
            created_at = NOW + timedelta(seconds=number)
            add_answer(session, None, f"user {number}", 0, completion=f"Open page {number}.", created_at=created_at)
            add_answer(session, None, "shown", 0, track="replay", created_at=created_at)
    rewards = Rewards(runtime, "judge", NOW - timedelta(hours=1))
    watching = monitor(sessions, num_baseline=4, rewards=rewards)
    for _ in range(2):
        watching.look(NOW)
    assert list(rewards.kept) == ["stable"] and len(rewards.kept["stable"]) == 6
    low, middle, high = (value("hone_reward_score", track="stable", quantile=q) for q in ("0.1", "0.5", "0.9"))
    assert low is not None and middle is not None and high is not None and low < middle < high
    with sessions() as session:
        stored = session.scalars(select(ResponseScoreRow)).all()
    assert sorted(row.score for row in stored) == pytest.approx(sorted(rewards.kept["stable"])), "for rollouts"
    assert {row.scorer for row in stored} == {"judge"}
    stream = watching.streams["reward"]
    assert len(stream.early) == 4 and len(stream.recent) == 2


def test_a_model_that_the_runtime_has_not_is_named_with_the_remedy(sessions: Sessions, runtime: httpx.Client) -> None:
    with sessions.begin() as session:
        add_models(session)
        add_answer(session, None, "ann", 0, created_at=NOW)
    watching = monitor(sessions, rewards=Rewards(runtime, "unknown", NOW - timedelta(hours=1)))
    with pytest.raises(Retryable, match=r"unknown.*load it into the runtime"):
        watching.look(NOW)


def page_of(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


@pytest.mark.parametrize("away", [False, True])
def test_the_program_serves_what_it_sees_and_outlives_a_postgres_that_is_away(store_url: str, away: bool) -> None:
    (port,) = free_ports(1)
    database_url = "postgresql+psycopg2://nobody@127.0.0.1:9/none" if away else store_url
    env = {name: text for name, text in os.environ.items() if not name.startswith("HONE_")}
    command = [sys.executable, "-m", "monitoring", "--metrics-port", str(port), "--interval-s", "0.2"]
    process = subprocess.Popen(command, env=env | {"HONE_DATABASE_URL": database_url}, cwd=ROOT)
    expected = 'hone_monitor_failures_total{reason="database"}' if away else "hone_plan_ttl_seconds 900.0"
    try:
        deadline = time.monotonic() + 30
        page = ""
        while expected not in page:
            assert time.monotonic() < deadline and process.poll() is None, page
            time.sleep(0.1)
            try:
                page = page_of(f"http://127.0.0.1:{port}")
            except httpx.TransportError:
                continue
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
        process.terminate()
        assert process.wait(timeout=15) == 0
    finally:
        process.kill()
