"""How the run that trains now gets on: what it writes of itself into its directory, as gauges.

The run is a process of its own, perhaps on another machine: its directory must be seen from here, else nothing is
known. A file that is not written any more says nothing either.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hone import metrics

FRESH_S = 120.0
"""A run that trains writes twice a second; reference values and long steps take their time."""
NAN = float("nan")


def read_progress(directory: str | None, now: datetime) -> Mapping[str, Any]:
    """Return what the run in the directory last said of itself; empty where it says nothing, or is silent."""
    path = Path(directory or "", "progress.json")
    if directory is None or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if now.timestamp() - found["at"] < FRESH_S else {}


def show_training(progress: Mapping[str, Any]) -> None:
    """Set the gauges; what is not known is NaN."""
    speed: Mapping[str, float] = progress.get("speed", {})
    total = progress.get("total", 0)
    metrics.TRAINING_PROGRESS.set(progress["done"] / total if total and speed else NAN)
    metrics.TRAINING_TOKENS.set(speed.get("tokens_per_s", NAN))
    metrics.TRAINING_MFU.set(speed.get("mfu", NAN))
    metrics.TRAINING_WAIT.set(speed.get("wait_share", NAN))
    metrics.TRAINING_MEMORY.labels("host").set(speed.get("memory_bytes", NAN))
    metrics.TRAINING_MEMORY.labels("gpu").set(speed.get("gpu_memory_bytes", NAN))
