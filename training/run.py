"""One run in one process: train, export, evaluate. Started again after a crash it goes on where it was."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hone.datasets import tally
from hone.errors import NotEnoughData
from hone.weights import model_version_of, weights_digest
from training.birth import write_birth
from training.dev_rows import measure_dev
from training.distributed import is_main, main_first, rank
from training.evaluate import evaluate
from training.export import export_model
from training.fit import Task, fit
from training.meter import meter_for
from training.pairs import Row, read_rows
from training.policy import load_model
from training.precision import base_dtype
from training.preflight import check_run, load_tokenizer, prepare_base
from training.progress import Progress
from training.quantized import load_quantized, to_serve
from training.quiet import quieten
from training.result import TrainResult
from training.spec import Job, RunSpec
from training.trackers import trackers_of

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
MODEL = "model"


def run_job(job: Job) -> None:
    """Leave `model/` and `evaluation.json` in the job's directory, unless they are there.

    Blocks while another process does the same run, such as one whose parent was killed.

    Raises:
        HoneError: spec, base or data do not allow the run, or it went wrong; the message names the value and remedy.
    """
    if not is_main():
        return train_beside(job)
    with alone(job.directory):
        if (job.directory / EVALUATION).exists():
            logger.info("run %s is done already", job.run_id)
        else:
            train_and_evaluate(job)


def train_and_evaluate(job: Job) -> None:
    """Do the whole run, going on from its newest checkpoint. Raises like `run_job`."""
    torch.set_num_threads(job.spec.threads)
    quieten()
    started = time.perf_counter()
    job, task = load_task(job, Progress(job.directory / "progress.json"))
    with trackers_of(job) as task.progress.trackers:
        result, report = train_rewards(task) if job.spec.method == "reward_model" else train_policy(task, job)
    report["training"]["replay"] = job.replay
    write_birth(job, report, result.history)
    seconds = {"all": time.perf_counter() - started, "cpu": time.process_time()}
    write_json(
        job.directory / EVALUATION,
        {"run_id": job.run_id, "base_version": job.base_version, **report, "seconds": seconds},
    )
    task.progress.stage("done")


def train_beside(job: Job) -> None:
    """Train as one of several processes; the main one writes model and report. A run that is done is left alone."""
    if not (job.directory / EVALUATION).exists():
        torch.set_num_threads(job.spec.threads)
        quieten()
        _, task = load_task(job, Progress(job.directory / f"progress.{rank()}.json"))
        fit(task)


def load_task(job: Job, progress: Progress) -> tuple[Job, Task]:
    """Return the job with the base that is really trained on, and all that a method needs."""
    progress.stage("load")
    with main_first():
        job = job.model_copy(update={"base_directory": prepare_base(job.base_directory, job.directory)})
    tokenizer = load_tokenizer(job.base_directory)
    check_run(job, tokenizer, job.base_directory)
    model = load_base(job)
    rows = read_rows(job.directory / "data" / "train.jsonl")
    if not rows:
        raise NotEnoughData(f"{job.directory / 'data' / 'train.jsonl'} holds no row: freeze a dataset first")
    dev = read_rows(job.directory / "data" / "dev.jsonl")
    progress.meter = meter_for(job.spec, model)
    return job, Task(model, tokenizer, rows, dev, job.spec, job.directory, job.run_id, progress)


def load_base(job: Job) -> Any:
    """Return the model to train on: in 4 bits for `qlora`, under an adapter in the run's precision, else in fp32.

    Raises:
        ConfigError: it cannot be had.
    """
    if job.spec.adapter == "qlora":
        return load_quantized(job.base_directory, job.spec)
    return load_model(job.base_directory, dtype=base_dtype(job.spec))[0]


def train_rewards(task: Task) -> tuple[TrainResult, dict[str, Any]]:
    """Train reward models, and return how well they rank pairs. They serve no traffic, so no gate judges them."""
    from training.reward_model import train_reward_models

    result, measured = train_reward_models(task, task.directory / MODEL)
    return result, {"measured": measured, "training": {**summary(result, task.rows), "objectives": measured}}


def train_policy(task: Task, job: Job) -> tuple[TrainResult, dict[str, Any]]:
    """Train a policy, export it, and return what it can do beside its base."""
    result = fit(task)
    policy, rounding = to_serve(result.model, task)
    kept_base = job.base_directory if job.spec.export == "adapter" else None
    shards = job.spec.max_shard_gb
    export_model(policy, task.tokenizer, job.directory / MODEL, base=kept_base, max_shard_gb=shards)
    challenger = to_judge(job.directory / MODEL, job.spec)
    champion = to_judge(champion_directory(job), job.spec)
    measured = evaluate(job, challenger, champion, task.progress)
    base = champion if champion_directory(job) == job.base_directory else to_judge(job.base_directory, job.spec)
    digest = weights_digest(job.directory / MODEL)
    return result, {
        "model_version": model_version_of(digest),
        "digest": digest,
        "measured": {**measured, "stop_rules": stop_rule_measurements(result)},
        "dev": measure_dev(job.directory / "data", challenger, base[0], job.spec.max_length),
        "training": {**summary(result, task.rows), **({"rounding": rounding} if rounding else {})},
    }


def to_judge(directory: Path, spec: RunSpec) -> tuple[Any, Any]:
    """Return a model in main memory, where it waits for its turn, in bf16 where a GPU trains in bf16."""
    is_halved = spec.precision == "bf16" and torch.cuda.is_available()
    return load_model(directory, place="cpu", dtype=torch.bfloat16 if is_halved else torch.float32)


def champion_directory(job: Job) -> Path:
    """Return the model to beat: what serves now; the base where nothing serves, or what serves reads other tokens."""
    served = job.served_directory
    if served is None or not served.is_dir() or job.spec.tokenizer == "any":
        return job.base_directory
    return prepare_base(served, job.directory / "champion")


def stop_rule_measurements(result: TrainResult) -> dict[str, float]:
    """Return the numbers of the gate `stop_rules`."""
    fired = {f"fired_at_{name}": float(step) for name, step in result.fired.items()}
    return {"num_steps": float(len(result.history)), **fired}


def summary(result: TrainResult, rows: list[Row]) -> dict[str, Any]:
    """Return what is kept of the training with the run's row."""
    return {
        "num_rows": len(rows),
        "dropped": result.dropped,
        "off_policy": tally(row["off_policy"] for row in rows if row.get("off_policy")),
        "characters": mean_lengths(rows),
        "num_steps": len(result.history),
        "first_step": result.history[0],
        "last_step": result.history[-1],
        "fired": result.fired,
        "best_step": result.best_step,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def mean_lengths(rows: list[Row]) -> dict[str, float]:
    """Return the mean characters of the answers, so that a model that only learns "longer" (or "shorter") is seen."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        for name in ("chosen", "rejected", "completion"):
            if name in row:
                lengths.setdefault(name, []).append(len(row[name]))
    return {name: sum(found) / len(found) for name, found in lengths.items()}


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=1))
    os.replace(scratch, path)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the run's lock; it ends with the process, however that ends."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
