"""Where a run's curve is shown besides its own folder: TensorBoard, MLflow, Weights & Biases, by `report_to`.

Each is one small class over the maker's own client, imported when it is asked for. Addresses, projects and keys are
those programs' own variables (`MLFLOW_TRACKING_URI`, `WANDB_PROJECT`, …); without any, all stay on this machine. Their
telemetry is off.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hone.errors import ConfigError
from training.spec import Job, ReportTo

MODULES: dict[ReportTo, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "install the extra `trackers`"),
    "mlflow": ("mlflow", "`sh deploy/trackers.sh` makes .venv-trackers, for HONE_TRAINING_PYTHON"),
    "wandb": ("wandb", "`sh deploy/trackers.sh` makes .venv-trackers, for HONE_TRAINING_PYTHON"),
}
"""Name -> the module that it needs, and where that comes from."""
BATCH = 100
"""Figures that MLflow is sent at once; each is a request to its server."""


class Tracker(Protocol):
    """Takes figures of steps, in order; a resumed run tells the steps after its checkpoint again."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step (from 1)."""

    def close(self, *, is_done: bool) -> None:
        """Write what is left, and say whether the run ended well. Not called for a run that was killed."""


def check_trackers(names: Sequence[ReportTo]) -> None:
    """Raise ConfigError where what a tracker needs is not installed for this interpreter."""
    for name in names:
        module, remedy = MODULES[name]
        if find_spec(module) is None:
            raise ConfigError(f"report_to names {name}, and {module} is not installed: {remedy}, or take it out")


@contextmanager
def trackers_of(job: Job) -> Iterator[list[Tracker]]:
    """Give the trackers of the job's `report_to`, ready for its first step or the one after its checkpoint."""
    makers: dict[ReportTo, Callable[[Job], Tracker]] = {
        "tensorboard": TensorBoard,
        "mlflow": MlflowRun,
        "wandb": WandbRun,
    }
    found = [makers[name](job) for name in job.spec.report_to]
    is_done = False
    try:
        yield found
        is_done = True
    finally:
        for tracker in found:
            tracker.close(is_done=is_done)


class TensorBoard:
    """Event files in `tensorboard/` of the run's directory; `tensorboard --logdir var/runs` shows all runs."""

    def __init__(self, job: Job) -> None:
        """Open a file of this start; earlier ones stay."""
        from tensorboard.summary import Writer

        self._writer = Writer(str(job.directory / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self, *, is_done: bool) -> None:
        """Write what is left."""
        self._writer.close()


class MlflowRun:
    """A run of the experiment `hone` (MLFLOW_EXPERIMENT_NAME) in MLFLOW_TRACKING_URI; default: a file beside the runs.

    A server that cannot be reached ends the run, after the client's own retries: started again it goes on from its
    checkpoint.
    """

    def __init__(self, job: Job) -> None:
        """Find this run by its id, or begin it with the spec as its parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{job.directory.parent / 'mlflow.db'}"
        self._client = MlflowClient(place)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "hone"), job.directory.parent)
        found = self._client.search_runs([experiment], f"tags.`hone.run_id` = '{job.run_id}'", max_results=1)
        self._run = found[0].info.run_id if found else self._begin(experiment, job)
        self._client.update_run(self._run, status="RUNNING")
        self._waiting: list[Any] = []

    def _experiment(self, name: str, runs: Path) -> str:
        found = self._client.get_experiment_by_name(name)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (runs / "mlflow").as_uri()
        number: str = found.experiment_id if found else self._client.create_experiment(name, artifact_location=place)
        return number

    def _begin(self, experiment: str, job: Job) -> str:
        run = self._client.create_run(experiment, run_name=job.run_id, tags={"hone.run_id": job.run_id})
        for name, value in parameters(job):
            self._client.log_param(run.info.run_id, name, value)
        number: str = run.info.run_id
        return number

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step; what is no number is left out, as MLflow's stores refuse it."""
        now = int(time.time() * 1000)
        self._waiting += [self._metric(k, v, now, step) for k, v in figures.items() if math.isfinite(v)]
        if len(self._waiting) >= BATCH:
            self._send()

    def _send(self) -> None:
        self._client.log_batch(self._run, metrics=self._waiting)
        self._waiting = []

    def close(self, *, is_done: bool) -> None:
        """Send what is left, and mark the run finished or failed."""
        self._send()
        self._client.set_terminated(self._run, "FINISHED" if is_done else "FAILED")


class WandbRun:
    """A run of the project `hone` (WANDB_PROJECT), offline unless WANDB_MODE says `online`; `wandb sync` sends it."""

    def __init__(self, job: Job) -> None:
        """Begin the run, or take it up."""
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hone"),
            id=job.run_id,
            name=job.run_id,
            resume="allow",
            dir=str(job.directory),
            config=dict(parameters(job)),
            settings=wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step; W&B leaves out steps that it has."""
        self._run.log(dict(figures), step=step)

    def close(self, *, is_done: bool) -> None:
        """Write what is left."""
        self._run.finish(exit_code=0 if is_done else 1)


def parameters(job: Job) -> Iterator[tuple[str, Any]]:
    """Yield what a person would filter runs by: base, and the spec's keys as `lora.rank`."""
    yield "base_version", job.base_version
    for key, value in job.spec.model_dump(mode="json").items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", below) for name, below in value.items() if below not in ({}, None))
        elif value is not None:
            yield key, value
