"""Says how far a run is: a line on stderr now and then, and `progress.json`, whose time stamp is the heartbeat."""

import json
import os
import sys
import time
from pathlib import Path

LINE_S = 2.0
FILE_S = 0.5


class Progress:
    """The progress of one run; `step` is cheap enough for every optimiser step."""

    def __init__(self, path: Path) -> None:
        """Report to `path` and to stderr."""
        self._path = path
        self._stage = ""
        self._started = self._last_line = self._last_file = 0.0

    def stage(self, name: str) -> None:
        """Begin a stage: it is written at once."""
        self._stage, self._started = name, time.monotonic()
        self._last_line = self._last_file = 0.0
        self.step(0, 0)

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Report `done` of `total` (0: unknown), with figures of this moment."""
        now = time.monotonic()
        is_last = 0 < total == done
        if is_last or now - self._last_file >= FILE_S:
            self._last_file = now
            self._write({"stage": self._stage, "done": done, "total": total, "at": time.time(), **numbers})
        if is_last or now - self._last_line >= LINE_S:
            self._last_line = now
            print(self._line(done, total, now - self._started, numbers), file=sys.stderr, flush=True)

    def _line(self, done: int, total: int, elapsed_s: float, numbers: dict[str, float]) -> str:
        figures = "".join(f"  {name} {value:.3f}" for name, value in numbers.items())
        if not total:
            return f"{self._stage}{figures}"
        left = f"  {elapsed_s * (total - done) / done:.0f} s to go" if 0 < done < total else ""
        bar = "#" * (20 * done // total)
        return f"{self._stage} [{bar:<20}] {done}/{total}  {elapsed_s:.1f} s{left}{figures}"

    def _write(self, facts: dict[str, float | str]) -> None:
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text(json.dumps(facts))
        os.replace(scratch, self._path)
