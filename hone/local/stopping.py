"""Ends the processes of a stack: a polite signal, a bounded wait, SIGKILL, and a look that nothing is left."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from hone.errors import ProgramFailed
from hone.local.stack_state import RunningProgram, family, marked, read_state

logger = logging.getLogger(__name__)

POLL_S = 0.05
KILL_TIMEOUT_S = 10.0


def stop_programs(
    stack: str,
    programs: Iterable[RunningProgram],
    *,
    timeout_s: float | None = None,
    reap: Callable[[], None] = lambda: None,
) -> None:
    """Stop the programs and all that they started; those that others depend on (`foundation`) come last.

    Each of the two waves gets `timeout_s` to end by itself, by default as long as the slowest of its programs may
    take; 0 means SIGKILL at once. `reap` collects the exit codes of the caller's own children. Postcondition: no
    process of these programs is left.

    Raises:
        ProgramFailed: a process survived SIGKILL for 10 s (it hangs in the kernel).
    """
    programs = tuple(programs)
    for wave in (
        tuple(p for p in programs if not p.foundation),
        tuple(p for p in programs if p.foundation),
    ):
        if wave:
            _stop_wave(stack, wave, longest(wave) if timeout_s is None else timeout_s, reap)


def longest(programs: Iterable[RunningProgram]) -> float:
    """Return for how many seconds these programs, stopped together, are waited for; 0 where there is none."""
    return max((program.stop_timeout_s for program in programs), default=0.0)


def down(state_path: Path, *, timeout_s: float | None = None) -> list[str]:
    """Stop a stack from any process, also when its starter is gone; return the names of what was still running.

    `timeout_s` as for `stop_programs`. The state file is gone afterwards. Without a state file there is nothing to do.
    """
    state = read_state(state_path)
    if not state:
        return []
    names = living(state_path)
    stop_programs(state.stack, state.programs, timeout_s=timeout_s)
    _kill(lambda: marked(state.stack))
    state_path.unlink(missing_ok=True)
    return names


def patience(state_path: Path) -> float:
    """Return for how many seconds `down` waits at most before it kills; 0 where nothing of the stack lives."""
    state = read_state(state_path)
    alive = [program for program in state.programs if program.process.find()] if state else []
    return sum(longest(p for p in alive if p.foundation is last) for last in (False, True))


def living(state_path: Path) -> list[str]:
    """Return the names of the recorded programs of which at least one process lives."""
    state = read_state(state_path)
    if not state:
        return []
    return [p.name for p in state.programs if _processes(state.stack, (p,))]


def _stop_wave(stack: str, wave: tuple[RunningProgram, ...], timeout_s: float, reap: Callable[[], None]) -> None:
    def left() -> list[psutil.Process]:
        reap()
        return _processes(stack, wave, known)

    known: Sequence[psutil.Process] = _processes(stack, wave)
    if timeout_s > 0:
        for program in wave:
            _ask(program)
        _wait_until_gone(lambda: [p for p in known if _alive(p, reap)], timeout_s)
    _kill(left)


def _processes(
    stack: str, programs: Sequence[RunningProgram], known: Sequence[psutil.Process] = ()
) -> list[psutil.Process]:
    """Return what lives of these programs: families, marked processes, and what was `known` before its parent died."""
    found = {process for members in family(tuple(programs)).values() for process in members}
    for program in programs:
        found.update(marked(stack, program.name))
    found.update(process for process in known if _alive(process))
    return list(found)


def _alive(process: psutil.Process, reap: Callable[[], None] = lambda: None) -> bool:
    reap()
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ask(program: RunningProgram) -> None:
    leader = program.process.find()
    with suppress(psutil.Error, ProcessLookupError):
        if leader and program.adopted:
            leader.send_signal(program.stop_signal)
        elif leader:
            os.killpg(leader.pid, program.stop_signal)


def _wait_until_gone(left: Callable[[], list[psutil.Process]], timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while (remaining := left()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return remaining


def _kill(left: Callable[[], list[psutil.Process]]) -> None:
    """SIGKILL all that `left` returns until it returns nothing: a process may fork while it is being killed."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while remaining := left():
        for process in remaining:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if time.monotonic() > deadline:
            pids = [process.pid for process in remaining]
            raise ProgramFailed(f"processes {pids} survived SIGKILL for {KILL_TIMEOUT_S:g} s; end them by hand")
        time.sleep(POLL_S)
