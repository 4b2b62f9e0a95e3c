"""The demo's report: a short table on the terminal, `report.json`, a chart, and one HTML page that shows it all."""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.demo.findings import GATHERING, TOTAL
from examples.demo.seldon import SERVERS

GOOD, BAD, GREY = "#1b7f5c", "#b3402a", "#8a8f98"
DECIDES = 20
"""The e-value at which the demo's rollouts end: one over the α of its policy."""


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.png` and `report.html` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
    draw(report, folder / "report.png")
    (folder / "report.html").write_text(page(report, (folder / "report.png").read_bytes()))


def before_after(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of the table: measure, before, after."""
    rows = [
        ("hidden reward", report["hidden_reward"], "{:.2f}"),
        ("correct answers", report["correct"], "{:.0%}"),
        ("thumbs up", report["thumbs_up"], "{:.0%}"),
    ]
    return [(name, interval(pair["before"], form), interval(pair["after"], form)) for name, pair, form in rows]


def interval(value: dict[str, float], form: str) -> str:
    """Return an estimate and its 95 % interval."""
    return f"{form.format(value['estimate'])}  ({form.format(value['low'])} to {form.format(value['high'])})"


def print_report(report: dict[str, Any], console: Console, folder: Path) -> None:
    """Print what a person wants to know first."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left")
    for title in ("", "before", "after"):
        table.add_column(title)
    for row in before_after(report):
        table.add_row(*row)
    console.print()
    console.print(table)
    wins = f"{report['win_rate']:.0%}  ({report['win_rate_low']:.0%} to {report['win_rate_high']:.0%})"
    console.print(
        f"\nThe promoted model wins {wins} of comparisons by a taste that the platform never saw.", highlight=False
    )
    console.print(f"Feedback to serving: {steps(report)}.", highlight=False, soft_wrap=True)
    console.print(facts(report), highlight=False, soft_wrap=True)
    if report["arms"]:
        console.print(served(report), highlight=False, soft_wrap=True)
    console.print(f"\nReport: {folder}/report.html, report.png, report.json", highlight=False)


def steps(report: dict[str, Any]) -> str:
    """Return the seconds by step in one line."""
    seconds = dict(report["feedback_to_serving_seconds"])
    total, _ = seconds.pop(TOTAL), seconds.pop(GATHERING)
    largest = [f"{name} {value:.0f}" for name, value in seconds.items() if value >= 0.5]
    return f"{total:.0f} s from the last rating to the promotion ({', '.join(largest)})"


def facts(report: dict[str, Any]) -> str:
    """Return the account of events and the cost in two lines."""
    stored = f"{report['events_stored']:,} stored + {report['dead_letters']:,} dead letters"
    events = f"{report['events_sent']:,} events sent = {stored}"
    memory = f"{report['peak_pss_mb'] / 1000:.1f} GB at most"
    cost = f"{report['demo_seconds']:.0f} s, {report['cpu_seconds']:.0f} CPU seconds, {memory}"
    claim = "" if report["broker_is_durable"] else " (in memory: nothing about loss is claimed)"
    return f"{events}; {cost}.\nbroker: {report['broker']}{claim} · airflow: {report['airflow']}"


def served(report: dict[str, Any]) -> str:
    """Return who served the arms, and whether their answers came from their own weights."""
    answers, own = (sum(arm[key] for arm in report["arms"]) for key in ("answers", "spoken_by_its_weights"))
    server = f"{len(report['arms'])} versions behind {SERVERS[report['backend']]}"
    return f"{server}: {own:,} of {answers:,} stored answers spoken by the weights they are credited to (by digest)"


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw quality before and after, both sequential tests, and the time from feedback to serving."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(15, 4.6), layout="constrained", gridspec_kw={"width_ratios": [1, 1.35, 1.1]}
    )
    draw_quality(axes[0], report)
    draw_tests(axes[1], report)
    draw_steps(axes[2], report)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.get_layout_engine().set(wspace=0.05, w_pad=0.1, h_pad=0.1)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_quality(axis: Any, report: dict[str, Any]) -> None:
    """Draw three shares before and after, with their intervals."""
    win = {"estimate": report["win_rate"], "low": report["win_rate_low"], "high": report["win_rate_high"]}
    tie = {"estimate": 0.5, "low": 0.5, "high": 0.5}
    rows = [
        ("correct\nanswers", report["correct"]),
        ("thumbs up", report["thumbs_up"]),
        ("wins against\nbefore", {"before": tie, "after": win}),
    ]
    for offset, when, colour in ((-0.19, "before", GREY), (0.19, "after", GOOD)):
        values = [pair[when] for _, pair in rows]
        heights = [value["estimate"] for value in values]
        errors = [[v["estimate"] - v["low"] for v in values], [v["high"] - v["estimate"] for v in values]]
        places = [number + offset for number in range(len(rows))]
        axis.bar(places, heights, 0.36, yerr=errors, color=colour, label=when, capsize=3, ecolor="#333")
        for place, height in zip(places, heights, strict=True):
            axis.text(place, 0.02, f"{height:.0%}", color="white", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    head(axis, "Quality, with 95 % intervals")


def draw_tests(axis: Any, report: dict[str, Any]) -> None:
    """Draw the evidence of both rollouts against the line at which they decide."""
    for name, column, colour, label in (
        ("promoted", 1, GOOD, "good model: it is better"),
        ("harmful", 2, BAD, "harmful model: it is worse"),
    ):
        points = report["e_process"][name]
        pairs, evidence = [p[0] for p in points], [10 ** p[column] for p in points]
        axis.plot(pairs, evidence, color=colour, label=label)
        axis.plot(pairs[-1:], evidence[-1:], "o", color=colour, markersize=5)
    axis.axhline(DECIDES, color="#333", linewidth=0.8, linestyle="--")
    axis.annotate(
        f"decides at {DECIDES}\n(α = {1 / DECIDES:g})",
        (1, DECIDES),
        (5, 0),
        xycoords=axis.get_yaxis_transform(),
        textcoords="offset points",
        fontsize=8,
        va="center",
    )
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_yticks([0.01, 0.1, 1, 10, 100, 1000])
    axis.set_ylim(min(0.5, low), max(2 * DECIDES, high))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("pairs of people, a canary user against a stable one")
    axis.set_ylabel("e-value")
    head(axis, "Evidence of the live rollouts")


def draw_steps(axis: Any, report: dict[str, Any]) -> None:
    """Draw the seconds of each step from feedback to serving."""
    seconds = dict(report["feedback_to_serving_seconds"])
    total = seconds.pop(TOTAL)
    names = list(seconds)[::-1]
    colours = [GREY if name == GATHERING else GOOD for name in names]
    labels = ["gathering, before it" if name == GATHERING else name for name in names]
    bars = axis.barh(labels, [seconds[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.1f s", padding=3, fontsize=9)
    axis.margins(x=0.15)
    axis.set_xticks([])
    axis.tick_params(axis="y", length=0)
    axis.spines["bottom"].set_visible(False)
    head(axis, f"{total:.0f} s from feedback to serving")


def head(axis: Any, title: str) -> None:
    """Set the title, and below it, clear of everything that is drawn, what the colours mean."""
    axis.set_title(title, loc="left", pad=26)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(
            frameon=False,
            fontsize=9,
            ncols=2,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            borderpad=0.2,
        )


def page(report: dict[str, Any], chart: bytes) -> str:
    """Return the HTML page, with everything inside it."""
    quality = rows_of(("", "before", "after"), before_after(report))
    verdicts = rows_of(
        ("challenger", "judge", "verdict", "reason"),
        [(v["challenger"], v["gate"].replace("_", " "), v["verdict"], v["reason"]) for v in report["verdicts"]],
    )
    stages = rows_of(
        ("stage", "planned s", "actual s"),
        [(s["stage"], f"{s['planned_s']:.0f}", f"{s['actual_s']:.1f}") for s in report["stages"]],
    )
    image = base64.b64encode(chart).decode()
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>hone: one turn of the loop</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2.5rem auto;max-width:70rem;padding:0 1rem;color:#1d2127}"
        "table{border-collapse:collapse;margin:.6rem 0 1.6rem}td,th{text-align:left;padding:.28rem 1.2rem .28rem 0;"
        "border-bottom:1px solid #e4e6ea;vertical-align:top}td:not(:last-child){white-space:nowrap}"
        "img{width:100%}h2{margin-top:2rem;font-size:1.1rem}</style>"
        "<h1>One turn of the loop</h1>"
        f"<p>{html.escape(facts(report))}</p>"
        f"<img alt='quality, evidence and seconds' src='data:image/png;base64,{image}'>"
        f"<h2>Quality</h2>{quality}<h2>Verdicts</h2>{verdicts}<h2>Stages</h2>{stages}</html>"
    )


def rows_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"
