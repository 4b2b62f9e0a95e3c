"""What clusters take: a Kubernetes Job, a Kubeflow TrainJob, a SLURM script. Each starts `python -m training run`."""

import json
from typing import Any

from training.spec import Job


def as_yaml(value: dict[str, Any]) -> str:
    """Return a document that YAML readers take: JSON is YAML."""
    return json.dumps(value, indent=2) + "\n"


def torchrun(job: Job, *, node_rank: str, master: str) -> list[str]:
    """Return the command of one machine."""
    launch = job.spec.launch
    places = ["--nnodes", str(launch.machines), "--nproc-per-node", str(launch.processes)]
    places += ["--node-rank", node_rank, "--master-addr", master, "--master-port", "29500"]
    return ["torchrun", *places, "-m", "training", "run", str(job.directory / "job.json")]


def pod(job: Job, command: list[str]) -> dict[str, Any]:
    """Return the pod of one machine: the run's volume at the run's path, GPUs as many as processes."""
    launch = job.spec.launch
    limits = {
        "cpu": str(launch.cpus * launch.processes),
        "memory": f"{launch.memory_gb}Gi",
        "nvidia.com/gpu": str(launch.processes),
    }
    runs = str(job.directory.parent)
    return {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "training",
                "image": launch.image,
                "command": command,
                "env": [{"name": name, "value": value} for name, value in variables(job).items()],
                "resources": {"limits": limits, "requests": limits},
                "volumeMounts": [{"name": "runs", "mountPath": runs}, {"name": "shm", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": launch.volume_claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def variables(job: Job) -> dict[str, str]:
    """Return the environment of every process."""
    return {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": str(job.spec.threads)}


def kubernetes_job(job: Job) -> dict[str, Any]:
    """Return an indexed Job: one pod a machine, started again when it dies, all meeting at the first."""
    launch = job.spec.launch
    # The shell puts the pod's index in: Kubernetes expands $(NAME) in arguments only for the pod's own variables.
    command = " ".join(torchrun(job, node_rank="$JOB_COMPLETION_INDEX", master=f"{job.run_id}-0.{job.run_id}"))
    template = pod(job, ["sh", "-c", command])
    template["subdomain"] = job.run_id
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job.run_id,
            "namespace": launch.namespace,
            "labels": {"app.kubernetes.io/part-of": "hone"},
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": launch.machines,
            "parallelism": launch.machines,
            "backoffLimit": launch.max_restarts,
            "activeDeadlineSeconds": round(launch.time_limit_h * 3600),
            "template": {"spec": template},
        },
    }


def train_job(job: Job) -> dict[str, Any]:
    """Return a TrainJob of Kubeflow Trainer v2 on the runtime `torch-distributed`, which starts torchrun itself."""
    launch = job.spec.launch
    limits = {"cpu": str(launch.cpus * launch.processes), "memory": f"{launch.memory_gb}Gi"}
    limits["nvidia.com/gpu"] = str(launch.processes)
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.run_id, "namespace": launch.namespace},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {
                "image": launch.image,
                "numNodes": launch.machines,
                "command": ["torchrun", "-m", "training", "run", str(job.directory / "job.json")],
                "resourcesPerNode": {"limits": limits, "requests": limits},
                "env": [{"name": name, "value": value} for name, value in variables(job).items()],
            },
        },
    }


def slurm_script(job: Job) -> str:
    """Return a batch script: one task a machine, started again after a preemption."""
    launch = job.spec.launch
    hours, minutes = divmod(round(launch.time_limit_h * 60), 60)
    options = {
        "job-name": job.run_id,
        "nodes": launch.machines,
        "ntasks-per-node": 1,
        "cpus-per-task": launch.cpus * launch.processes,
        "gpus-per-node": launch.processes,
        "mem": f"{launch.memory_gb}G",
        "time": f"{hours:02}:{minutes:02}:00",
        "output": job.directory / "slurm-%j.log",
        **({"partition": launch.partition} if launch.partition else {}),
    }
    exports = "\n".join(f"export {name}={value}" for name, value in variables(job).items())
    command = " ".join(torchrun(job, node_rank="$SLURM_NODEID", master='"$MASTER"'))
    lines = "\n".join(f"#SBATCH --{name}={value}" for name, value in options.items())
    return f"""#!/bin/sh
{lines}
#SBATCH --requeue
set -eu
{exports}
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER
srun --kill-on-bad-exit=1 sh -c '{command}'
"""
