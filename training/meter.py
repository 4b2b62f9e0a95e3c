"""How fast a run trains and what memory it takes, step by step, while it goes on.

MFU, the model's FLOPs utilisation (arXiv:2204.02311, appendix B): operations that the trained model itself needs for
the tokens it has seen, divided by time and by what the devices could do at most. A token's forward pass takes 2
operations a parameter, and attention's own; the backward pass twice that, or, where only an adapter learns, once: the
base's weights get no gradient. What is computed again (checkpointing), frozen models and sampling count as time and not
as operations. The peak of a device is what its maker states for dense bf16, as in `configs/planner.toml`.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hone.errors import ConfigError
from hone.plan.cost import TERA, forward_operations
from hone.plan.facts import shape_of
from hone.plan.fit import SEQUENCES
from hone.plan.tables import load_tables
from training.distributed import world
from training.spec import RunSpec

WINDOW_S = 30.0
"""Rates are of the last half minute: they follow a run without jumping at each step."""
STATUS = Path("/proc/self/status")

Operations = Callable[[float], float]
"""Mean tokens of a sequence -> operations of one token."""


class Meter:
    """Counts tokens and waiting of one run; `step` is cheap enough for every optimiser step."""

    def __init__(
        self,
        sequences: int = 1,
        operations: Operations | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin now.

        Args:
            sequences: of one optimiser step, over all devices.
            operations: of the model; None: it is of a shape that is not counted, and there is no MFU.
            peak: operations a second of all devices together; None: unknown, and there is no MFU.
        """
        self._sequences, self._operations, self._peak, self._clock = sequences, operations, peak, clock
        self._waited = 0.0
        self._marks = deque([(clock(), 0.0, 0.0)])
        self._tokens = 0.0

    def start(self) -> None:
        """Forget what was before the first step: loading, and reference values."""
        self._marks = deque([(self._clock(), self._tokens, self._waited)])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data."""
        started = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - started

    def step(self, tokens: float) -> dict[str, float]:
        """Take one step over `tokens` (no padding, a shared prompt once); return the figures of this moment."""
        now = self._clock()
        self._tokens += tokens
        self._marks.append((now, self._tokens, self._waited))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW_S:
            self._marks.popleft()
        since, tokens_then, waited_then = self._marks[0]
        elapsed = max(now - since, 1e-9)
        rate = (self._tokens - tokens_then) / elapsed
        found = {"tokens_per_s": rate, "wait_share": min(1.0, (self._waited - waited_then) / elapsed), **memory()}
        if self._operations and self._peak and tokens:
            found["mfu"] = rate * self._operations(tokens / self._sequences) / self._peak
        return found


def meter_for(spec: RunSpec, model: Any) -> Meter:
    """Return the meter of a run of this spec on this model."""
    return Meter(spec.batch_size * SEQUENCES[spec.method], operations_of(spec, model), peak_of(spec))


def operations_of(spec: RunSpec, model: Any) -> Operations | None:
    """Return the operations of one trained token, or None for a model that is no Llama-like decoder."""
    try:
        shape = shape_of(model.config.get_text_config().to_dict(), "the model")
    except ConfigError:
        return None
    passes = 3 if spec.adapter == "full" else 2
    passes *= spec.ppo.epochs if spec.method == "ppo" else 1
    return lambda length: passes * forward_operations(shape, length)


def peak_of(spec: RunSpec) -> float | None:
    """Return the operations a second that all devices could do: `launch.peak_tflops`, else by the GPU's name."""
    each = spec.launch.peak_tflops or (
        tflops_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    )
    return each * TERA * world() if each else None


def gpu_named(name: str) -> str | None:
    """Return the planner's name of the GPU that a driver calls so; None: its tables do not know it."""
    words = set(re.split(r"[^a-z0-9]+", name.lower().replace("rtx ", "rtx")))
    return next((key for key in load_tables().hardware if key in words - {"cpu"}), None)


def tflops_named(name: str) -> float | None:
    """Return what the maker states for a GPU that a driver calls so, in dense bf16; None: the tables do not know it."""
    key = gpu_named(name)
    return load_tables().hardware[key].tflops if key else None


def memory() -> dict[str, float]:
    """Return the largest memory so far, in bytes: of this process, and of its GPU where there is one."""
    found = {"memory_bytes": peak_memory()} if STATUS.exists() else {}
    if torch.cuda.is_available():
        found["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return found


def peak_memory() -> float:
    """Return the peak resident memory; not `getrusage`'s, which begins with that of the process that started us."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) * 1024
