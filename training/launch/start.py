"""Starts a job's processes as its spec says: here, by accelerate or Ray, or writes what a cluster's tool takes."""

import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hone.errors import ConfigError, ProgramFailed
from training.distributed import native_obstacle
from training.launch.accelerate_config import accelerate_config
from training.launch.render import as_yaml, kubernetes_job, slurm_script, train_job
from training.spec import Job

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
RAY_PYTHON = ROOT / ".venv-ray" / "bin" / "python"
CLUSTERS = {"kubernetes": "kubectl create -f {}", "trainjob": "kubectl create -f {}", "slurm": "sbatch {}"}


@dataclass(frozen=True)
class Start:
    """What would be started: files to write, then a command; a cluster's command is for a person to give."""

    command: list[str]
    files: dict[Path, str] = field(default_factory=dict)
    is_ours: bool = True
    "Whether hone runs the command and waits."


def plan_start(job: Job, *, has_gpu: bool, python: str = sys.executable, port: int | None = None) -> Start:
    """Return how the job's processes are started. Raises ConfigError where spec and launcher do not fit."""
    check(job)
    name, launch = job.spec.launcher, job.spec.launch
    path = job.directory / "job.json"
    module = ["-m", "training", "run", str(path)]
    if name == "local":
        return Start([python, *module])
    if name == "accelerate" and launch.sharding == "ddp" and launch.machines == 1:
        # `accelerate launch` starts several CPU processes only through MPI; torchrun starts them itself.
        places = ["--nproc-per-node", str(launch.processes), "--master-port", str(port or free_port())]
        return Start([python, "-m", "torch.distributed.run", *places, *module])
    if name == "accelerate":
        config = job.directory / "accelerate.json"
        values = accelerate_config(launch, bf16=job.spec.precision == "bf16", has_gpu=has_gpu)
        options = ["--config_file", str(config), "--main_process_port", str(port or free_port())]
        command = [python, "-m", "accelerate.commands.launch", *options, *module]
        return Start(command, {config: json.dumps(values, indent=1)})
    if name == "ray":
        return Start([str(RAY_PYTHON), "-m", "training.launch.ray_run", str(path)])
    text = {"kubernetes": kubernetes, "trainjob": trainjob, "slurm": slurm_script}[name](job)
    target = job.directory / ("job.sh" if name == "slurm" else f"{name}.yaml")
    return Start(CLUSTERS[name].format(target).split(), {target: text}, is_ours=False)


def kubernetes(job: Job) -> str:
    """Return the Job's YAML."""
    return as_yaml(kubernetes_job(job))


def trainjob(job: Job) -> str:
    """Return the TrainJob's YAML."""
    return as_yaml(train_job(job))


def check(job: Job) -> None:
    """Raise ConfigError where the spec asks for what the launcher or the engine does not do."""
    spec = job.spec
    if spec.launch.world > 1 and spec.launcher == "local":
        raise ConfigError('launcher "local" starts one process: set launcher = "accelerate", or launch.processes = 1')
    if problem := native_obstacle(spec, spec.launch.world):
        raise ConfigError(problem)


def launch(job: Job, *, has_gpu: bool) -> None:
    """Start the job's processes and wait for their end.

    Raises:
        ConfigError: spec and launcher do not fit, or a cluster's tool must be given the files by a person.
        ProgramFailed: a process ended badly.
    """
    start = plan_start(job, has_gpu=has_gpu)
    for path, text in start.files.items():
        path.write_text(text)
    if not start.is_ours:
        raise ConfigError(f"written for {job.spec.launcher}; give it to your cluster: {' '.join(start.command)}")
    if not Path(start.command[0]).exists():
        raise ConfigError(f"{start.command[0]} is missing: `sh deploy/ray.sh` makes it")
    logger.info("starting %s", " ".join(start.command))
    code = subprocess.run(start.command, cwd=ROOT, env=environment(job), stdin=subprocess.DEVNULL).returncode
    if code:
        raise ProgramFailed(f"the processes of run {job.run_id} ended with code {code}: see what they said above")


def environment(job: Job) -> dict[str, str]:
    """Return the environment of the processes: the checkout on the path, the spec's threads, no telemetry."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(job.spec.threads), "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    """Return a port on which the processes may meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
