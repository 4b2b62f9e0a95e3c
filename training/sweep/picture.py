"""The picture of a sweep: the objective by each factor, the best trial marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.sweep.ablation import FactorEffect, LevelEffect, Trial, number_of, text
from training.sweep.objective import Objective
from training.sweep.table import Factor, Sweep

COLUMNS = 3
PANEL_INCHES = (4.2, 3.4)
DOTS, MEANS, BEST_COLOUR, INK = "#94a3b8", "#1d4ed8", "#ea580c", "#1e293b"
SPREAD = 0.16
"""Width over which the dots of one level are laid side by side, in places of the axis."""


def draw(
    path: Path, sweep: Sweep, objective: Objective, done: Sequence[Trial], best: Trial, factors: Sequence[FactorEffect]
) -> None:
    """Write one panel for each factor, the most important first; all have one scale of the objective."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(factors) == 4 else min(COLUMNS, len(factors))
    rows = -(-len(factors) // columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, factor in zip(panels, factors, strict=False):
        draw_factor(panel, sweep.space[factor.name], factor, done, best)
    for panel in panels[len(factors) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel(objective.name.replace("_", " "), fontsize=9, color=INK)
    way = "higher is better" if objective.direction == "maximize" else "lower is better"
    title = f"{sweep.method}: {objective.name.replace('_', ' ')} by factor ({len(done)} trials, {way})"
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def draw_factor(panel: Any, space: Factor, factor: FactorEffect, done: Sequence[Trial], best: Trial) -> None:
    """Draw the trials, the means of the levels with their intervals, and the best trial."""
    is_range = not space.values
    places = places_of(factor.levels, is_range=is_range)
    where = {trial.number: place_of(trial, factor, places, done, is_range=is_range) for trial in done}
    panel.scatter(where.values(), [t.value for t in done], s=16, color=DOTS, zorder=2, linewidths=0, label="a trial")
    means, halves = [level.mean for level in factor.levels], [level.half_width for level in factor.levels]
    bars = [half or 0.0 for half in halves] if any(halves) else None
    style = {"color": MEANS, "marker": "o", "markersize": 6, "capsize": 4, "linewidth": 1.4, "zorder": 3}
    label = "mean, others held (95 %)" if bars else "mean, others held"
    panel.errorbar(places.values(), means, yerr=bars, linestyle="-" if is_ordered(factor) else "", label=label, **style)
    panel.scatter(
        [where[best.number]], [best.value], s=150, marker="*", color=BEST_COLOUR, zorder=4, linewidths=0, label="best"
    )
    share = "" if factor.importance is None else f"  ·  {factor.importance:.0%} of the variance"
    panel.set_title(f"{factor.name}{share}", fontsize=10, loc="left", color=INK)
    if is_range and space.log:
        panel.set_xscale("log")
    if not is_range:
        panel.set_xticks(list(places.values()), [short(level.level) for level in factor.levels])
        panel.set_xlim(-0.5, len(places) - 0.5)
    panel.tick_params(labelsize=8, colors=INK)
    panel.grid(axis="y", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def places_of(levels: Sequence[LevelEffect], *, is_range: bool) -> dict[str, float]:
    """Return where each level's mean stands: one after the other, or in the middle of its part of the range."""
    return {level.level: float(level.centre if is_range and level.centre else k) for k, level in enumerate(levels)}


def place_of(
    trial: Trial, factor: FactorEffect, places: dict[str, float], done: Sequence[Trial], *, is_range: bool
) -> float:
    """Return where a trial's dot stands: in a range at its level, else beside the others of its level."""
    level = trial.params[factor.name]
    if is_range:
        return number_of(level) or 0.0
    beside = [other.number for other in done if text(other.params[factor.name]) == text(level)]
    step = SPREAD / max(1, len(beside) - 1)
    return places[text(level)] + (beside.index(trial.number) * step - SPREAD / 2 if len(beside) > 1 else 0.0)


def is_ordered(factor: FactorEffect) -> bool:
    """Say whether the levels are numbers, so that a line between them means something."""
    return all(level.centre is not None for level in factor.levels)


def short(name: str) -> str:
    """Return a level's name as it fits below an axis."""
    return name if len(name) <= 18 else f"{name[:17]}…"
