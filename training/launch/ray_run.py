"""A run's processes as Ray Train workers: `python -m training.launch.ray_run JOB.json`, where Ray is installed.

A worker that dies takes the group with it; Ray starts a new group, and the run goes on from its newest whole
checkpoint. That lies in the run's directory, which all workers must see.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from training.launch.start import ROOT
from training.spec import Job, load_job

SETTINGS = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of a Ray of our own, read at its import: patience with a busy machine, on which Ray gives up after 30 s; loopback
instead of the machine's address (what the third one does on every system); nothing that is not needed."""
OBJECT_STORE_BYTES = 80 * 2**20
"""Near the least that Ray takes: the workers meet in torch and share files, and pass nothing through the store."""


def train_worker(config: dict[str, Any]) -> None:
    """Do the run as one of its processes; Ray has set rank and world and joined the processes."""
    from training.run import run_job

    logging.basicConfig(level=logging.INFO)
    run_job(load_job(Path(config["job"])))


def main(path: Path) -> None:
    """Start the workers and wait; a failure beyond the spec's `max_restarts` is raised.

    On the cluster that RAY_ADDRESS names; without it on a Ray of its own, of this machine alone and on loopback, which
    ends with the run.
    """
    job = load_job(path)
    if "RAY_ADDRESS" in os.environ:
        import ray

        ray.init(runtime_env={"env_vars": variables(job)})
        return train(job, path)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        ray.init(
            num_cpus=job.spec.launch.world,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": variables(job)},
            _temp_dir=scratch,
        )
        try:
            train(job, path)
        finally:
            ray.shutdown()


def train(job: Job, path: Path) -> None:
    """Do the run on the Ray that is there. Raises like `main`."""
    import ray.train
    import torch
    from ray.train.torch import TorchConfig, TorchTrainer

    launch, has_gpu = job.spec.launch, torch.cuda.is_available()
    TorchTrainer(
        train_worker,
        train_loop_config={"job": str(path)},
        scaling_config=ray.train.ScalingConfig(num_workers=launch.world, use_gpu=has_gpu),
        torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=job.run_id,
            storage_path=str(job.directory / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=launch.max_restarts),
        ),
    ).fit()


def variables(job: Job) -> dict[str, str]:
    """Return what the workers need: the checkout on the path, the spec's threads, nothing sent anywhere."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(job.spec.threads), **quiet}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
