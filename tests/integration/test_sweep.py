"""Sweeps on the tiny model: every trial is a real run, and a killed sweep loses none and runs none twice."""

import json
import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from hone.datasets import FreezePolicy
from hone.settings import Settings
from hone.store.datasets import freeze_feedback
from hone.store.models import import_model, set_alias
from tests.support.fork_server import fork_server
from tests.support.pairs import add_edit
from tests.support.training import row, write_rows
from training.curve import read_curve
from training.jobs import needs_database
from training.pairs import read_rows
from training.spec import RunSpec, load_spec
from training.sweep.ablation import Trial
from training.sweep.run import best_spec, describe_sweep, prepare
from training.sweep.table import Sweep, flat, spec_of_trial
from training.sweep.trial import Place, Pruned, run_once

pytestmark = pytest.mark.slow

DEADLINE_S = 240.0
GRID = """
method = "dpo"
repeats = 2
[spec]
steps = 4
checkpoint_steps = 2
max_grad_norm = 1e30
[space]
learning_rate = [1e-3, 1e-2, 1e30]
lora.rank = [2]
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fork_server(tmp_path_factory.mktemp("fork")) as client:
        yield client


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.jsonl", [row(k) for k in range(12)])
    write_rows(folder / "dev.jsonl", [row(k) for k in range(20, 26)])
    return folder


def start(program: Path, folder: Path, text: str, *words: str) -> "subprocess.Popen[str]":
    (folder / "sweep.toml").write_text(text)
    environment = {**os.environ, "HONE_VAR_DIR": str(folder / "var"), "HONE_TRAINING_PYTHON": str(program)}
    return subprocess.Popen(
        [str(program), "-m", "training", "sweep", str(folder / "sweep.toml"), *words],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[Any, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return json.loads(out), err


def written(folder: Path) -> dict[str, int]:
    """When each run that is done said so."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("var/runs/*/evaluation.json")}


def test_a_killed_sweep_loses_no_trial_and_runs_none_twice(
    program: Path, rows: Path, tiny_base: Path, tmp_path: Path
) -> None:
    words = [f"--set=spec.dataset={rows}", f"--set=spec.base={tiny_base}"]
    planned, _ = finish(start(program, tmp_path, GRID, *words, "--dry-run", "--json"))
    assert (planned["trials"], planned["steps"], planned["rows"]) == (3, 4, {"train": 12, "dev": 6, "test": 0})
    assert planned["seconds"] > 0
    assert not written(tmp_path), "a dry run trains nothing"

    process = start(program, tmp_path, GRID, *words, "--json")
    deadline = time.monotonic() + DEADLINE_S
    while not written(tmp_path):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (lock,) = tmp_path.glob("var/sweeps/*/lock")
    os.kill(holder_of(lock), signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    before = written(tmp_path)

    found, err = finish(start(program, tmp_path, GRID, *words, "--json"))
    assert "trial 3/3" in err
    assert {name: when for name, when in written(tmp_path).items() if name in before} == before, "done is done"
    assert [trial["number"] for trial in found["trials"]] == list(range(3))
    states = {trial["params"]["learning_rate"]: (trial["state"], trial["reason"]) for trial in found["trials"]}
    assert set(states) == {1e-3, 1e-2, 1e30}
    assert states[1e-3] == states[1e-2] == ("done", None)
    assert states[1e30][0] == "failed"
    assert "lower learning_rate" in states[1e30][1]
    for trial in found["trials"]:
        if trial["state"] == "done":
            curves = [read_curve(Path(run)) for run in trial["runs"]]
            assert [list(curve) for curve in curves] == [[1, 2, 3, 4]] * 2
            assert curves[0] != curves[1], "each repeat has a seed of its own"
            assert trial["value"] == sum(trial["values"]) / 2
    check_files(Path(found["folder"]), rows, tiny_base)

    again, _ = finish(start(program, tmp_path, GRID, *words, "--json"))
    assert again == found
    assert len(written(tmp_path)) == 4


def holder_of(lock: Path) -> int:
    """The process that holds a lock file, as the kernel says."""
    inode = lock.stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (found,) = (int(words[4]) for words in lines if words[5].endswith(f":{inode}"))
    return found


def check_files(folder: Path, rows: Path, base: Path) -> None:
    """The page, the picture, and a spec that a person can run."""
    page = (folder / "ablation.md").read_text()
    assert "| `learning_rate` |" in page
    assert "dev_accuracy" in page
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    best = load_spec(folder / "best.toml")
    assert (best.dataset, best.base, best.steps) == (str(rows), str(base), 4)
    assert best.evaluation.test_only, "dev has chosen it"
    trial = tomllib.loads((folder / "trials" / "000" / "spec-0.toml").read_text())
    assert Path(trial["dataset"]) == folder / "data", "a trial needs no database, and registers nothing"


def test_a_trial_that_is_pruned_ends_at_once_and_its_run_can_be_taken_up(
    program: Path, rows: Path, tiny_base: Path, tmp_path: Path
) -> None:
    values = {"engine": "trl", "steps": 60, "checkpoint_steps": 10, "stop": {"patience": 9}, "learning_rate": 1e-3}
    spec = RunSpec.model_validate({"base": str(tiny_base), "dataset": str(rows), **values})
    place = Place(Settings(var_dir=tmp_path / "var", training_python=program), tmp_path / "trials" / "000")
    seen: list[int] = []
    shown: list[tuple[int, int]] = []

    def look(step: int, loss: float) -> bool:
        seen.append(step)
        return loss > 0

    with pytest.raises(Pruned):
        run_once(place, spec, "spec", look, lambda *steps: shown.append(steps))
    assert seen
    assert not written(tmp_path)
    directory, report = run_once(place, spec, "spec", lambda step, loss: False, lambda *_: None)
    assert report["training"]["num_steps"] == 60
    assert {step for step, figures in read_curve(directory).items() if "eval_loss" in figures} >= {10, 60}
    assert (directory / "trl" / "checkpoint-60").exists()


def test_a_frozen_dataset_is_copied_for_the_trials_and_named_again_by_the_best_spec(
    sessions: sessionmaker[Session], store_url: str, tiny_base: Path, tmp_path: Path
) -> None:
    with sessions.begin() as session:
        for turn in range(8):
            add_edit(session, turn, f"Corrected {turn}: open the Orders page.")
        policy = FreezePolicy(max_user_share=1.0)
        dataset = freeze_feedback(session, kind="demonstrations", watermark=None, policy=policy)
        stable = import_model(session, tiny_base)
        set_alias(session, "stable", stable, expected_generation=None)
    settings = Settings(database_url=store_url, var_dir=tmp_path / "var")
    objective = {"objective": "training.num_steps", "direction": "minimize"}
    plan = Sweep(method="sft", spec={"dataset": dataset}, space=flat({"lora": {"rank": [2, 4]}}), **objective)
    ground = prepare(settings, plan)
    trial = spec_of_trial(plan, ground.base, {"lora.rank": 4})
    assert not needs_database(trial), "it needs no row in Postgres, and registers no model"
    assert read_rows(ground.data / "train.jsonl") == read_rows(ground.job.directory / "data" / "train.jsonl") != []
    best = best_spec(ground, Trial(0, {"lora.rank": 4}, "done", 1.0))
    assert (best.dataset, best.base, best.lora.rank) == (dataset, stable, 4)
    assert describe_sweep(settings, plan)["folder"] == str(ground.folder), "the same sweep has the same folder"
    more = plan.model_copy(update={"trials": 1})
    assert prepare(settings, more).folder == ground.folder, "more trials, or fewer, are the same sweep"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param("space.betta=[1,2]", "betta", id="no such key"),
        pytest.param("space.learning_rate=[0.1,-1]", "space.learning_rate = -1", id="a level out of range"),
        pytest.param("space.seed=[0]", "dev rows, and the dataset has none", id="nothing to measure on"),
        pytest.param("objective=loss", "none of dev_accuracy", id="an objective that is not known"),
        pytest.param("prune=true", "stop.patience", id="nothing to prune by"),
        pytest.param("prune=true method=ppo", "ppo has none: take prune out", id="a method without a dev loss"),
        pytest.param("spec.launcher=ray", "local runs", id="another launcher"),
        pytest.param("space.dataset=['a']", "cannot be varied", id="not a recipe"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_starts(
    rows: Path,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    words: str,
) -> None:
    from training.__main__ import main

    monkeypatch.setenv("HONE_VAR_DIR", str(tmp_path / "var"))
    (tmp_path / "sweep.toml").write_text(GRID)
    if change.startswith("space.seed"):
        rows = write_rows(tmp_path / "few" / "train.jsonl", [row(k) for k in range(4)]).parent
    places = [f"--set=spec.dataset={rows}", f"--set=spec.base={tiny_base}"]
    assert main(["sweep", str(tmp_path / "sweep.toml"), *places, *(f"--set={part}" for part in change.split())]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("var/runs/*/evaluation.json"))
