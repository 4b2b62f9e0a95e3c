"""The replay mix of a retraining on a real database: what the base has learnt from, and an import of instructions."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from hone.datasets import FreezePolicy
from hone.errors import ConfigError
from hone.settings import Settings
from hone.store.datasets import freeze_feedback, get_dataset
from hone.store.imports import import_file
from hone.store.models import get_alias, import_model, register_model, set_alias, stable_model
from hone.store.requests import open_request
from hone.store.tables import ResponseRow
from hone.weights import weights_digest
from tests.support.pairs import add_pair
from tests.support.tiny_model import make_tiny_model
from tests.support.training import QUICK, person, question, write_rows
from training import retrain
from training.jobs import make_job
from training.run import run_job
from training.spec import RunSpec, merged

Sessions = sessionmaker[Session]
OPEN = FreezePolicy(max_user_share=1.0)


@pytest.fixture
def settings(store_url: str, sessions: Sessions, tiny_base: Path, tmp_path: Path) -> Settings:
    """A stable model that is a base trained on a first snapshot, of 40 pairs; 40 more came since."""
    (tmp_path / "spec.toml").write_text("")
    second = make_tiny_model(tmp_path / "second", seed=1)
    golden = write_rows(tmp_path / "golden.jsonl", [{"prompt": question(903), "must_contain": []}])
    with sessions.begin() as session:
        for turn in range(40):
            add_pair(session, turn, user_id=person(turn % 40))
        first = freeze_feedback(session, watermark=None, policy=OPEN)
        base, digest = import_model(session, tiny_base), weights_digest(second)
        stable = register_model(session, digest=digest, directory=second, parent=base, dataset_id=first)
        set_alias(session, "stable", stable, expected_generation=None)
        for turn in range(40, 80):
            add_pair(session, turn, user_id=person(turn % 40))
    return Settings(
        mode="active",
        database_url=store_url,
        var_dir=tmp_path / "var",
        trigger={"max_user_share": 1.0},
        training={"spec": tmp_path / "spec.toml", "golden_tests": golden, "timeout_s": 240},
    )


def import_general(sessions: Sessions, path: Path, label: str = "general") -> str:
    """Fifty instructions; one of them is asked of the operator's golden tests too."""
    rows = [{"prompt": question(900 + k), "completion": f"General answer {k}."} for k in range(50)]
    with sessions.begin() as session:
        return import_file(session, write_rows(path / f"{label}.jsonl", rows), label, policy=OPEN)


def job_of(sessions: Sessions, settings: Settings, **fields: Any) -> Any:
    with sessions.begin() as session:
        dataset = freeze_feedback(session, watermark=None, policy=OPEN)
        return make_job(session, settings, RunSpec.model_validate(merged({**QUICK, "dataset": dataset}, fields)))


def run_here(settings: Settings, request_id: str) -> Path:
    """The step `train`, in this process; return the run's directory."""
    return settings.var_dir / "runs" / retrain.train(settings, request_id, lambda _, job: run_job(job))


def written(job: Any, place: str = "data") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.directory / place / "train.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_retraining_mixes_what_was_learnt_before_and_general_instructions_and_tells_it(
    sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    general = import_general(sessions, tmp_path)
    with sessions.begin() as session:
        open_request(session, crossing="a", reason="test", method="dpo", spec={**QUICK, "steps": 8})
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    dataset_id = retrain.freeze(settings, request_id)
    run = run_here(settings, request_id)
    replay = json.loads((run / "evaluation.json").read_text())["training"]["replay"]
    with sessions() as session:
        num_train = get_dataset(session, dataset_id).num_train
    older, instructions = replay["older"], replay["general"]
    assert (replay["fresh"] + older["of"], instructions["datasets"]) == (num_train, [general])
    total = replay["fresh"] + older["num"] + instructions["num"]
    assert older["num"] == round(0.2 * replay["fresh"] / 0.7)
    assert instructions["num"] == round(0.1 * replay["fresh"] / 0.7)
    assert len((run / "data" / "train.jsonl").read_text().splitlines()) == total
    report = json.loads((run / "evaluation.json").read_text())
    assert (report["training"]["num_rows"], report["training"]["num_steps"]) == (total, 8)
    assert json.loads((run / "birth_certificate.json").read_text())["training"]["replay"] == replay
    assert (
        f"| mixed in | {older['num']} older rows, {instructions['num']} general" in (run / "MODEL_CARD.md").read_text()
    )
    with sessions.begin() as session:
        open_request(session, crossing="b", reason="test", method="dpo", spec={**QUICK, "steps": 8})
    again = retrain.claim(settings, "run-2")
    assert again
    retrain.freeze(settings, again)
    assert run_here(settings, again) == run, "the same mix is the same run"


