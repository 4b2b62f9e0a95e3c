"""Signs that a run goes wrong although its loss falls: likelihood displacement and runaway margins. Pure."""

from collections.abc import Sequence

from training.method_tables import StopRules

History = Sequence[dict[str, float]]
"""One entry a step: loss, margin, accuracy, chosen_logps, reference_chosen_logps."""


def fired(history: History, rules: StopRules) -> dict[str, int]:
    """Return each rule that ever fired, with the number of the step (from 1) after which it first did."""
    first: dict[str, int] = {}
    for end in range(rules.window, len(history) + 1):
        for name in fired_now(history[end - rules.window : end], rules):
            first.setdefault(name, end)
    return first


def fired_now(window: History, rules: StopRules) -> list[str]:
    """Return the rules that fire on the means over one window."""
    names = []
    if chosen_drop(window) > rules.max_chosen_drop:
        names.append("chosen_drop")
    if mean(window, "margin") > rules.max_margin:
        names.append("margin")
    return names


def chosen_drop(window: History) -> float:
    """Return how far the chosen answers' log-probability fell below the reference's, relative to it."""
    reference = mean(window, "reference_chosen_logps")
    return (reference - mean(window, "chosen_logps")) / max(abs(reference), 1e-6)


def mean(window: History, key: str) -> float:
    """Return the mean of one figure."""
    return sum(step[key] for step in window) / len(window)
