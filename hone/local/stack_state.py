"""What runs, on disk: enough to stop a stack whose starter is gone, and never a process that is not its own.

A recorded process is found again by pid *and* start time, and every process that a program started, wherever it moved,
by an environment variable that it inherited.
"""

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

STACK_VARIABLE = "LOCAL_STACK_ID"
PROGRAM_VARIABLE = "LOCAL_STACK_PROGRAM"
START_TIME_TOLERANCE_S = 2.0
"""Start times are derived from the wall clock, which may be stepped; a pid is not used again this soon."""


@dataclass(frozen=True)
class ProcessRef:
    """One process, told apart from later ones with its pid."""

    pid: int
    created: float
    """Start time, seconds since the epoch, as psutil reports it."""

    @classmethod
    def of(cls, pid: int) -> "ProcessRef":
        """Raises psutil.NoSuchProcess where nothing has this pid."""
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """Return the living process, or None where it ended or its pid is somebody else's now."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < START_TIME_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        return None


@dataclass(frozen=True)
class RunningProgram:
    """A started program, as the state file keeps it."""

    name: str
    process: ProcessRef
    log: str
    address: str = ""
    health_url: str = ""
    foundation: bool = False
    """Others depend on it: it is stopped after them."""
    stop_signal: int = signal.SIGTERM
    adopted: bool = False
    """Started by somebody else (a server's own control program): only its leader gets the signal."""
    stop_timeout_s: float = 10.0
    """How long it may take to end by itself before it is killed."""


@dataclass(frozen=True)
class StackState:
    """All of one stack."""

    stack: str
    """Random id, the value of LOCAL_STACK_ID in the environment of every process of this stack."""
    supervisor: ProcessRef
    programs: tuple[RunningProgram, ...] = field(default=())


def write_state(path: Path, state: StackState) -> None:
    """Replace the file; a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(state), indent=1))
    draft.replace(path)


def read_state(path: Path) -> StackState | None:
    """Return what was written last, or None where there is no file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    programs = tuple(
        RunningProgram(**{**program, "process": ProcessRef(**program["process"])}) for program in content["programs"]
    )
    return StackState(content["stack"], ProcessRef(**content["supervisor"]), programs)


def family(programs: tuple[RunningProgram, ...]) -> dict[str, list[psutil.Process]]:
    """Return, per program, its leader with all descendants and the members of its process group."""
    leaders = {p.process.pid: p.name for p in programs if p.process.find()}
    parents = _parents()
    found: dict[str, list[psutil.Process]] = {program.name: [] for program in programs}
    for pid in parents:
        name = leaders.get(_group(pid)) or _owner(pid, parents, leaders)
        if name:
            with suppress(psutil.Error):
                found[name].append(psutil.Process(pid))
    return found


def marked(stack: str, name: str | None = None) -> list[psutil.Process]:
    """Return every living process that inherited the mark of `stack`, or of one of its programs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environ = process.environ()
            ours = environ.get(STACK_VARIABLE) == stack and name in (None, environ.get(PROGRAM_VARIABLE))
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                parents[process.pid] = process.ppid()
    return parents


def _group(pid: int) -> int:
    with suppress(OSError):
        return os.getpgid(pid)
    return 0


def _owner(pid: int, parents: dict[int, int], leaders: dict[int, str]) -> str | None:
    """Walk up to the nearest leader; a loop can only be a recycled pid, so the walk is bounded."""
    for _ in range(64):
        if pid in leaders:
            return leaders[pid]
        if pid not in parents:
            return None
        pid = parents[pid]
    return None
