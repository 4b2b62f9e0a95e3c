"""A small supervisor: it starts programs, waits until they are healthy, and leaves none of them behind.

Each program leads its own session and process group. A watchdog process holds the end of a pipe of the supervisor: when
the supervisor dies, even by SIGKILL, the pipe closes and the watchdog stops the stack. A detached stack has no
watchdog; `down` stops it from any other process.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import httpx

from hone.errors import Conflict, ProgramFailed
from hone.local.stack_state import (
    PROGRAM_VARIABLE,
    STACK_VARIABLE,
    ProcessRef,
    RunningProgram,
    StackState,
    read_state,
    write_state,
)
from hone.local.stopping import down, living, stop_programs

logger = logging.getLogger(__name__)

POLL_S = 0.05
LOG_TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Program:
    """How to start one program, and how to know that it works."""

    name: str
    argv: tuple[str, ...]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    cwd: Path | None = None
    address: str = ""
    """What people or other programs connect to; shown by `hone status`."""
    health_url: str = ""
    """Answers 2xx once the program is ready. Ignored where `ready` is given."""
    ready: Callable[[], bool] | None = None
    deadline_s: float = 60.0
    remedy: str = "read its log, then start again"
    foundation: bool = False
    """Others depend on it: it is stopped after them."""
    stop_timeout_s: float = 10.0
    """How long it may take to end by itself before it is killed; longer than its own grace."""


class Supervisor:
    """Owns the programs that it starts. Leaving the `with` block, for any reason, stops them all."""

    def __init__(self, state_path: Path, *, detached: bool = False, stop_timeout_s: float | None = None) -> None:
        """Take over `state_path`; with `detached` the stack outlives this process until somebody calls `down`.

        `stop_timeout_s` is how long every program may take to end by itself before it is killed, instead of its own.

        Raises:
            Conflict: a stack with this state file still runs.
        """
        self.state_path = state_path.absolute()
        refuse_second_stack(self.state_path)
        self.stop_timeout_s = stop_timeout_s
        self.stack = uuid4().hex
        self._programs: dict[str, Program] = {}
        self._running: dict[str, RunningProgram] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._save()
        self._watchdog = None if detached else start_watchdog(self.state_path, stop_timeout_s)

    @classmethod
    def attach(cls, state_path: Path) -> Self:
        """Take over a detached stack that runs: its parts can be stopped and started, and outlive this process.

        Raises:
            Conflict: no stack with this state file runs.
        """
        state = read_state(state_path.absolute())
        if state is None or not living(state_path):
            raise Conflict("no stack runs here: `hone up` starts one; if it runs elsewhere, go to its folder")
        found = cls.__new__(cls)
        found.state_path, found.stop_timeout_s, found.stack = state_path.absolute(), None, state.stack
        found._programs, found._children, found._watchdog = {}, {}, None
        found._running = {program.name: program for program in state.programs}
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    @property
    def running(self) -> tuple[RunningProgram, ...]:
        """Return the programs that were started and not stopped, in that order, whether they still live or not."""
        return tuple(self._running.values())

    def start(self, program: Program) -> None:
        """Start the program and wait until it is ready.

        Raises:
            ProgramFailed: it ended, or was not ready in time; the message holds the end of its log. It is stopped.
        """
        self.launch(program)
        self.await_ready(program.name)

    def start_together(self, programs: Sequence[Program]) -> None:
        """Start all programs at once, then wait for each. Raises ProgramFailed as `start` does."""
        for program in programs:
            self.launch(program)
        for program in programs:
            self.await_ready(program.name)

    def launch(self, program: Program) -> None:
        """Start the program and return at once.

        Raises:
            Conflict: a program of this name already runs.
            ProgramFailed: the executable cannot be run.
        """
        if program.name in self._running:
            raise Conflict(f"{program.name} is already started; stop it first")
        child = _spawn(program, self._environment(program))
        self._programs[program.name] = program
        self._children[program.name] = child
        self._running[program.name] = RunningProgram(
            name=program.name,
            process=ProcessRef.of(child.pid),
            log=str(program.log_path.absolute()),
            address=program.address,
            health_url=program.health_url,
            foundation=program.foundation,
            stop_timeout_s=program.stop_timeout_s,
        )
        self._save()

    def adopt(self, server: RunningProgram) -> None:
        """Take responsibility for a server that its own control program has started."""
        self._running[server.name] = replace(server, adopted=True)
        self._save()

    def await_ready(self, name: str) -> None:
        """Wait until the program's check passes. Raises ProgramFailed as `start` does."""
        program = self._programs[name]
        check = program.ready or (lambda: answers(program.health_url))
        deadline = time.monotonic() + program.deadline_s
        while (program.ready or program.health_url) and not check():
            if self.exit_code(name) is not None or time.monotonic() > deadline:
                problem = self._problem(program)
                self.stop(name)
                raise ProgramFailed(problem)
            time.sleep(POLL_S)

    def exit_code(self, name: str) -> int | None:
        """Return the exit code of a started program (negative: the signal), or None while it runs."""
        return self._children[name].poll()

    def wait(self, name: str, timeout_s: float) -> int:
        """Wait for a program that ends by itself, and return its exit code.

        Raises:
            ProgramFailed: it still runs after `timeout_s`; it is stopped.
        """
        try:
            code = self._children[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop(name)
            raise ProgramFailed(f"{name} did not end within {timeout_s:g} s; {_where(self._programs[name])}") from None
        self.stop(name)
        return code

    def is_alive(self, name: str) -> bool:
        """Say whether a program of this stack lives, whoever started it."""
        running = self._running.get(name)
        return running is not None and running.process.find() is not None

    def check(self) -> None:
        """Raise ProgramFailed for the first program, started or adopted, that has ended by itself."""
        for server in self.running:
            if server.adopted and not server.process.find():
                raise ProgramFailed(f"{server.name} has ended; log: {server.log}\n{tail(Path(server.log))}")
        for name, child in self._children.items():
            if child.poll() is not None:
                raise ProgramFailed(self._problem(self._programs[name]))

    def kill(self, name: str) -> None:
        """Kill the program's whole process group with SIGKILL, as a crash would; `restart` starts it again."""
        stop_programs(self.stack, [self._running[name]], timeout_s=0.0)
        self._children[name].wait()

    def restart(self, name: str) -> None:
        """Start a program again with the same command, environment and log. Raises ProgramFailed as `start` does."""
        self.stop(name)
        self.start(self._programs[name])

    def stop(self, name: str) -> None:
        """Stop one program and everything that it started; idempotent."""
        running = self._running.get(name)
        if running:
            stop_programs(self.stack, [running], timeout_s=self.stop_timeout_s, reap=self._reap)
            del self._running[name]
            self._children.pop(name, None)
            self._save()

    def stop_all(self) -> None:
        """Stop everything, foundations last, and remove the state file; idempotent."""
        stop_programs(self.stack, self.running, timeout_s=self.stop_timeout_s, reap=self._reap)
        self._running.clear()
        self._children.clear()
        self.state_path.unlink(missing_ok=True)
        if self._watchdog:
            stop_watchdog(self._watchdog)
            self._watchdog = None

    def _reap(self) -> None:
        for child in self._children.values():
            child.poll()

    def _save(self) -> None:
        write_state(self.state_path, StackState(self.stack, ProcessRef.of(os.getpid()), self.running))

    def _environment(self, program: Program) -> dict[str, str]:
        # setproctitle (Airflow, gunicorn) overwrites the environment that `marked` reads, unless told not to.
        marks = {STACK_VARIABLE: self.stack, PROGRAM_VARIABLE: program.name, "SPT_NOENV": "1"}
        return {**os.environ, **program.env, **marks}

    def _problem(self, program: Program) -> str:
        code = self.exit_code(program.name)
        what = f"was not ready within {program.deadline_s:g} s" if code is None else f"ended with code {code}"
        return f"{program.name} {what}; {_where(program)}"


def answers(url: str) -> bool:
    """Say whether a GET of `url` succeeds (2xx) within a second."""
    try:
        return httpx.get(url, timeout=1.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log, or an empty text where there is none."""
    with suppress(OSError), path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 400 * lines))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    return ""


def refuse_second_stack(state_path: Path) -> None:
    """Raise Conflict while anything of the stack in this state file lives; forget a file of the dead."""
    names = living(state_path)
    if names:
        raise Conflict(f"already running: {', '.join(names)} (recorded in {state_path}); stop it with `make down`")


def start_watchdog(state_path: Path, stop_timeout_s: float | None) -> subprocess.Popen[bytes]:
    """Start the process that stops the stack as soon as the calling process is gone."""
    timeout = [] if stop_timeout_s is None else [str(stop_timeout_s)]
    return subprocess.Popen(
        [sys.executable, "-m", "hone.local.watchdog", str(state_path), *timeout],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop_watchdog(watchdog: subprocess.Popen[bytes]) -> None:
    """End the watchdog after the stack is stopped; it finds nothing left to do."""
    assert watchdog.stdin
    watchdog.stdin.close()
    try:
        watchdog.wait(timeout=10)
    except subprocess.TimeoutExpired:
        watchdog.kill()
        watchdog.wait()


def _spawn(program: Program, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    program.log_path.parent.mkdir(parents=True, exist_ok=True)
    with program.log_path.open("ab") as log:
        try:
            return subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=program.cwd,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ProgramFailed(f"{program.name} cannot be started: {error}; {program.remedy}") from error


def _where(program: Program) -> str:
    return f"log: {program.log_path}; {program.remedy}\n{tail(program.log_path)}"


__all__ = ["Program", "RunningProgram", "Supervisor", "answers", "down", "living", "read_state", "tail"]
