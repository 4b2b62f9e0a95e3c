"""What duels say, beside the verdict and never in it. Pure.

The estimand: among people who asked again and were then answered by the other arm, how much more often the canary's
answer was preferred than stable's, averaged over both orders. A second answer is liked for being the second; one duel
of each order makes a contrast in which that cancels. Models that are alike have a contrast of 0 on average.
"""

from collections.abc import Sequence
from typing import Any

from hone.stats import EffectBets
from hone.store.rollout_duels import Duel


def contrasts(duels: Sequence[Duel]) -> list[float]:
    """Return (canary preferred when second + canary preferred when first) / 2, in [-1, 1], in order of time."""
    second = [float(duel.second_preferred) for duel in duels if duel.canary_second]
    first = [-float(duel.second_preferred) for duel in duels if not duel.canary_second]
    return [(late + early) / 2 for late, early in zip(second, first, strict=False)]


def describe_duels(duels: Sequence[Duel], alpha: float) -> dict[str, Any]:
    """Return counts, the order-balanced contrast, and an interval that holds it at all times with 1 - alpha."""
    found = contrasts(duels)
    low, high = EffectBets.start().bet(found).interval(alpha)
    return {
        "num": len(duels),
        "num_compared": sum(duel.second_preferred != 0 for duel in duels),
        "num_contrasts": len(found),
        "contrast": sum(found) / len(found) if found else None,
        "low": low,
        "high": high,
    }
