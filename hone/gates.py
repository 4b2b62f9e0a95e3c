"""The gates between a challenger and live traffic: measurements in, verdicts with reasons out.

Pure. Missing data is inconclusive, never a pass. Nothing here knows what a simulated user secretly likes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hone.errors import ConfigError
from hone.records import GateResult, Verdict

Measurements = Mapping[str, float]

SEVERITY = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The bounds of the gates (table `[gates]` of a run's spec); shares are 0 to 1."""

    min_test_pairs: int = 60
    min_preference_accuracy: float = 0.5
    "The lower end of the interval must lie above it."
    min_judged_answers: int = 500
    min_judged_prompts: int = 160
    min_win_rate: float = 0.5
    "The lower end of the interval must lie above it."
    min_forgetting_checks: int = 60
    max_forgetting: float = 0.10
    "Loss of pass rate against the champion that is tolerated; the interval must exclude a larger one."
    min_end_rate: float = 0.97
    "Share of answers that end by themselves."
    max_end_rate_drop: float = 0.02
    max_distinct_drop: float = 0.10
    "Relative loss of distinct word pairs within an answer."
    max_repeat_excess: float = 0.01
    "How much more often than the champion one and the same answer may be given to different prompts."
    max_length_growth: float = 0.15
    "Relative; more is allowed where the challenger wins among answers of equal length too."
    max_length_loss: float = 0.60


def load_thresholds(values: Mapping[str, Any]) -> Thresholds:
    """Return the thresholds with the given ones replaced.

    Raises:
        ConfigError: a key is unknown, or its value is no number.
    """
    known = {field.name for field in fields(Thresholds)}
    for key, value in values.items():
        if key not in known or isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"gates.{key} = {value!r} is not a threshold: use a number for one of {sorted(known)}")
    return Thresholds(**values)


def judge(measured: Mapping[str, Measurements], thresholds: Thresholds) -> list[GateResult]:
    """Return the verdict of every gate; one whose numbers are missing, or no numbers, is inconclusive.

    Args:
        measured: gate name -> its measurements, as `training.evaluate` writes them.
    """
    gates = (
        ("held_out_preference", held_out_preference),
        ("win_rate", win_rate),
        ("forgetting", forgetting),
        ("degenerate", degenerate),
        ("stop_rules", stop_rules),
    )
    results = []
    for name, gate in gates:
        numbers = {key: value for key, value in measured.get(name, {}).items() if math.isfinite(value)}
        try:
            verdict, reason = gate(numbers, thresholds)
        except KeyError as missing:
            verdict, reason = Verdict.INCONCLUSIVE, f"{missing.args[0]} was not measured"
        results.append(GateResult(gate=name, verdict=verdict, reason=reason, measurements=numbers))
    return results


def overall(results: Iterable[GateResult]) -> Verdict:
    """Return the worst verdict; of no gates at all, inconclusive."""
    return max((result.verdict for result in results), key=SEVERITY.index, default=Verdict.INCONCLUSIVE)


def held_out_preference(measured: Measurements, bounds: Thresholds) -> tuple[Verdict, str]:
    """Does the challenger's implicit reward agree with people it has not learnt from?"""
    if measured["num_pairs"] < bounds.min_test_pairs:
        return Verdict.INCONCLUSIVE, f"{measured['num_pairs']:.0f} test pairs, needs {bounds.min_test_pairs}"
    return above(measured, "accuracy", bounds.min_preference_accuracy, "agreement with held-out people")


def win_rate(measured: Measurements, bounds: Thresholds) -> tuple[Verdict, str]:
    """Does a judge that learnt from other people prefer the challenger's answers?"""
    for key, needed in (("num_answers", bounds.min_judged_answers), ("num_prompts", bounds.min_judged_prompts)):
        if measured[key] < needed:
            return Verdict.INCONCLUSIVE, f"{key.removeprefix('num_')}: {measured[key]:.0f} judged, needs {needed}"
    if measured["judge_accuracy_low"] <= 0.5:
        low = measured["judge_accuracy_low"]
        return Verdict.INCONCLUSIVE, f"the judge itself agrees with people it has not seen in only {low:.3f} (low end)"
    return above(measured, "win_rate", bounds.min_win_rate, "win rate against the champion")


