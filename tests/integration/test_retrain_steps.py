"""The five steps of a retraining on a real database with a real, tiny training run; each may be repeated."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.datasets import FreezePolicy, user_split
from hone.errors import NotEnoughData, ProgramFailed
from hone.records import Verdict
from hone.settings import Settings
from hone.store.datasets import get_dataset
from hone.store.evaluations import list_evaluations
from hone.store.imports import import_file
from hone.store.lineage import ancestors
from hone.store.models import get_model, import_model, override_gates, set_alias, stable_model
from hone.store.requests import open_request
from hone.store.tables import DatasetRow, ModelVersionRow, RetrainRequestRow, RolloutRow, TrainingRunRow
from tests.support.pairs import add_edit, add_label, add_pair
from tests.support.tiny_model import make_tiny_model
from tests.support.training import person, question, row, write_rows
from training import retrain
from training.run import run_job
from training.spec import Job

Sessions = sessionmaker[Session]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SPEC = """
steps = 4
batch_size = 4
lora = {rank = 4, alpha = 8}
evaluation = {num_prompts = 6, num_samples = 2, max_new_tokens = 12, num_bootstraps = 100}
"""
LENIENT = {
    "min_test_pairs": 1,
    "min_preference_accuracy": -1,
    "min_judged_answers": 1,
    "min_judged_prompts": 1,
    "min_win_rate": -1,
    "min_forgetting_checks": 1,
    "max_forgetting": 1,
    "min_end_rate": 0,
    "max_end_rate_drop": 1,
    "max_length_growth": 99,
    "max_repeat_excess": 1,
    "max_distinct_drop": 1,
}
"""Bounds that random weights meet."""


@pytest.fixture
def settings(store_url: str, sessions: Sessions, tmp_path: Path) -> Settings:
    (tmp_path / "spec.toml").write_text(SPEC)
    golden = write_rows(tmp_path / "golden.jsonl", [{"prompt": f"Golden {k}?", "must_contain": []} for k in range(3)])
    base = make_tiny_model(tmp_path / "base")
    with sessions.begin() as session:
        set_alias(session, "stable", import_model(session, base), expected_generation=None)
    policy = Path(__file__).parents[2] / "configs" / "rollout.toml"
    return Settings(
        mode="active",
        database_url=store_url,
        var_dir=tmp_path / "var",
        trigger={"max_user_share": 1.0},
        training={"spec": tmp_path / "spec.toml", "golden_tests": golden, "timeout_s": 240},
        rollout={"policy": policy},
    )


def add_people(sessions: Sessions, number: int = 80) -> None:
    with sessions.begin() as session:
        for turn in range(number):
            add_pair(session, turn, user_id=person(turn % 40))


def import_general(sessions: Sessions, settings: Settings) -> None:
    rows = [{"prompt": question(900 + k), "completion": f"General answer {k}."} for k in range(20)]
    with sessions.begin() as session:
        import_file(session, write_rows(settings.training.spec.parent / "general.jsonl", rows), "general")


def ask(sessions: Sessions, name: str = "pairs:0", **fields: Any) -> None:
    with sessions.begin() as session:
        open_request(session, crossing=name, reason="test", method="dpo", **fields)


def request_row(sessions: Sessions, request_id: str) -> RetrainRequestRow:
    with sessions() as session:
        return session.get_one(RetrainRequestRow, request_id)


def count(sessions: Sessions, table: type[Any]) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.slow
def test_a_retraining_from_claim_to_rollout_with_every_step_repeated(sessions: Sessions, settings: Settings) -> None:
    add_people(sessions)
    import_general(sessions, settings)
    ask(sessions, spec={"gates": {**LENIENT, "min_win_rate": 2}})
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    assert retrain.claim(settings, "run-1") == request_id
    assert retrain.claim(settings, "run-2") is None
    dataset_id = retrain.freeze(settings, request_id)
    assert retrain.freeze(settings, request_id) == dataset_id
    run_id = retrain.train(settings, request_id)
    log = settings.var_dir / "runs" / run_id / "train.log"
    size = log.stat().st_size
    assert retrain.train(settings, request_id) == run_id
    assert log.stat().st_size == size, "a done run is not run again"
    version = retrain.judge(settings, run_id)
    assert retrain.judge(settings, run_id) == version

    with sessions() as session:
        verdicts = {result.gate: result.verdict for result in list_evaluations(session, version)}
        model = get_model(session, version)
        assert (model.status, model.run_id, model.dataset_id) == ("rejected", run_id, dataset_id)
        replay = session.get_one(TrainingRunRow, run_id).metrics["replay"]
    assert replay["general"]["num"] == 6, "the import named `general` makes up a tenth by itself"
    assert replay["older"]["why"] == "the base was trained on no earlier snapshot that this method reads"
    assert verdicts.pop("win_rate") is Verdict.FAIL
    assert set(verdicts.values()) == {Verdict.PASS}
    assert retrain.start_rollout(settings, run_id) is None
    done = request_row(sessions, request_id)
    assert done.status == "done"
    assert "win rate against the champion" in (done.detail or "")

    with sessions.begin() as session:
        override_gates(session, version, "ann", "a test of the way to traffic", NOW)
    rollout_id = retrain.start_rollout(settings, run_id)
    assert rollout_id
    assert retrain.start_rollout(settings, run_id) == rollout_id
    assert count(sessions, RolloutRow) == 1

    ask(sessions, "manual:again", spec={"gates": {**LENIENT, "min_win_rate": 2}})
    again = retrain.claim(settings, "run-3")
    assert again
    retrain.freeze(settings, again)
    assert retrain.train(settings, again) == run_id, "nothing is new, so the run is the same"
    assert retrain.start_rollout(settings, run_id, "run-3") == rollout_id
    assert request_row(sessions, again).status == "done", "the request that this DAG run claimed has ended"
    assert (count(sessions, ModelVersionRow), count(sessions, TrainingRunRow), count(sessions, DatasetRow)) == (2, 1, 2)


@pytest.mark.slow
def test_lone_thumbs_are_retrained_on_by_kto_when_the_labels_choose(sessions: Sessions, settings: Settings) -> None:
    with sessions.begin() as session:
        for turn in range(80):
            add_label(session, turn, good=turn % 3 > 0)
        open_request(session, crossing="a", reason="test", method="auto", spec={"kto": {"min_rows": 4}})
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    dataset_id = retrain.freeze(settings, request_id)
    with sessions() as session:
        dataset = get_dataset(session, dataset_id)
        assert (dataset.kind, dataset.num_train > 20) == ("labels", True)
    assert request_row(sessions, request_id).method == "kto"
    run_id = retrain.train(settings, request_id, run_here)
    version = retrain.judge(settings, run_id)
    with sessions() as session:
        assert session.get_one(TrainingRunRow, run_id).method == "kto"
        assert get_model(session, version).status == "inconclusive", "nobody's pairs could judge it"


def run_here(_: Settings, job: Job) -> None:
    """Do a job without a process of its own: torch is there already."""
    run_job(job)


@pytest.mark.slow
def test_edits_are_imitated_and_then_preferred_each_stage_a_run_with_its_lineage(
    sessions: Sessions, settings: Settings
) -> None:
    with sessions.begin() as session:
        for turn in range(60):
            add_edit(session, turn, f"Corrected {turn}: open the Orders page.")
        spec = {"gates": LENIENT, "stages": {"sft": {"steps": 3}}}
        open_request(session, crossing="a", reason="test", method="auto", spec=spec)
        stable = stable_model(session).model_version
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    dataset_id = retrain.freeze(settings, request_id)
    request = request_row(sessions, request_id)
    assert (request.method, request.spec["stages"]["sft"]["steps"]) == ("sft+dpo", 3)
    broken = settings.model_copy(update={"training_python": Path("/bin/false")})
    with pytest.raises(ProgramFailed, match="ended with code 1"):
        retrain.train(broken, request_id)
    run_id = retrain.train(settings, request_id, run_here)
    version = retrain.judge(settings, run_id)
    with sessions() as session:
        imitating, preferring = session.scalars(select(TrainingRunRow).order_by(TrainingRunRow.started_at))
        assert [run.method for run in (imitating, preferring)] == ["sft", "dpo"]
        assert (preferring.run_id, preferring.dataset_id) == (run_id, dataset_id)
        demonstrations = get_dataset(session, imitating.dataset_id)
        assert (demonstrations.kind, demonstrations.dataset_id) == (
            "demonstrations",
            request.spec["stages"]["sft"]["dataset"],
        )
        assert (imitating.metrics["num_steps"], preferring.metrics["num_steps"]) == (3, 4)
        between = preferring.base_version
        assert (imitating.base_version, get_model(session, between).run_id) == (stable, imitating.run_id)
        line = [found["model_version"] for found in ancestors(session, get_model(session, version))]
        assert line == [between, stable]
        assert get_model(session, between).status != "candidate", "the first stage met its gates too"
    assert retrain.train(broken, request_id) == run_id, "neither stage is done again"
    rollout_id = retrain.start_rollout(settings, run_id)
    assert rollout_id, request_row(sessions, request_id).detail
    with sessions() as session:
        rollout = session.get_one(RolloutRow, rollout_id)
        assert (rollout.stable_version, rollout.canary_version) == (stable, version)


def test_without_a_corrected_answer_to_imitate_pairs_alone_are_trained_on(
    sessions: Sessions, settings: Settings
) -> None:
    """The only people who corrected anything are held out."""
    held_out = [turn for turn in range(400) if user_split(person(turn), FreezePolicy()) == "test"][:20]
    with sessions.begin() as session:
        for turn in held_out:
            add_edit(session, turn, f"Corrected {turn}.")
        for turn in range(1000, 1015):
            add_pair(session, turn)
        for name, method in (("a", "auto"), ("b", "sft+dpo")):
            open_request(session, crossing=name, reason="test", method=method)
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    retrain.freeze(settings, request_id)
    request = request_row(sessions, request_id)
    assert (request.method, request.spec) == ("dpo", {"sft_weight": 1.0})
    asked_for = retrain.claim(settings, "run-2")
    assert asked_for
    with pytest.raises(NotEnoughData, match="no usable row is left"):
        retrain.freeze(settings, asked_for)


@pytest.mark.slow
def test_an_imported_file_is_judged_by_people_and_a_passed_model_waits_in_observe_mode(
    sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    add_people(sessions)
    lines = [{"id": k, **{key: row(k)[key] for key in ("prompt", "chosen", "rejected")}} for k in range(200, 240)]
    with sessions.begin() as session:
        dataset_id = import_file(session, write_rows(tmp_path / "pairs.jsonl", lines), "vendor")
    ask(sessions, "manual:vendor", dataset_id=dataset_id, spec={"gates": LENIENT})
    observing = settings.model_copy(update={"mode": "observe"})
    request_id = retrain.claim(observing, "run-1")
    assert request_id
    assert retrain.freeze(observing, request_id) == dataset_id
    run_id = retrain.train(observing, request_id)
    version = retrain.judge(observing, run_id)
    with sessions() as session:
        results = {result.gate: result for result in list_evaluations(session, version)}
        sources = set(session.scalars(select(DatasetRow.source)))
    assert results["held_out_preference"].measurements["num_pairs"] >= 5
    assert sources == {"vendor", "feedback"}
    assert retrain.start_rollout(observing, run_id) is None
    assert "mode is observe" in (request_row(sessions, request_id).detail or "")


def test_a_failed_subprocess_names_its_log_and_a_retry_may_succeed_later(
    sessions: Sessions, settings: Settings
) -> None:
    add_people(sessions, 20)
    ask(sessions)
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    retrain.freeze(settings, request_id)
    broken = settings.model_copy(update={"training_python": Path("/bin/false")})
    with pytest.raises(ProgramFailed, match=r"ended with code 1; log: .*train\.log"):
        retrain.train(broken, request_id)
    with sessions() as session:
        run = session.scalars(select(TrainingRunRow)).one()
        assert run.status == "failed"
        assert "train.log" in (run.detail or "")
    retrain.fail(settings, dag_run_id="run-1", detail="it ended with code 1")
    retrain.fail(settings, dag_run_id="run-1", detail="again")
    failed = request_row(sessions, request_id)
    assert (failed.status, failed.detail) == ("failed", "it ended with code 1")


def test_a_run_that_takes_too_long_is_stopped(sessions: Sessions, settings: Settings, tmp_path: Path) -> None:
    add_people(sessions, 20)
    ask(sessions)
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    retrain.freeze(settings, request_id)
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    hasty = settings.training.model_copy(update={"timeout_s": 1})
    slow = settings.model_copy(update={"training_python": sleeper, "training": hasty})
    with pytest.raises(ProgramFailed, match="timeout_s = 1"):
        retrain.train(slow, request_id)


def test_nothing_to_train_on_is_said_before_anything_is_started(sessions: Sessions, settings: Settings) -> None:
    ask(sessions)
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    with pytest.raises(NotEnoughData, match="there are no pairs"):
        retrain.freeze(settings, request_id)
    with pytest.raises(NotEnoughData, match="freeze first"):
        retrain.train(settings, request_id)


def test_the_watermark_of_the_claim_bounds_the_dataset(sessions: Sessions, settings: Settings) -> None:
    add_people(sessions, 20)
    ask(sessions)
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    with sessions.begin() as session:
        for turn in range(50, 60):
            add_pair(session, turn)
    with sessions() as session:
        dataset = get_dataset(session, retrain.freeze(settings, request_id))
        assert dataset.num_train + dataset.num_dev + dataset.num_test == 20


def test_the_steps_leave_torch_alone() -> None:
    code = (
        "import sys, training.retrain; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
