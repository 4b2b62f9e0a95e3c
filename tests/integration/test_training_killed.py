"""A training run that is killed with SIGKILL ends with the same weights as one that was left alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hone.weights import weights_digest
from tests.support.tiny_model import make_tiny_model
from tests.support.training import make_job, row
from training.__main__ import main

pytestmark = pytest.mark.slow

STEPS = 80
ROOT = Path(__file__).parents[2]


def start(directory: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "training", "run", str(directory / "job.json")]
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def kill_after_first_checkpoint(directory: Path) -> None:
    process = start(directory)
    deadline = time.monotonic() + 120
    while not (directory / "checkpoints" / "step-00000010").exists():
        assert process.poll() is None, (directory / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_and_resumed_the_weights_are_bit_identical(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = make_tiny_model(tmp_path / "base")
    recipe = {"steps": STEPS, "checkpoint_steps": 10}
    for name in ("whole", "killed"):
        make_job(tmp_path / name, base, [row(k) for k in range(30)], **recipe)
    assert main(["run", str(tmp_path / "whole" / "job.json")]) == 0

    kill_after_first_checkpoint(tmp_path / "killed")
    newest = max(path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*"))
    assert newest < f"step-{STEPS:08d}", "it must be killed in the middle"
    assert not (tmp_path / "killed" / "model").exists()
    assert start(tmp_path / "killed").wait(timeout=120) == 0, (tmp_path / "killed" / "log").read_text()

    assert weights_digest(tmp_path / "killed" / "model") == weights_digest(tmp_path / "whole" / "model")
    assert weights_digest(tmp_path / "whole" / "model") != weights_digest(base)


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        pytest.param([], 2, "freeze a dataset first", id="no data"),
        pytest.param([row(0, chosen="page " * 2000)], 2, "too_long", id="nothing that fits"),
    ],
)
def test_wrong_data_ends_with_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, object]], code: int, words: str
) -> None:
    make_job(tmp_path / "run", make_tiny_model(tmp_path / "base"), rows)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == code
    assert words in capsys.readouterr().err


def test_a_diverged_run_ends_with_its_own_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"learning_rate": 1e30, "max_grad_norm": 1e30, "steps": 20}
    make_job(tmp_path / "run", make_tiny_model(tmp_path / "base"), [row(k) for k in range(8)], **recipe)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 3
    assert "lower learning_rate" in capsys.readouterr().err


def test_a_command_finds_the_settings_of_the_stack_that_runs_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "var" / "run").mkdir(parents=True)
    (tmp_path / "var" / "run" / "stack.json").write_text("{}")
    (tmp_path / "var" / "run" / "stack.env").write_text("HONE_INGEST__MAX_ROWS=-7\n")
    monkeypatch.chdir(tmp_path)
    for name in ("HONE_DATABASE_URL", "HONE_INGEST__MAX_ROWS"):
        monkeypatch.setenv(name, "")  # so that it is as before at the end, whatever the command sets
        monkeypatch.delenv(name)
    assert main(["check", "dpo"]) == 2
    assert "-7" in capsys.readouterr().err
