"""Whatever the method: killed with SIGKILL and started again it ends with the same bytes, and damage is noticed."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hone.weights import weights_digest
from tests.support.kill_and_resume import METHODS, TWO
from tests.support.training import make_job, row
from training.run import run_job
from training.spec import Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    words = ["-m", "tests.support.kill_and_resume", str(tiny_base), str(tmp_path_factory.mktemp("killed"))]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_the_weights_are_bit_identical(outcomes: dict[str, Any], method: str) -> None:
    outcome = outcomes[method]
    assert outcome["killed"] == outcome["whole"]
    is_native = METHODS[method][0].get("engine") == "native" or method == "ppo"
    assert len(outcome["whole"]) == (2 if is_native else 1), "there are weights, and of PPO the value head too"


def test_two_processes_take_the_steps_of_one(outcomes: dict[str, Any]) -> None:
    gaps = outcomes[TWO]["gaps"]
    assert 0 < gaps["weights"] < 1e-5, "sums are rounded in another order, and nothing else differs"
    assert gaps["figures"] < 1e-4


def cut_weights(path: Path) -> None:
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def change_a_byte(path: Path) -> None:
    state = path / "optimizer.pt"
    found = bytearray(state.read_bytes())
    found[len(found) // 2] ^= 1
    state.write_bytes(bytes(found))


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = make_job(tmp_path_factory.mktemp("sft"), tiny_base, [row(k) for k in range(12)], method="sft")
    run_job(job)
    return job


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda path: None, "", id="none: only what came after training is missing"),
        pytest.param(lambda path: (path / "DONE").unlink(), "never finished", id="it was killed while writing"),
        pytest.param(lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing", id="no optimiser"),
        pytest.param(cut_weights, "adapter_model.safetensors is missing or was changed", id="torn weights"),
        pytest.param(change_a_byte, "optimizer.pt is missing or was changed", id="one bit"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_the_weights_are_the_same(
    finished: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any], words: str
) -> None:
    again = make_job(tmp_path / "again", finished.base_directory, [row(k) for k in range(12)], method="sft")
    shutil.copytree(finished.directory / "trl", again.directory / "trl")
    damage(again.directory / "trl" / "checkpoint-6")
    with caplog.at_level(logging.WARNING):
        run_job(again)
    assert words in caplog.text
    assert weights_digest(again.directory / "model") == weights_digest(finished.directory / "model")
    assert json.loads((again.directory / "evaluation.json").read_text())["training"]["num_steps"] == 6


def test_a_checkpoint_of_another_run_is_not_gone_on_from(
    finished: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = make_job(tmp_path / "again", finished.base_directory, [row(k) for k in range(12)], method="sft")
    shutil.copytree(finished.directory / "trl", again.directory / "trl")
    with caplog.at_level(logging.WARNING):
        run_job(again.model_copy(update={"run_id": "r-other"}))
    assert "belongs to another run" in caplog.text
