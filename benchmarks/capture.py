"""How fast a broken feedback button is noticed, and how often one that works is called broken.

Simulated apps: day and night, quiet weekends, a level that wanders from day to day, people who vote in bursts. Each is
watched at every hour of many weeks, with four weeks of past, as the monitor does.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.result import Target, report, say
from hone.capture import NUM_HOURS, PAST_H, WATCHED_H, WEEK_H, Numbers, judge, threshold_log

SEED = 20261124
NUM_KINDS = 4
"""A false alarm may come from any of them: the threshold is that of an app with so many."""


@dataclass(frozen=True)
class App:
    """A simulated app."""

    name: str
    answers_per_day: float
    rate: float
    burst: float
    "Mean events of one person who votes at all, in an hour; 1 is Poisson."
    wander: float
    "Standard deviation of a day's level, in log."


APPS = (
    App("busy", 20_000, 0.05, 2.0, 0.10),
    App("middling", 2_000, 0.08, 2.0, 0.15),
    App("small", 200, 0.15, 1.5, 0.20),
    App("bursty", 2_000, 0.08, 5.0, 0.25),
)


def traffic(app: App, num_hours: int, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Return answers and events of each hour."""
    hours = np.arange(num_hours)
    day = 1 + 0.9 * np.sin(2 * np.pi * (hours % 24 - 8) / 24)
    week = np.where(hours % WEEK_H >= 120, 0.5, 1.0)
    mean = app.answers_per_day / 24 * day * week
    answers = rng.poisson(mean).astype(float)
    level = np.exp(rng.normal(-(app.wander**2) / 2, app.wander, num_hours // 24 + 1))[hours // 24]
    rate = app.rate * level * np.where(hours % 24 >= 20, 1.3, 1.0)
    people = rng.poisson(answers * rate / app.burst)
    votes = rng.poisson(people * (app.burst - 1)) + people
    return answers, np.minimum(votes, answers).astype(float)


def first_alarm(answers: Numbers, events: Numbers, hours: range) -> int | None:
    """Return the first hour at whose end the kind is called broken."""
    threshold = threshold_log(NUM_KINDS)
    for end in hours:
        window = slice(end - NUM_HOURS, end)
        if judge("thumbs", answers[window], events[window], 1.0).log_e >= threshold:
            return end
    return None


def false_alarms(app: App, num_weeks: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return how many alarms a button gave that works, and in how many hours; an alarm ends two days later."""
    answers, events = traffic(app, NUM_HOURS + num_weeks * WEEK_H, rng)
    found, at = 0, NUM_HOURS
    while (alarm := first_alarm(answers, events, range(at, len(answers) + 1))) is not None:
        found, at = found + 1, alarm + WATCHED_H
    return found, num_weeks * WEEK_H


def delays(app: App, left: float, num_breaks: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return, for breaks at random hours, hours and missing events until the alarm; infinite where none came."""
    found = []
    for _ in range(num_breaks):
        answers, events = traffic(app, NUM_HOURS + WEEK_H, rng)
        at = PAST_H + int(rng.integers(WATCHED_H, WEEK_H))
        usual = events.copy()
        events[at:] = rng.binomial(events[at:].astype(int), left)
        alarm = first_alarm(answers, events, range(max(at + 1, NUM_HOURS), len(answers) + 1))
        missed = float((usual[at : alarm or None] - events[at : alarm or None]).sum())
        found.append((float(alarm - at), missed) if alarm is not None else (np.inf, np.inf))
    return found


def measure(app: App, num_weeks: int, num_breaks: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the figures of one app."""
    alarms, hours = false_alarms(app, num_weeks, rng)
    figures: dict[str, Any] = {"false_alarms": alarms, "watched_hours": hours}
    for name, left in (("dead", 0.0), ("left_10_percent", 0.1), ("left_30_percent", 0.3)):
        found = np.array(delays(app, left, num_breaks, rng))
        hours_until, missed = np.quantile(found, [0.5, 0.9], axis=0, method="higher").T
        figures[name] = {
            "hours_median_p90": [none_if_infinite(value) for value in hours_until],
            "missed_events_median_p90": [none_if_infinite(value) for value in missed],
            "noticed_within_a_week": float(np.isfinite(found[:, 0]).mean()),
        }
    say(f"{app.name}: {figures}")
    return figures


def none_if_infinite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for symmetry: the last line is always JSON")
    parser.add_argument("--full", action="store_true", help="ten times as long")
    scale = 10 if parser.parse_args().full else 1
    rng = np.random.default_rng(SEED)
    figures = {app.name: measure(app, 120 * scale, 40 * scale, rng) for app in APPS}
    alarms = sum(found["false_alarms"] for found in figures.values())
    years = sum(found["watched_hours"] for found in figures.values()) / (24 * 365)
    dead = [found["dead"]["noticed_within_a_week"] for found in figures.values()]
    targets = {
        "false_alarms_per_year_and_kind": Target(alarms / years, "<=", 1.0),
        "dead_button_noticed_within_a_week": Target(min(dead), ">=", 0.99),
        "dead_button_hours_p90_of_the_middling_app": Target(
            figures["middling"]["dead"]["hours_median_p90"][1] or np.inf, "<=", 24
        ),
    }
    return report({"apps": figures, "alarm_at_log_e": threshold_log(NUM_KINDS)}, targets, [SEED])


if __name__ == "__main__":
    sys.exit(main())