def above(measured: Measurements, key: str, bound: float, what: str) -> tuple[Verdict, str]:
    """Judge an interval that must lie above a bound."""
    low, high = measured[f"{key}_low"], measured[f"{key}_high"]
    reason = f"{what} {measured[key]:.3f} in [{low:.3f}, {high:.3f}], needs more than {bound}"
    if low > bound:
        return Verdict.PASS, reason
    return (Verdict.FAIL if high < bound else Verdict.INCONCLUSIVE), reason


def forgetting(measured: Measurements, bounds: Thresholds) -> tuple[Verdict, str]:
    """Does the challenger still pass the checks that the champion passes?"""
    if measured["num_checks"] < bounds.min_forgetting_checks:
        return Verdict.INCONCLUSIVE, f"{measured['num_checks']:.0f} checks, needs {bounds.min_forgetting_checks}"
    low, high = measured["change_low"], measured["change_high"]
    reason = (
        f"pass rate {measured['challenger']:.3f} against the champion's {measured['champion']:.3f}: change in "
        f"[{low:+.3f}, {high:+.3f}], may not fall by more than {bounds.max_forgetting}"
    )
    if low >= -bounds.max_forgetting:
        return Verdict.PASS, reason
    is_worse = measured["challenger"] - measured["champion"] < -bounds.max_forgetting
    return (Verdict.FAIL if is_worse else Verdict.INCONCLUSIVE), reason


def degenerate(measured: Measurements, bounds: Thresholds) -> tuple[Verdict, str]:
    """Are the answers whole, varied, and about as long as before?"""
    if measured["num_answers"] < bounds.min_judged_answers:
        return Verdict.INCONCLUSIVE, f"{measured['num_answers']:.0f} answers, needs {bounds.min_judged_answers}"
    faults = list(degenerate_faults(measured, bounds))
    if faults:
        return Verdict.FAIL, "; ".join(faults)
    return Verdict.PASS, (
        f"{measured['end_rate']:.3f} of the answers end by themselves, mean length {measured['length']:.0f} characters "
        f"against the champion's {measured['champion_length']:.0f}, most frequent answer on "
        f"{measured['repeat_share']:.3f} of the prompts (champion {measured['champion_repeat_share']:.3f})"
    )


def degenerate_faults(measured: Measurements, bounds: Thresholds) -> Iterable[str]:
    """Yield a sentence for each bound that is broken."""
    end_rate, champion_end_rate = measured["end_rate"], measured["champion_end_rate"]
    floor = bounds.min_end_rate if champion_end_rate >= bounds.min_end_rate else 0.0
    needed = max(floor, champion_end_rate - bounds.max_end_rate_drop)
    if end_rate < needed:
        yield f"only {end_rate:.3f} of the answers end by themselves, needs {needed:.3f}"
    drop = 1 - measured["distinct_2"] / measured["champion_distinct_2"]
    if drop > bounds.max_distinct_drop:
        yield f"distinct word pairs fell by {drop:.1%}, at most {bounds.max_distinct_drop:.0%}"
    if measured["repeat_excess_low"] > bounds.max_repeat_excess:
        yield (
            f"one answer is given to {measured['repeat_share']:.3f} of the prompts, the champion's most frequent one "
            f"to {measured['champion_repeat_share']:.3f}: at least {measured['repeat_excess_low']:.3f} more, "
            f"at most {bounds.max_repeat_excess}"
        )
    growth = measured["length"] / measured["champion_length"] - 1
    if growth < -bounds.max_length_loss:
        yield f"answers are {-growth:.0%} shorter, at most {bounds.max_length_loss:.0%}"
    wins_from = measured.get("equal_length_win_rate_low", 0.0)
    if growth > bounds.max_length_growth and wins_from <= bounds.min_win_rate:
        yield (
            f"answers are {growth:.0%} longer, at most {bounds.max_length_growth:.0%} without winning among answers of "
            f"equal length (win rate from {wins_from:.3f})"
        )


def stop_rules(measured: Measurements, _bounds: Thresholds) -> tuple[Verdict, str]:
    """Did a stop rule fire while the challenger was trained?"""
    fired = [name.removeprefix("fired_at_") for name in measured if name.startswith("fired_at_")]
    if fired:
        where = ", ".join(f"{name} at step {measured[f'fired_at_{name}']:.0f}" for name in fired)
        return Verdict.FAIL, f"stop rules fired: {where}"
    return Verdict.PASS, f"no stop rule fired in {measured['num_steps']:.0f} steps"
