"""Reads the curve of a run, `curve.jsonl` in its directory, also while the run goes on. No torch here."""

import json
from pathlib import Path

CURVE = "curve.jsonl"


def read_curve(directory: Path) -> dict[int, dict[str, float]]:
    """Return each step's figures so far, in order; a line that is being written is left out.

    A run that went on from a checkpoint has written some steps twice: the later lines count.
    """
    path = directory / CURVE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found: dict[int, dict[str, float]] = {}
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.startswith("{"):
            values = json.loads(line)
            step = int(values.pop("step"))
            found[step] = found.get(step, {}) | values
    return dict(sorted(found.items()))
