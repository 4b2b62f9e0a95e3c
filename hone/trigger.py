"""When to retrain: a pure look at counts. It is level-triggered, so a look may be repeated or missed."""

import math
from dataclasses import dataclass

from hone.settings import Trigger

MIN_RECENT = 20
"""Recent pairs below which the time to go is not told: of so few, chance alone moves a rate by more than a fifth."""


@dataclass(frozen=True)
class Counts:
    """What is new since the last retraining."""

    num_pairs: int
    "Trainable pairs, no person's beyond the cap."
    num_recent: int = 0
    "Those of the last `recent_s` seconds."
    recent_s: float = 0.0


@dataclass(frozen=True)
class Switches:
    """What holds the trigger back."""

    is_active: bool
    "False in observe mode: collect and report, train nothing."
    is_frozen: bool


@dataclass(frozen=True)
class Look:
    """What the trigger sees."""

    num_pairs: int
    min_pairs: int
    missing: int
    eta_s: float | None
    "Seconds until the threshold at the recent rate; None where fewer than MIN_RECENT pairs came recently."
    num_recent: int
    would_trigger: bool
    "Whether there are enough pairs."
    opens: bool
    "Whether a request is to be opened: enough pairs, and nothing holds it back."
    reason: str


def look(counts: Counts, trigger: Trigger, switches: Switches) -> Look:
    """Return how far the next retraining is."""
    missing = max(0, trigger.min_pairs - counts.num_pairs)
    enough = missing == 0
    return Look(
        num_pairs=counts.num_pairs,
        min_pairs=trigger.min_pairs,
        missing=missing,
        eta_s=time_to_go(missing, counts),
        num_recent=counts.num_recent,
        would_trigger=enough,
        opens=enough and switches.is_active and not switches.is_frozen,
        reason=explain(missing, counts, trigger, switches),
    )


def time_to_go(missing: int, counts: Counts) -> float | None:
    """Return the seconds until the missing pairs are there at the recent rate."""
    if missing == 0:
        return 0.0
    if counts.num_recent < MIN_RECENT or counts.recent_s <= 0:
        return None
    return math.ceil(missing * counts.recent_s / counts.num_recent)


def explain(missing: int, counts: Counts, trigger: Trigger, switches: Switches) -> str:
    """Say in one sentence what the look sees."""
    if missing:
        return f"{missing} pairs short of {trigger.min_pairs}"
    found = f"{counts.num_pairs} new pairs, {trigger.min_pairs} needed"
    if switches.is_frozen:
        return f"{found}: frozen, a retraining starts when the freeze ends"
    if not switches.is_active:
        return f"{found}: would have triggered, but the mode is observe"
    return found
