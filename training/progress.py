"""Says how far a run is: a line on stderr now and then, and `progress.json`, whose time stamp is the heartbeat.

Each step's figures go to `curve.jsonl` and to the trackers of `report_to`, its speed to `progress.json`.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from training.meter import Meter
from training.trackers import Tracker

LINE_S = 2.0
FILE_S = 0.5


class Progress:
    """The progress of one run; `step` and `record` are cheap enough for every optimiser step."""

    def __init__(self, path: Path, trackers: Iterable[Tracker] = (), meter: Meter | None = None) -> None:
        """Report to `path`, to the curve beside it, to the trackers and to stderr."""
        self._path = path
        self._curve = path.with_name(path.name.replace("progress", "curve")).with_suffix(".jsonl")
        self._stage = ""
        self._started = self._last_line = self._last_file = 0.0
        self.trackers = list(trackers)
        self.meter = meter or Meter()
        self.part = ""
        "Prefix of the figures' names where a run trains several models one after the other."

    def stage(self, name: str) -> None:
        """Begin a stage: it is written at once."""
        self._stage, self._started = name, time.monotonic()
        self._last_line = self._last_file = 0.0
        self.meter.start()
        self.step(0, 0)

    def record(
        self, done: int, total: int, figures: Mapping[str, float], shown: Iterable[str], tokens: float = 0.0
    ) -> None:
        """Keep the figures of step `done` (from 1) of `total`, over so many tokens; a line shows those of `shown`.

        A run that goes on from a checkpoint records the steps after it again: of a step's lines the last one counts.
        """
        speed = self.meter.step(tokens)
        self.keep(done, figures)
        self.step(done, total, speed=speed, **{name: figures[name] for name in shown if name in figures})

    def keep(self, step: int, figures: Mapping[str, float]) -> None:
        """Append figures of a step, such as those on dev rows, to the curve, and tell the trackers."""
        named = {f"{self.part}{name}": value for name, value in figures.items()}
        with self._curve.open("a", encoding="utf-8") as curve:
            curve.write(json.dumps({"step": step, **named}) + "\n")
        for tracker in self.trackers:
            tracker.log(step, named)

    def waiting(self) -> AbstractContextManager[None]:
        """Count the block's time as waiting for data."""
        return self.meter.waiting()

    def step(self, done: int, total: int, speed: Mapping[str, float] | None = None, **numbers: float) -> None:
        """Report `done` of `total` (0: unknown), with figures of this moment."""
        now = time.monotonic()
        is_last = 0 < total == done
        if is_last or now - self._last_file >= FILE_S:
            self._last_file = now
            facts = {"stage": self._stage, "done": done, "total": total, "at": time.time(), **numbers}
            self._write({**facts, "speed": dict(speed)} if speed else facts)
        if is_last or now - self._last_line >= LINE_S:
            self._last_line = now
            print(self._line(done, total, now - self._started, numbers), file=sys.stderr, flush=True)

    def _line(self, done: int, total: int, elapsed_s: float, numbers: Mapping[str, float]) -> str:
        figures = "".join(f"  {name} {value:.3f}" for name, value in numbers.items())
        if not total:
            return f"{self._stage}{figures}"
        left = f"  {elapsed_s * (total - done) / done:.0f} s to go" if 0 < done < total else ""
        bar = "#" * (20 * done // total)
        return f"{self._stage} [{bar:<20}] {done}/{total}  {elapsed_s:.1f} s{left}{figures}"

    def _write(self, facts: Mapping[str, Any]) -> None:
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text(json.dumps(facts))
        os.replace(scratch, self._path)
