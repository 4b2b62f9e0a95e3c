"""Commands of live traffic and replay, on a real Postgres and against the real gateway."""

import json
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select, update

from hone.cli.context import utc_now
from hone.ids import uuid7
from hone.records import TrafficPlan
from hone.store.events import store_events
from hone.store.tables import RolloutRow
from tests.support.cli import Run, Sessions, audit, make_run, read
from tests.support.events import feedback, response
from tests.support.gateway import gateway
from tests.support.rollouts import add_models, enter_canary, start_rollout


@pytest.fixture
def run(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return make_run(store_url, monkeypatch, tmp_path)


POLICY = "horizon_pairs = 300\nmin_canary_users = 20\n[[stages]]\nweight = 0.5\nmin_users = 20\n"


def test_a_rollout_is_started_held_and_taken_back_by_hand(run: Run, sessions: Sessions, tmp_path: Path) -> None:
    with sessions.begin() as session:
        add_models(session)
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    assert "no rollout is live" in run("rollout", "pause", "--reason", "x", code=1).stderr
    started = run("rollout", "start", "new", "--policy", policy, "--reason", "try it", "--actor", "ann")
    assert "it gets no traffic before HONE_MODE=active" in started.stderr
    assert "is live" in run("rollout", "start", "new", "--policy", policy, "--reason", "again", code=1).stderr
    with sessions.begin() as session:
        enter_canary(session, session.scalars(select(RolloutRow.rollout_id)).one(), weight=0.5)
    run("rollout", "pause", "--reason", "let me look")
    run("rollout", "resume", "--reason", "fine")
    assert "cannot resume a rollout that is canary" in run("rollout", "resume", "--reason", "x", code=1).stderr
    run("rollout", "rollback", "--reason", "no")
    found = read(run("rollout", "status", "--json"))
    phases = [change["to_phase"] for change in found["transitions"]]
    assert phases == ["canary", "paused", "canary", "rolling_back"]
    assert "paused → canary" in run("rollout", "status").stdout
    assert read(run("rollout", "list", "--json"))[0]["phase"] == "rolling_back"
    with sessions.begin() as session:
        session.execute(update(RolloutRow).values(phase="rolled_back", ended_at=utc_now()))
    assert "new against old" in run("rollout", "watch").stdout, "an ended rollout is shown once"
    assert "rollout.rollback" in [action for action, _, _ in audit(sessions)]


def test_a_promotion_by_hand_moves_stable(run: Run, sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_models(session)
        enter_canary(session, start_rollout(session))
    run("rollout", "promote", "--reason", "urgent fix")
    assert read(run("status", "--json"))["stable"]["model_version"] == "new"


def test_the_ledger_shows_what_each_rollout_may_risk_and_a_person_approves(
    run: Run, sessions: Sessions, tmp_path: Path
) -> None:
    with sessions.begin() as session:
        add_models(session)
    policy = tmp_path / "policy.toml"
    policy.write_text("approval = true\n" + POLICY)
    assert "number 1: alpha 0.025" in run("rollout", "ledger", "--policy", policy).stdout
    run("rollout", "start", "new", "--policy", policy, "--reason", "try it")
    assert "waits for a person" in run("status").stdout
    run("rollout", "approve", "--reason", "the gates look right", "--actor", "ann")
    assert "approved by ann already" in run("rollout", "approve", "--reason", "again", code=1).stderr
    assert "waits for a person" not in run("rollout", "status").stdout
    found = read(run("rollout", "ledger", "--policy", policy, "--json"))
    assert [(entry["number"], entry["proven"]) for entry in found["entries"]] == [(1, False)]
    assert found["next"]["number"] == 2
    text = run("rollout", "ledger", "--policy", policy).stdout
    assert "an expected share of at most 5% is wrong" in text
    assert "promoted at an e-value of 120" in text


def test_the_plan_of_a_rollout_comes_from_the_votes_that_are_stored(
    run: Run, sessions: Sessions, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    assert (
        "not enough traffic yet to tell: of the 30 people that it takes, 0"
        in run("rollout", "plan", "--policy", policy, code=1).stderr
    )
    asked = run(
        "rollout", "plan", "--policy", policy, "--users-per-day", 1000, "--base-rate", 0.6, "--lift", 0.3, "--json"
    )
    forecast = read(asked)["forecasts"][0]
    assert forecast["promoted_share"] > 0.9
    assert 0 < forecast["median_days"] < 1

    ago = {"occurred_at": utc_now() - timedelta(hours=12)}
    with sessions.begin() as session:
        for n in range(32):
            user, track = f"user{n}", "replay" if n > 29 else "stable"
            vote = feedback("thumbs", f"r{n}", user=user, value=1.0 if n % 2 else -1.0, **ago)
            store_events(session, [response(f"r{n}", turn=f"t{n}", user=user, track=track)], [vote])
    found = read(run("rollout", "plan", "--policy", policy, "--lift", 0.3, "--json"))
    assert found["users_per_day"] == pytest.approx(60, rel=0.01), "30 in half a day; replayed people do not count"
    assert found["base_rate"] == 0.5
    assert "+30%" in run("rollout", "plan", "--policy", policy, "--lift", 0.3).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lift", 5), "--lift 5 is no share: five points are 0.05"),
        (("--lift", 0.5), "--lift 0.5: stable's mean is 0.600, so a canary's can differ by -0.600 to +0.400"),
        (("--users-per-day", 0), "give a number above 0"),
    ],
)
def test_a_plan_for_what_cannot_be_is_refused_in_one_line(
    run: Run, tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    plan = ("rollout", "plan", "--policy", policy, "--users-per-day", 1000, "--base-rate", 0.6)
    assert said in run(*plan, *words, code=1).stderr


def test_a_plan_from_one_vote_says_how_many_it_takes(run: Run, sessions: Sessions, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with sessions.begin() as session:
        vote = feedback("thumbs", "r", user="u", value=1.0, occurred_at=utc_now())
        store_events(session, [response("r", turn="t", user="u")], [vote])
    text = run("rollout", "plan", "--policy", policy, code=1).stderr
    assert "not enough traffic yet to tell: of the 30 people that it takes, 1 rated thumbs in the last 7 days" in text


def test_ctrl_c_ends_watching_calmly(run: Run, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    with sessions.begin() as session:
        add_models(session)
        enter_canary(session, start_rollout(session))

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    for words in (("watch",), ("status", "--watch")):
        ended = run("rollout", *words)
        assert "mode is observe: the canary is loaded, and gets no traffic" in ended.stdout
        assert "Aborted" not in ended.output


def test_break_glass_needs_the_gateway_alone(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql+psycopg2://nobody@127.0.0.1:9/none")
    rollout_id, words = uuid7(), ("rollout", "rollback", "--break-glass", "--reason", "harm", "--actor", "ann")
    with gateway(tmp_path / "gateway", "http://127.0.0.1:9") as served:
        monkeypatch.setenv("HONE_GATEWAY_URL", served.url)
        assert "follows no rollout" in run(*words).stdout
        plan = TrafficPlan(
            fence=1,
            stable="m-old",
            canary="m-new",
            canary_weight=0.5,
            rollout_id=rollout_id,
            stage=0,
            expires_at=utc_now() + timedelta(minutes=5),
        )
        served.take(plan)
        assert "canary weight 0" in run(*words).stdout
        state = served.http.get("/v1/router/plan").json()
        assert (state["weight_in_force"], state["broken_glass"]) == (0.0, [str(rollout_id)])
        served.take(msgspec.structs.replace(plan, fence=2))
        assert served.http.get("/v1/router/plan").json()["weight_in_force"] == 0.0
        monkeypatch.setenv("HONE_ROUTER_URLS", json.dumps([served.url, "http://127.0.0.1:9"]))
        failed = run(*words, code=1)
    assert "no answer" in failed.stdout
    assert "not every router has it" in failed.stderr


def test_a_replay_without_gateway_or_key_ends_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"id": "a", "prompt": [{"role": "user", "content": "Hi"}], "responses": [{"text": "x"}, {"text": "y"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row | {"preferences": [{"a": 0, "b": 1, "p_b_better": 1.0}]}))
    assert read(run("replay", file, "--dry-run", "--json"))["conversations"] == 1
    monkeypatch.setenv("HONE_GATEWAY_URL", "http://127.0.0.1:9")
    assert "no gateway answers at http://127.0.0.1:9" in run("replay", file, code=1).stderr
    with gateway(tmp_path / "gateway", "http://127.0.0.1:9") as served:
        monkeypatch.setenv("HONE_GATEWAY_URL", served.url)
        monkeypatch.setenv("HONE_ADMIN_KEY", "another key")
        assert "is HONE_ADMIN_KEY the gateway's?" in run("replay", file, code=1).stderr
    monkeypatch.setenv("HONE_ADMIN_KEY", "")
    assert "admin_key is not set" in run("replay", file, code=1).stderr


def test_what_a_replay_lost_is_named_and_the_exit_code_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here a gateway and a broker answer, but nobody carries the events to Postgres."""
    row = {"id": "a", "prompt": [{"role": "user", "content": "Hi"}], "responses": [{"text": "x"}, {"text": "y"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row | {"preferences": [{"a": 0, "b": 1, "p_b_better": 0.5}]}))
    with gateway(tmp_path / "gateway", "http://127.0.0.1:9") as served:
        monkeypatch.setenv("HONE_GATEWAY_URL", served.url)
        lost = run("replay", file, "--deadline", "0.5", "--json", code=1)
    account = read(lost)
    assert account["accounted_for"] is False
    assert account["differences"][:2] == [
        "1 of 1 answers are not in Postgres",
        "1 of 1 thumbs events are not in Postgres",
    ]
