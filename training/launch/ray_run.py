"""A run's processes as Ray Train workers: `python -m training.launch.ray_run JOB.json`, where Ray is installed.

A worker that dies takes the group with it; Ray starts a new group, and the run goes on from its newest whole
checkpoint. That lies in the run's directory, which all workers must see.
"""

import os
import sys
from pathlib import Path
from typing import Any

from training.launch.start import ROOT
from training.spec import load_job

PATIENCE = {"RAY_raylet_start_wait_time_s": "300", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300"}
"""Ray gives up on a busy machine after 30 s; read when it is imported."""


def train_worker(config: dict[str, Any]) -> None:
    """Do the run as one of its processes; Ray has set rank and world and joined the processes."""
    from training.run import run_job

    run_job(load_job(Path(config["job"])))


def main(path: Path) -> None:
    """Start the workers and wait; a failure beyond the spec's `max_restarts` is raised."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.train
    import torch
    from ray.train.torch import TorchConfig, TorchTrainer

    job = load_job(path)
    launch = job.spec.launch
    has_gpu = torch.cuda.is_available()
    ray.init(num_cpus=None if has_gpu else launch.world, include_dashboard=False, runtime_env={"env_vars": variables()})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": str(path)},
        scaling_config=ray.train.ScalingConfig(num_workers=launch.world, use_gpu=has_gpu),
        torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=job.run_id,
            storage_path=str(job.directory / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=launch.max_restarts),
        ),
    )
    trainer.fit()


def variables() -> dict[str, str]:
    """Return what the workers need: the checkout on the path, nothing sent anywhere."""
    return {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
