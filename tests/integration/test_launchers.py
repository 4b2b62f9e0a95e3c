"""Launchers that run here: two CPU processes by accelerate train what one does; Ray survives a killed worker."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests.support.training import make_job, row
from training.__main__ import main
from training.launch.start import ROOT, launch, plan_start
from training.spec import Job

pytestmark = pytest.mark.slow

STEPS = 20
RECIPE: dict[str, Any] = {"method": "dpo", "engine": "trl", "steps": STEPS, "batch_size": 4, "checkpoint_steps": 2}
EVALUATION = {"num_prompts": 2, "num_samples": 1, "max_new_tokens": 4, "num_bootstraps": 100}


def job_of(directory: Path, base: Path, launcher: str, processes: int, **fields: Any) -> Job:
    launched = {"launcher": launcher, "launch": {"processes": processes}}
    recipe = RECIPE | launched | {"evaluation": EVALUATION} | fields
    return make_job(directory, base, [row(number) for number in range(12)], **recipe)


def weights(directory: Path) -> dict[str, Any]:
    return dict(load_file(directory / "model" / "model.safetensors"))


def largest_gap(one: Path, other: Path) -> float:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone") / "run"
    job_of(directory, tiny_base, "local", 1)
    assert main(["run", str(directory / "job.json")]) == 0
    return directory


@pytest.fixture(scope="module")
def together(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("together") / "run"
    launch(job_of(directory, tiny_base, "accelerate", 2), has_gpu=False)
    return directory


def test_two_processes_train_what_one_does(alone: Path, together: Path) -> None:
    report = json.loads((together / "evaluation.json").read_text())
    assert report["training"]["num_steps"] == STEPS
    assert largest_gap(alone, together) < 1e-5
    checkpoint = together / "trl" / f"checkpoint-{STEPS}"
    assert (checkpoint / "rng_state_1.pth").exists(), "there was another process"
    assert "rng_state_1.pth" in (checkpoint / "manifest.json").read_text(), "its part is sealed too"


def workers_of(driver: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    found = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in found if "RayTrainWorker" in " ".join(process.cmdline())]


def kill_a_worker(driver: "subprocess.Popen[bytes]", marker: Path, log: Path) -> None:
    """Kill the one that is not the main process, in the middle of training."""
    deadline = time.monotonic() + 400
    while not marker.exists():
        assert driver.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)
    workers = workers_of(driver)
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_ray_starts_again_after_a_killed_worker_and_ends_with_the_same_weights(
    together: Path, tiny_base: Path, tmp_path: Path, require: Callable[[str, str], None]
) -> None:
    run = tmp_path / "run"
    start = plan_start(job_of(run, tiny_base, "ray", 2), has_gpu=False)
    with (run / "log").open("ab") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(start.command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    family: list[psutil.Process] = []
    try:
        kill_a_worker(driver, run / "trl" / "checkpoint-2" / "DONE", run / "log")
        family = psutil.Process(driver.pid).children(recursive=True)
        assert driver.wait(timeout=400) == 0, (run / "log").read_text()[-3000:]
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            driver.wait(timeout=30)
    said = (run / "log").read_text()
    assert said.count("Started training worker group of size 2") == 2
    assert "going on from" in said
    assert json.loads((run / "evaluation.json").read_text())["training"]["num_steps"] == STEPS
    assert largest_gap(together, run) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, "nothing is left running"


def test_a_dry_run_prints_what_would_be_started(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(tmp_path / "run", tiny_base, "local", 1)
    spec = tmp_path / "spec.toml"
    spec.write_text('method = "dpo"\nengine = "trl"\n')
    changes = [f'base="{tiny_base}"', f'dataset="{job.directory / "data"}"', "launcher=slurm", "launch.processes=4"]
    words = [word for change in changes for word in ("--set", change)]
    assert main(["run", str(spec), "--dry-run", "--json", *words]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["command"][0] == "sbatch"
    script = next(iter(shown["files"].values()))
    assert "--nproc-per-node 4" in script
    assert main(["run", str(spec), "--dry-run", *words]) == 0
    assert script.rstrip() in capsys.readouterr().out, "people read it too"
