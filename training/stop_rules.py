"""Signs that a run goes wrong although its loss falls. Pure.

Likelihood displacement, runaway margins, a policy far from its reference, answers that no longer end or all are the
same, and a reward that rises while a signal that nobody is rewarded for falls.
"""

from collections.abc import Callable, Mapping, Sequence

from training.method_tables import StopRules

Step = Mapping[str, float]
History = Sequence[Step]
"""One entry a step: loss and what the method measures. A rule whose figures a window lacks does not look at it."""


def fired(history: History, rules: StopRules) -> dict[str, int]:
    """Return each rule that ever fired, with the number of the step (from 1) after which it first did."""
    first: dict[str, int] = {}
    for end in range(rules.window, len(history) + 1):
        for name in fired_now(history[end - rules.window : end], history[: rules.window], rules):
            first.setdefault(name, end)
    return first


def fired_now(window: History, beginning: History, rules: StopRules) -> list[str]:
    """Return the rules that fire on the means over one window; some compare it with the first one."""
    return [name for name, (keys, rule) in RULES.items() if breaks(rule, keys, window, beginning, rules)]


Means = dict[str, float]
Rule = Callable[[Means, Means, StopRules], bool]
"""(means now, means at the beginning, bounds) -> whether the run goes wrong."""


def breaks(rule: Rule, keys: Sequence[str], window: History, beginning: History, rules: StopRules) -> bool:
    """Say whether a rule fires; False where its figures were not measured."""
    now, before = means(window, keys), means(beginning, keys)
    return now is not None and before is not None and rule(now, before, rules)


def means(window: History, keys: Sequence[str]) -> Means | None:
    """Return the means of the figures over the steps that have all of them, or None: no step has."""
    steps = [step for step in window if all(key in step for key in keys)]
    return {key: sum(step[key] for step in steps) / len(steps) for key in keys} if steps else None


def chosen_drop(now: Means, _: Means, rules: StopRules) -> bool:
    """The chosen answers' log-probability fell far below the reference's, relative to it."""
    reference = now["reference_chosen_logps"]
    return (reference - now["chosen_logps"]) / max(abs(reference), 1e-6) > rules.max_chosen_drop


def held_out_falls(now: Means, before: Means, rules: StopRules) -> bool:
    """The reward rises while the held-out signal falls."""
    return now["reward"] > before["reward"] and now["held_out"] < before["held_out"] - rules.max_held_out_drop


RULES: dict[str, tuple[tuple[str, ...], Rule]] = {
    "chosen_drop": (("chosen_logps", "reference_chosen_logps"), chosen_drop),
    "margin": (("margin",), lambda now, _, rules: now["margin"] > rules.max_margin),
    "kl": (("kl",), lambda now, _, rules: now["kl"] > rules.max_kl),
    "end_rate": (
        ("end_rate",),
        lambda now, before, rules: now["end_rate"] < before["end_rate"] - rules.max_end_rate_drop,
    ),
    "diversity": (
        ("distinct_share",),
        lambda now, before, rules: now["distinct_share"] < rules.min_distinct_share * before["distinct_share"],
    ),
    "reward_hacking": (("reward", "held_out"), held_out_falls),
}
"""Name -> the figures that the rule looks at, and the rule."""
