"""`python -m tests.support.kill_and_resume BASE DIRECTORY`: every method whole, and killed with SIGKILL and resumed.

Prints one JSON object: method -> digests of both, and where the killed run stood. Children are forks of one
process that has only imported, so that torch and TRL are loaded once for all of them.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import training.kto
import training.online
import training.ppo
import training.reward_model
import training.sft
import training.trl_dpo  # noqa: F401
from hone.canonical import sha256_file
from hone.local.ports import free_ports
from tests.support.training import make_job, row, write_rows
from training.curve import read_curve
from training.run import run_job
from training.spec import Job

STEPS, EVERY = 9, 3
QUICK_EXAM = {"num_prompts": 1, "num_samples": 1, "max_new_tokens": 1}
SAMPLED: dict[str, Any] = {
    "samples": {"per_prompt": 2, "max_new_tokens": 6},
    "rewards": {"functions": {"tests.support.rewards:length": 1.0}},
    "stop_rules": "record",
}
LOOKING: dict[str, Any] = {"stop": {"patience": 9}}
"""Dev rows choose the checkpoint."""
TWO = "dpo in two processes"
NATIVE: dict[str, Any] = {"method": "dpo", "engine": "native", **LOOKING}
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "sft": ({"method": "sft", **LOOKING}, 3),
    "reward_model": ({"method": "reward_model", "reward": {"min_accuracy": 0.5}, "learning_rate": 1e-2}, 6),
    "dpo": ({"method": "dpo", "engine": "trl"}, 6),
    "kto": ({"method": "kto", "kto": {"min_rows": 4}}, 3),
    "ppo": ({"method": "ppo", **SAMPLED, "ppo": {"minibatch_size": 2}}, 6),
    "rloo": ({"method": "rloo", **SAMPLED}, 3),
    "grpo": ({"method": "grpo", **SAMPLED}, 6),
    "sft over 4 bits": ({"method": "sft", "adapter": "qlora"}, 6),
    TWO: ({**NATIVE, "launcher": "accelerate", "launch": {"processes": 2}}, 3),
    "dpo over 4 bits": ({"method": "dpo", "engine": "native", "adapter": "qlora"}, 3),
}
"""Method -> its spec, and the checkpoint at which it is killed."""
DEADLINE_S = 600.0


def main(base: Path, directory: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, (spec, kill_at) in METHODS.items():
        jobs = [job_of(directory / name / part, base, spec) for part in ("whole", "killed")]
        finish(jobs[0])
        stood_at = kill(jobs[1], kill_at)
        finish(jobs[1])
        found[name] = {"stood_at": stood_at, **{job.directory.name: digest(job.directory) for job in jobs}}
    alone = job_of(directory / TWO / "alone", base, NATIVE)
    finish(alone)
    found[TWO]["gaps"] = gaps(alone.directory, directory / TWO / "whole")
    return found


def job_of(directory: Path, base: Path, spec: dict[str, Any]) -> Job:
    """A job on 14 rows, or on 13 so that one is alone in its batch; others are held out, for methods that look."""
    write_rows(directory / "data" / "dev.jsonl", [row(k) for k in range(20, 25)])
    fields = {**spec, "steps": STEPS, "checkpoint_steps": EVERY, "evaluation": QUICK_EXAM}
    return make_job(directory, base, [row(k) for k in range(14 - ("stop" in spec))], **fields)


def gaps(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of two runs' weights, and of their steps' figures."""
    (ours, our_steps), (theirs, their_steps) = (
        (load_file(place / "model" / "model.safetensors"), read_curve(place)) for place in (one, other)
    )
    figures = [abs(value - their_steps[step][name]) for step, ones in our_steps.items() for name, value in ones.items()]
    assert len(our_steps) == STEPS
    assert "eval_loss" in our_steps[STEPS]
    return {"weights": max(float((ours[n] - theirs[n]).abs().max()) for n in ours), "figures": max(figures)}


def finish(job: Job) -> None:
    for child in start(job):
        assert wait(child) == 0, f"{job.directory}: {(job.directory / 'log').read_text()[-2000:]}"


def start(job: Job) -> list[int]:
    """Run a job in a child, or in as many as it asks for, and return their ids."""
    world, (port,) = job.spec.launch.world, free_ports(1)
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if world > 1 else {}
    return [start_one(job, {**place, "RANK": str(k), "LOCAL_RANK": str(k)} if place else {}) for k in range(world)]


def start_one(job: Job, place: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update(place)
    log = os.open(job.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        run_job(job)
        code = 0
    except BaseException:
        logging.exception("the run failed")
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(job: Job, step: int) -> str:
    """Kill a run once it has begun to write the checkpoint of a step; return the newest folder that it left."""
    children = start(job)
    deadline = time.monotonic() + DEADLINE_S
    while not any(checkpoints(job, step)):
        assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert {wait(child) for child in children} == {-signal.SIGKILL}
    assert not (job.directory / "model").exists(), "it must be killed in the middle"
    return max(path.name for number in range(STEPS + 1) for path in checkpoints(job, number))


def checkpoints(job: Job, step: int) -> list[Path]:
    names = (f"checkpoint-{step}", f"step-{step:08d}")
    return [path for name in names for path in job.directory.rglob(name) if path.is_dir()]


def digest(directory: Path) -> list[str]:
    """Hashes of the weights of one model or several, and of what the native engine kept last: the value head too."""
    last = directory / "checkpoints" / f"step-{STEPS:08d}"
    return [sha256_file(path) for place in (directory / "model", last) for path in sorted(place.rglob("*.safetensors"))]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