def test_held_out_rows_and_the_operators_checks_are_never_mixed_in(
    sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    import_general(sessions, tmp_path)
    job = job_of(sessions, settings, replay={"general_share": 0.5, "older_share": "all"})
    rows = written(job)
    general = [row for row in rows if row.get("mixed") == "general"]
    assert len(general) >= 20
    prompts = {row["prompt"][0]["content"] for row in rows}
    assert question(903) not in prompts, "a golden test"
    held_out = [
        json.loads(line) for name in ("dev", "test") for line in (job.directory / "data" / f"{name}.jsonl").open()
    ]
    assert held_out
    assert prompts.isdisjoint(row["prompt"][0]["content"] for row in held_out)
    judging = written(job, "evaluation")
    assert job.evaluation_data == job.directory / "evaluation"
    assert all("mixed" not in row and row["chosen"] for row in judging), "people's pairs alone judge"


def test_another_general_set_is_another_run_and_none_is_said(
    sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    alone = job_of(sessions, settings)
    assert alone.replay["general"] == {
        "num": 0, "of": 0, "share": 0.1, "datasets": [], "why": "no import is named 'general'",
    }  # fmt: skip
    assert alone.replay["older"]["num"] > 0
    import_general(sessions, tmp_path)
    with_general = job_of(sessions, settings)
    assert with_general.run_id != alone.run_id
    assert job_of(sessions, settings).run_id == with_general.run_id


def test_a_base_that_was_trained_on_nothing_older_gets_every_row(sessions: Sessions, settings: Settings) -> None:
    with sessions() as session:
        stable = get_alias(session, "stable")
        assert stable is not None
    job = job_of(sessions, settings, base=str(Path(settings.training.spec).parent / "second"))
    assert job.replay["older"]["num"] > 0, "a directory is known by its weights"
    other = make_tiny_model(settings.var_dir.parent / "other", seed=2)
    job = job_of(sessions, settings, base=str(other))
    assert job.replay["older"]["why"] == "the base was trained on no earlier snapshot that this method reads"
    assert len(written(job)) == job.replay["fresh"]
    assert job.evaluation_data == job.directory / "data"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param({"sft_weight": 0}, "with sft_weight = 0", id="DPO without its SFT term"),
        pytest.param({"engine": "trl"}, "TRL's DPO learns nothing", id="TRL's DPO"),
        pytest.param({"replay": {"general_share": 0}}, "no general instructions", id="none is asked for"),
    ],
)
def test_instructions_that_a_method_cannot_learn_from_are_left_out_and_said(
    sessions: Sessions, settings: Settings, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    import_general(sessions, tmp_path)
    facts = job_of(sessions, settings, method="dpo", **fields).replay["general"]
    assert (facts["num"], why in facts["why"]) == (0, True)


def test_a_request_that_names_another_base_marks_the_pairs_for_it(sessions: Sessions, settings: Settings) -> None:
    other = make_tiny_model(settings.var_dir.parent / "other", seed=3)
    with sessions.begin() as session:
        session.execute(update(ResponseRow).values(model_version=str(stable_model(session).model_version)))
        open_request(session, crossing="a", reason="test", method="dpo", spec={**QUICK, "base": str(other)})
    request_id = retrain.claim(settings, "run-1")
    assert request_id
    with sessions.begin() as session:
        dataset = get_dataset(session, retrain.freeze(settings, request_id))
        job, _ = retrain.prepare(session, settings, retrain.get_request(session, request_id))
        assert dataset.manifest["off_policy"] == {"base": job.base_version, "other_base": 80}
        on_policy = get_dataset(session, freeze_feedback(session, watermark=None, policy=OPEN))
        assert on_policy.manifest["off_policy"] == {"base": stable_model(session).model_version}


def test_a_general_set_that_is_not_there_is_an_error(sessions: Sessions, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="'vendor' is no dataset, import or directory"):
        job_of(sessions, settings, replay={"general": "vendor"})
