"""A sweep's results as files: `trials.json`, `ablation.md`, `ablation.png` and `best.toml`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.spec import RunSpec, merged
from training.sweep.ablation import CONFIDENCE, FactorEffect, LevelEffect, Trial, effects, text
from training.sweep.objective import Objective
from training.sweep.picture import draw
from training.sweep.table import Sweep
from training.sweep.toml_text import toml_text

TABLE, PAGE, PICTURE, BEST = "ablation.json", "ablation.md", "ablation.png", "best.toml"


def write_report(
    folder: Path,
    sweep: Sweep,
    objective: Objective,
    trials: Sequence[Trial],
    best: Trial,
    importance: Mapping[str, float],
    spec: RunSpec,
) -> dict[str, Any]:
    """Leave table, page, picture and the best spec in the sweep's folder, and return the table."""
    done = [trial for trial in trials if trial.value is not None]
    factors = effects(done, {name: not factor.values for name, factor in sweep.space.items()}, importance)
    found = {
        "folder": str(folder),
        "method": sweep.method,
        "objective": {"name": objective.name, "path": objective.path, "direction": objective.direction},
        "best": {"trial": best.number, "value": best.value, "params": best.params, "spec": str(folder / BEST)},
        "trials": [asdict(trial) for trial in trials],
        "factors": [asdict(factor) for factor in factors],
        "confidence": CONFIDENCE,
    }
    (folder / TABLE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(sweep, objective, trials, best, factors), encoding="utf-8")
    head = f"# The best of {len(trials)} trials, number {best.number}: {objective.name} {best.value:.6g}\n"
    # What was varied is written also where the best level is the default.
    values = {"method": spec.method, **spec.model_dump(mode="json", exclude_defaults=True)}
    text_of_best = toml_text(merged(values, sweep.values_of(best.params)))
    (folder / BEST).write_text(head + text_of_best, encoding="utf-8")
    draw(folder / PICTURE, sweep, objective, done, best, factors)
    return found


def page(
    sweep: Sweep, objective: Objective, trials: Sequence[Trial], best: Trial, factors: Sequence[FactorEffect]
) -> str:
    """Return the ablation in Markdown."""
    way = "more is better" if objective.direction == "maximize" else "less is better"
    lines = [f"# Sweep of {sweep.method}", "", f"Objective: `{objective.name}`, {objective.meaning}; {way}.", ""]
    lines += [f"Best: trial {best.number}, {best.value:.4g}. `{BEST}` is its spec.", "", f"![by factor]({PICTURE})", ""]
    lines += ["## By factor", "", *factor_lines(factors), "", "## Trials", "", *trial_lines(sweep, trials, best)]
    lines += ["", *notes(sweep, factors), ""]
    return "\n".join(lines)


def factor_lines(factors: Sequence[FactorEffect]) -> Iterator[str]:
    """Yield the table of levels."""
    yield f"| factor | importance | level | trials | mean, others held | {CONFIDENCE:.0%} interval |"
    yield "|---|--:|---|--:|--:|---|"
    for factor in factors:
        share = "-" if factor.importance is None else f"{factor.importance:.0%}"
        for number, level in enumerate(factor.levels):
            names = (f"`{factor.name}`", share) if number == 0 else ("", "")
            cells = (*names, level.level, str(level.num_trials), f"{level.mean:.4g}", interval(level))
            yield f"| {' | '.join(cells)} |"


def interval(level: LevelEffect) -> str:
    """Return a level's interval, or a dash."""
    if level.half_width is None:
        return "-"
    return f"{level.mean - level.half_width:.4g} to {level.mean + level.half_width:.4g}"


def trial_lines(sweep: Sweep, trials: Sequence[Trial], best: Trial) -> Iterator[str]:
    """Yield the table of trials; the best is bold."""
    names = list(sweep.space)
    yield f"| trial | {' | '.join(f'`{name}`' for name in names)} | value | of each run | seconds | run |"
    yield "|--:|" + "--:|" * len(names) + "--:|---|--:|---|"
    for trial in trials:
        value = trial.state if trial.value is None else f"{trial.value:.4g}"
        cells = [str(trial.number), *(text(trial.params[name]) if name in trial.params else "-" for name in names)]
        cells += [f"**{value}**" if trial.number == best.number else value]
        cells += [", ".join(f"{one:.4g}" for one in trial.values) if len(trial.values) > 1 else ""]
        cells += [f"{trial.seconds:.0f}" if trial.seconds is not None else "-"]
        cells += [", ".join(f"`{Path(run).name}`" for run in trial.runs) or (trial.reason or "").replace("|", "/")]
        yield f"| {' | '.join(cells)} |"


def notes(sweep: Sweep, factors: Sequence[FactorEffect]) -> Iterator[str]:
    """Yield how to read the tables."""
    yield (
        "A level's mean is that of a fit with one effect for each level of each factor, averaged over the others' "
        "levels; levels whose intervals overlap are not told apart. The importance is the factor's share of the "
        "objective's variance (fANOVA)."
    )
    if not sweep.is_grid and sweep.sampler != "random":
        yield "The search went where results were good: its trials are no fair sample, read the intervals with care."
    if sweep.repeats == 1:
        yield "Each trial is one run with one seed; `repeats` says how far seeds alone carry."
    if any(level.half_width is None for factor in factors for level in factor.levels):
        yield "There are too few trials for intervals."
