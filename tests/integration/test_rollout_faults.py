"""A short version of benchmarks.rollout_faults, and proof that its checks find what is broken."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.rollout_faults import SEED, run_schedule
from benchmarks.rollout_faults_clean import clean_rollback
from benchmarks.rollout_faults_world import Stage
from hone.records import TrafficPlan
from hone.store.engine import make_engine, make_sessions, migrate
from serving.router import Router


@pytest.fixture(scope="module")
def stage(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    from hone.local.postgres import create_database, drop_database

    url = create_database(postgres_url, "rollout_faults")
    migrate(url)
    engine = make_engine(url, pool_size=2)
    with ExitStack() as stack:
        yield Stage(make_sessions(engine), tmp_path_factory.mktemp("routers"), stack)
    engine.dispose()
    drop_database(postgres_url, "rollout_faults")


def test_random_faults_break_no_invariant(stage: Stage) -> None:
    results = [run_schedule(stage, SEED + number) for number in range(6)]
    assert [breach for result in results for breach in result.breaches] == []
    assert len({fault for result in results for fault in result.faults}) > 8
    assert {result.line for result in results} > {"local"}


@pytest.mark.parametrize("line", ["local", "seldon_v2"])
def test_a_rollback_needs_no_second_look(stage: Stage, line: str) -> None:
    assert clean_rollback(stage, line, SEED)["reconciles"] <= 2


def test_routers_that_take_every_plan_are_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(router: Router, plan: TrafficPlan, now: object) -> None:
        router.plan = plan

    def never_expired(router: Router, now: object) -> float:
        return router.plan.canary_weight if router.plan else 0.0

    monkeypatch.setattr(Router, "take", take)
    monkeypatch.setattr(Router, "weight", never_expired)
    assert any(run_schedule(stage, SEED + number).breaches for number in range(12))


def test_a_controller_that_credits_everybody_to_stable_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import hone.store.rollout_units as units

    monkeypatch.setattr(units, "CLOSE", units.CLOSE.replace("a.track, a.stage", "'stable', a.stage"))
    assert any(run_schedule(stage, SEED + number).misattributed for number in range(3))
