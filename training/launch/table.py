"""The table `[launch]` of a spec: where a run's processes are started. No torch here."""

from typing import Literal

from pydantic import Field

from training.method_tables import Table

Launcher = Literal["local", "accelerate", "ray", "kubernetes", "trainjob", "slurm"]
Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]


class Launch(Table):
    """How many processes train together, and what a cluster needs to start them."""

    processes: int = Field(1, ge=1)
    "On one machine: one for each GPU, or CPU processes."
    machines: int = Field(1, ge=1)
    sharding: Sharding = "ddp"
    "What of the training each process holds; sharded ones need GPUs."
    cpus: int = Field(2, ge=1)
    "CPU cores for each process, where a scheduler asks."
    memory_gb: int = Field(32, ge=1)
    "Of each machine."
    peak_tflops: float | None = Field(None, gt=0)
    "Of one device, for the live MFU; null: by the GPU's name, and of a CPU none."
    image: str = "hone-training:latest"
    namespace: str = "hone"
    volume_claim: str = "hone-runs"
    "Claim of the volume that holds the run's directory, at the same path."
    partition: str | None = None
    "Of SLURM."
    time_limit_h: float = Field(24.0, gt=0)
    max_restarts: int = Field(3, ge=0)
    "Of a run that was killed: it goes on from its newest whole checkpoint."

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return self.processes * self.machines
