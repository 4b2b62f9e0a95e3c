"""A rollout as a person watches it: the band of effects, how far each proof is, who rated, what is checked. Pure."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.text import Text

from hone.cli.overview_text import held_text, late_text, past_text, place_text

Facts = Mapping[str, Any]
LABEL = 12
BAR = 24
BAND = 41
"""Columns of the band; an odd number has a middle."""
HALF_WIDTHS = (0.05, 0.10, 0.25, 0.50, 1.0)
NUM_STEPS = 6
NO_EVIDENCE = ", not in the verdict"
"""What is said of duels."""


def view(found: Facts, now: datetime) -> Group:
    """Return the rollout as lines for a terminal; it fits 80 columns."""
    ended = found["ended_at"]
    head = Text.assemble((f"{found['canary']}", "bold"), " against ", (f"{found['stable']}", "bold"))
    lines = [head, Text(place_text(found, ended or now), style="dim")]
    lines += [*([Text(held, style="yellow")] if (held := held_text(found)) else []), Text("")]
    evidence = found["evidence"]
    if evidence.get("num_pairs"):
        lines += [
            *effect_lines(found),
            *proof_lines(found),
            *user_lines(found),
            *late_lines(found),
            *duel_lines(found),
            *check_lines(found),
        ]
    else:
        lines.append(row("evidence", Text("no pair of users closed yet", style="dim")))
    return Group(*lines, Text(""), *(step_line(step) for step in found["transitions"][-NUM_STEPS:]))


def row(label: str, *parts: Text) -> Text:
    """Return one labelled line."""
    return Text.assemble("  ", (f"{label:<{LABEL}}", "dim"), *parts)


def effect_lines(found: Facts) -> Iterator[Text]:
    """Yield the effect in numbers and as a band."""
    low, mean, high = found["effect_low"], found["effect"], found["effect_high"]
    color = "green" if low > 0 else "red" if high < 0 else "default"
    span = f"{low:+.1%} to {high:+.1%} at all times"
    yield row("effect", Text(f"{mean:+.1%}  ", style=f"bold {color}"), Text(span, style="dim"))
    half = next(width for width in HALF_WIDTHS if width >= min(1.0, max(abs(low), abs(high)) * 0.999))
    ends = (f"{-half:+.0%} ", f" {half:+.0%}")
    yield row("", Text(ends[0], style="dim"), band(low, mean, high, half, color), Text(ends[1], style="dim"))


def band(low: float, mean: float, high: float, half: float, color: str) -> Text:
    """Return BAND columns from -half to half: the interval, the mean in it, and where the arms are equal."""

    def column(value: float) -> int:
        return round((min(max(value, -half), half) / half + 1) / 2 * (BAND - 1))

    text = Text()
    first, last, middle = column(low), column(high), (BAND - 1) // 2
    for place in range(BAND):
        if place == column(mean):
            text.append("●", style=f"bold {color}")
        elif place == middle:
            text.append("┼" if first <= place <= last else "│", style="default")
        else:
            text.append("━" if first <= place <= last else "·", style=color if first <= place <= last else "dim")
    return text


def proof_lines(found: Facts) -> Iterator[Text]:
    """Yield how far the wealth is on its way to a promotion and to a rollback, in logs."""
    evidence, reverse = found["evidence"], bool(found["watches"])
    yield proof("go back" if reverse else "better", evidence["log_wealth_up"], 1 / found["e_target"], "green")
    yield proof("keep" if reverse else "harmful", evidence["log_wealth_down"], found["alpha_harm"], "red")
    yield row("pairs", Text(f"{evidence['num_pairs']:,} of at most {found['horizon_pairs']:,}"))


def proof(label: str, log_wealth: float, alpha: float, color: str) -> Text:
    """Return a bar from wealth 1 to 1/alpha."""
    share = min(max(log_wealth / -math.log(alpha), 0.0), 1.0)
    full = round(share * BAR)
    value = f"  e-value {math.exp(min(log_wealth, 700.0)):.3g} of {1 / alpha:.0f}"
    return row(label, Text("━" * full, style=color), Text("─" * (BAR - full), style="dim"), Text(value))


def user_lines(found: Facts) -> Iterator[Text]:
    """Yield how many users each arm has. Means are not shown: pooled over stages they mislead."""
    for track, arm in found["evidence"]["arms"].items():
        yield row(track, Text(f"{arm['rated']:,} users rated of {arm['closed']:,} closed"))


def late_lines(found: Facts) -> Iterator[Text]:
    """Yield how many users rated too late, where some did."""
    if late := late_text(found["late"]):
        yield row("late", Text(late, style="dim"))


def duel_lines(found: Facts) -> Iterator[Text]:
    """Yield what duels say, where there are any."""
    if said := duels_text(found["evidence"]):
        yield row("duels", Text(said), Text(NO_EVIDENCE, style="dim"))


def duels_text(evidence: Mapping[str, Any]) -> str | None:
    """Return what duels say: beside the verdict, never in it."""
    duels = evidence.get("duels")
    if not duels or duels["contrast"] is None:
        return None
    span = f"{duels['low']:+.1%} to {duels['high']:+.1%}"
    return f"{duels['num']:,}: {duels['contrast']:+.1%} for the canary ({span})"


def check_lines(found: Facts) -> Iterator[Text]:
    """Yield whether the experiment is sound, and what is guarded."""
    evidence, line = found["evidence"], -math.log(found["alpha_check"])
    yield row(
        "checks",
        mark("shares of users", evidence["sample_ratio_log_e"] < line),
        Text(" · "),
        mark("votes alike", evidence["propensity_log_e"] < line),
        Text(" · "),
        mark("routers follow", found["in_force"]),
    )
    if past := past_text(evidence):
        yield row("unkeyed", Text(past))
    guards = evidence.get("guards", {})
    marks = [mark(name.partition(" by ")[0], log_e < -math.log(found["alpha_guard"])) for name, log_e in guards.items()]
    if marks:
        yield row("guards", *(Text.assemble(" · " * (number > 0), text) for number, text in enumerate(marks)))


def mark(what: str, fine: bool) -> Text:
    """Return a check in words; colour only says what the words say."""
    if fine:
        return Text.assemble(f"{what.partition(' rose')[0].partition(' fell')[0]} ", ("ok", "green"))
    return Text.assemble((f"{what}: NO", "bold red"))


def step_line(step: Facts) -> Text:
    """Return one transition."""
    place = f"{step['from_phase']} → {step['to_phase']} at {step['weight']:.0%}"
    return Text.assemble(
        "  ", (f"{step['created_at']:%d %b %H:%M:%S}  ", "dim"), place, (f" · {step['reason']}", "dim")
    )
