"""Whether a split that the cluster accepted has come into effect; pure but for its memory of counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hone.stats import sample_ratio_log_e

MIN_STRAY = 3
"""Requests at an arm without weight that are no leftovers of the split before."""
CONTRADICTION_LOG_E = math.log(1000)
CURE_PAUSE_S = 5.0
"""How long a cure may take to show before the next one."""

Weights = Mapping[str, float]
Counts = Mapping[str, int]


@dataclass
class Effect:
    """What was seen of one intended split. `cures`: 1 it was written again, 2 made anew, 3 given up."""

    wanted: Weights
    cures: int = 0
    cured_at: float = -math.inf
    base: Counts | None = None
    "What the arms had counted when the split was first seen settled."

    def is_contradicted(self, written: Weights, counts: Counts | None, *, settled: bool) -> bool:
        """Say whether what is read back, or what the arms have counted since, is not the split that was written."""
        if written != self.wanted:
            return True
        if not settled or counts is None:
            return False
        if self.base is None or any(counts.get(name, 0) < num for name, num in self.base.items()):
            self.base = dict(counts)  # first look, or an arm has started anew
            return False
        return contradicts(self.wanted, {name: num - self.base.get(name, 0) for name, num in counts.items()})

    def cure(self, now: float) -> int:
        """Go one step further, unless the last step was a moment ago; return how far we are."""
        if now - self.cured_at >= CURE_PAUSE_S and self.cures < 3:
            self.cures, self.cured_at, self.base = self.cures + 1, now, None
        return self.cures


def contradicts(wanted: Weights, counts: Counts) -> bool:
    """Say whether requests fell in a way that the weights rule out, or make less likely than one in a thousand."""
    if any(num >= MIN_STRAY for name, num in counts.items() if wanted.get(name, 0.0) == 0.0):
        return True
    shares = sorted((share, name) for name, share in wanted.items() if share > 0)
    if len(shares) != 2:
        return False
    (small, canary), (_, stable) = shares
    return sample_ratio_log_e([(small, counts.get(canary, 0), counts.get(stable, 0))]) >= CONTRADICTION_LOG_E
