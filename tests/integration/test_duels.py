"""Duels on the real parts: gateway, Kafka, ingest, pairs, controller, `hone rollout status`, and two real models."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone import ids
from hone.cli import cli
from hone.local.mock_kafka import MockCluster
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC
from hone.rollout import parse_policy
from hone.settings import Settings
from hone.store.rollout_units import list_units
from hone.store.rollouts import get_rollout
from hone.store.tables import ModelAliasRow, ModelVersionRow, PreferencePairRow, ResponseRow
from serving.controller import Controller
from serving.router import bucket
from serving.runtime.app import runtime_app
from serving.tally import fold, start_tally
from serving.traffic.local import LocalTraffic
from tests.support.gateway import IDENTITY_KEY, Served, gateway
from tests.support.ingest_process import Program, wait_for
from tests.support.platform import KEY
from tests.support.rollouts import POLICY, start_rollout
from tests.support.web import serving

WINDOW_S = 1.0
DUELS = POLICY | {
    "duel_share": 1.0,
    "outcome_window_s": WINDOW_S,
    "settle_s": 0,
    "promote_weight": 0.5,
    "stages": [{"weight": 0.5, "min_users": 20}],
}
VERSIONS = {"stable": "old", "canary": "new"}
ACTIVE = select(PreferencePairRow).where(PreferencePairRow.active)
Sessions = sessionmaker[Session]


@pytest.fixture
def broker() -> Iterator[str]:
    cluster = MockCluster({RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1})
    yield cluster.bootstrap_servers
    cluster.close()


@pytest.fixture
def served(
    broker: str, store_url: str, sessions: Sessions, models: dict[str, Path], tmp_path: Path
) -> Iterator[tuple[Served, Controller]]:
    """A gateway over a runtime that the controller loads, and ingest's two programs on the same broker and store."""
    with sessions.begin() as session:
        for version, directory in models.items():
            row = ModelVersionRow(model_version=version, digest=version, directory=str(directory), status="passed")
            session.add(row)
        session.flush()
        session.add(ModelAliasRow(alias="stable", model_version="old", generation=1))
    env = {
        "HONE_DATABASE_URL": store_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": broker,
        "HONE_KAFKA_INCARNATION": "mock-1",
        "HONE_IDENTITY_KEY": IDENTITY_KEY,
    }
    with ExitStack() as stack:
        for name in ("events", "pairs"):
            stack.callback(Program(name, env).end)
        runtime = stack.enter_context(serving(runtime_app({})))
        served = stack.enter_context(gateway(tmp_path, runtime, bootstrap=broker, stable=None, key=KEY))
        backend = stack.enter_context(LocalTraffic([served.url], runtime, KEY))
        yield served, Controller(sessions, backend, Settings(mode="active"))


def two_of_each_arm(rollout_id: UUID) -> dict[str, list[str]]:
    """Return names whose own arm the router's hash says."""
    key, found = bytes.fromhex(IDENTITY_KEY), dict[str, list[str]](stable=[], canary=[])
    for name in (f"user-{number}" for number in range(200)):
        arm = "canary" if bucket(key, rollout_id, ids.user_id(key, name)) < 0.5 else "stable"
        if len(found[arm]) < 2:
            found[arm].append(name)
    return found


def rate(served: Served, answer: str, value: int) -> None:
    assert served.tell({"response_id": answer, "kind": "thumbs", "value": value}).status_code == 202


def test_a_duel_is_served_by_the_other_arm_makes_a_pair_and_is_reported_beside_the_verdict(
    served: tuple[Served, Controller], sessions: Sessions, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, controller = served
    with sessions.begin() as session:
        rollout_id = start_rollout(session, DUELS, now=datetime.now(UTC))
    controller.look(datetime.now(UTC))
    assert gate.http.get("/v1/router/plan").json()["weight_in_force"] == 0.5
    users = two_of_each_arm(rollout_id)
    names = [name for arm in users.values() for name in arm]
    for name in names:
        first = gate.answer_id(name)
        second = gate.answer_id(name)
        rate(gate, first, -1)
        rate(gate, second, 1)
    time.sleep(WINDOW_S)
    gate.answer_id("later")  # the watermark of stored rows passes the window of those before

    def stored() -> bool:
        with sessions() as session:
            sources = [pair.source for pair in session.scalars(ACTIVE)]
            num_answers = session.scalar(select(func.count()).select_from(ResponseRow))
            return sources == ["thumbs"] * len(names) and num_answers == 2 * len(names) + 1

    wait_for(stored)
    controller.look(datetime.now(UTC) + timedelta(seconds=WINDOW_S))
    with sessions() as session:
        answers = {row.response_id: row for row in session.scalars(select(ResponseRow))}
        pairs = session.scalars(ACTIVE).all()
        units = list_units(session, rollout_id)
        row = get_rollout(session, rollout_id)
    for pair in pairs:
        assert pair.chosen_id is not None
        assert pair.rejected_id is not None
        one, two = answers[pair.rejected_id], answers[pair.chosen_id]
        assert (one.duel, two.duel, one.turn_id) == (False, True, two.turn_id)
        assert {one.track, two.track} == {"stable", "canary"}
        assert [answer.model_version for answer in (one, two)] == [VERSIONS[answer.track] for answer in (one, two)]
        assert (one.propensity, two.propensity) == (0.5, 1.0), "at a weight of a half each regenerate is a duel"
    assert sorted(unit.track for unit in units) == ["canary", "canary", "stable", "stable"]
    assert {unit.value for unit in units} == {0.0}, "the first answers were disliked; the duels' thumbs are not theirs"
    policy = parse_policy(row.policy)
    tally = fold(start_tally(policy), units, policy)
    assert float(tally.up.log_wealth()[0]) == row.evidence["log_wealth_up"]
    duels = row.evidence["duels"]
    assert (duels["num"], duels["num_compared"], duels["num_contrasts"], duels["contrast"]) == (4, 4, 2, 0.0)
    monkeypatch.setenv("HONE_DATABASE_URL", store_url)
    shown = CliRunner().invoke(cli, ["rollout", "status"])
    assert shown.exit_code == 0, shown.output
    assert "duels     4: +0.0% for the canary (-100.0% to +100.0%), not in the verdict" in shown.output
