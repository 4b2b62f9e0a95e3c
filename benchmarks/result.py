"""What every benchmark prints: progress on stderr, and one JSON object as the last line of stdout."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt
from typing import Any

COMPARE = {">=": ge, "<=": le, ">": gt, "<": lt, "==": eq}


@dataclass(frozen=True)
class Target:
    """A promise: `value op bound`."""

    value: float
    op: str
    bound: float

    def as_dict(self) -> dict[str, Any]:
        holds = bool(COMPARE[self.op](self.value, self.bound))
        return {"value": self.value, "op": self.op, "bound": self.bound, "holds": holds}


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg()[0],
    }


def report(figures: Mapping[str, Any], targets: Mapping[str, Target], seeds: Sequence[int]) -> int:
    """Print the object; return the exit code, 1 where a promise is not kept."""
    judged = {name: target.as_dict() for name, target in targets.items()}
    print(json.dumps({"figures": figures, "targets": judged, "machine": machine(), "seeds": list(seeds)}))
    return 0 if all(target["holds"] for target in judged.values()) else 1


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)
