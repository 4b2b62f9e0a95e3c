"""One trial: an ordinary run, `python -m training run SPEC`, in a process of its own; killed, it goes on."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.errors import ConfigError, ProgramFailed
from hone.settings import Settings
from training.curve import read_curve
from training.jobs import make_job
from training.launch.start import environment
from training.spec import Job, RunSpec
from training.sweep.toml_text import toml_text

POLL_S = 0.2
ENDS_S = 30.0
LOG_TAIL_CHARACTERS = 800
DEV_LOSS = "eval_loss"
"""In a run's curve: the loss on dev rows, looked at with every checkpoint where stop.patience is set."""
COULD_NOT_START, WENT_WRONG = 2, 3
"""Exit codes of a run: wrong spec or data; one that did not end well, such as one whose loss is no number."""

Look = Callable[[int, float], bool]
"""(step, dev loss) -> whether the trial is to be stopped."""
Said = Callable[[int, int], None]
"""(steps done, steps)."""


class Pruned(Exception):
    """The trial was stopped: others were better at the same step."""


@dataclass(frozen=True)
class Place:
    """Where a trial's runs leave their spec and log."""

    settings: Settings
    directory: Path


def run_once(place: Place, spec: RunSpec, name: str, look: Look, said: Said) -> tuple[Path, dict[str, Any]]:
    """Return the run's directory and its report, training unless that is done.

    Raises:
        ProgramFailed: the run went wrong. ConfigError: it could not start. Pruned: `look` wanted it stopped.
    """
    job = make_job(None, place.settings, spec)
    place.directory.mkdir(parents=True, exist_ok=True)
    path = place.directory / f"{name}.toml"
    path.write_text(toml_text(spec.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    report = job.directory / "evaluation.json"
    if not report.exists():
        watch(start(place, job, path, place.directory / f"{name}.log"), job, look, said)
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return job.directory, found


def start(place: Place, job: Job, spec: Path, log: Path) -> "Child":
    """Start the run's process; what it says is appended to the log."""
    command = [str(place.settings.training_python), "-m", "training", "run", str(spec)]
    # The run must find the directory that was made here, whichever file these settings come from.
    env = {**environment(job), "HONE_VAR_DIR": str(place.settings.var_dir.absolute())}
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    return Child(process, log)


@dataclass
class Child:
    """A run's process, and where it speaks."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def end(self) -> None:
        """End the process, if it has not ended; its newest checkpoint stays."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def watch(child: Child, job: Job, look: Look, said: Said) -> None:
    """Wait for the end of the run, looking at its dev losses. Raises like `run_once`; the process has ended then."""
    seen = 0
    try:
        while (code := child.process.poll()) is None:
            time.sleep(POLL_S)
            said(*steps_of(job.directory))
            losses = [(step, f[DEV_LOSS]) for step, f in read_curve(job.directory).items() if DEV_LOSS in f]
            for step, loss in losses[seen:]:
                if look(step, loss):
                    raise Pruned
            seen = len(losses)
    finally:
        child.end()
    if code:
        raise failure(code, child.log)


def failure(code: int, log: Path) -> ProgramFailed | ConfigError:
    """Return why a run ended with this code, as it said itself."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    _, found, reason = text.rpartition("hone: ") if code in (COULD_NOT_START, WENT_WRONG) else ("", "", "")
    kind = ConfigError if code == COULD_NOT_START else ProgramFailed
    return kind(reason if found else f"the run ended with code {code}; log: {log}\n{text[-LOG_TAIL_CHARACTERS:]}")


def steps_of(directory: Path) -> tuple[int, int]:
    """Return how many steps of how many a run has done; 0 of 0 before it trains."""
    path = directory / "progress.json"
    facts: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (int(facts["done"]), int(facts["total"])) if facts.get("stage") == "train" else (0, 0)
