"""CPU time and memory of a whole stack, the figures of the demo's report.

CPU seconds = this process and its ended, waited-for descendants (`os.times`) + every living process of the stack with
its own ended children + the last sample of adopted servers that have ended. An orphan that ends between samples after
its parent died is not counted. Memory = the sum of proportional set sizes (shared pages are counted once in total),
this process included; where the system has no PSS (macOS) the sum of resident sizes, which is larger.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from hone.local.stack_state import RunningProgram, family


@dataclass(frozen=True)
class Usage:
    """What a stack has used since sampling began."""

    cpu_seconds: float
    peak_pss_mb: float
    """Largest sum over one sample, in MB (10**6 bytes)."""
    cpu_seconds_by_program: dict[str, float]
    """Of the programs that lived at the last sample."""


class UsageSampler:
    """Samples in a thread inside its `with` block; `usage()` may be called during and after it."""

    def __init__(self, running: Callable[[], tuple[RunningProgram, ...]], *, interval_s: float = 1.0) -> None:
        """`running` returns the programs to count, usually `lambda: supervisor.running`."""
        self._running = running
        self._interval_s = interval_s
        self._own_start = sum(os.times()[:4])
        self._peak_bytes = 0
        self._adopted: dict[RunningProgram, float] = {}
        self._by_program: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="usage", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def usage(self) -> Usage:
        """Take a sample now and return the totals so far."""
        living = self.sample()
        own = sum(os.times()[:4]) - self._own_start
        ended = sum(seconds for program, seconds in self._adopted.items() if program.name not in living)
        total = own + sum(living.values()) + ended
        return Usage(total, self._peak_bytes / 1e6, dict(self._by_program))

    def sample(self) -> dict[str, float]:
        """Measure every living program once and return their CPU seconds by name."""
        with self._lock:
            programs = self._running()
            families = family(programs)
            living = {name: sum(map(cpu_seconds, members)) for name, members in families.items() if members}
            memory = sum(pss_bytes(member) for members in families.values() for member in members)
            self._peak_bytes = max(self._peak_bytes, memory + pss_bytes(psutil.Process()))
            self._adopted |= {p: living[p.name] for p in programs if p.adopted and p.name in living}
            self._by_program |= living
            return living

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()


def cpu_seconds(process: psutil.Process) -> float:
    """Return user and system time of a process and its ended, waited-for children; 0 where it has just ended."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def pss_bytes(process: psutil.Process) -> int:
    """Return the proportional set size (the resident size where the system has none); 0 where it has just ended."""
    with suppress(psutil.Error):
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", 0) or memory.rss)
    return 0
