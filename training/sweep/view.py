"""Shows a sweep to people: what it would do, and what came of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from hone.cli.output import columns, duration, facts
from training.sweep.ablation import text
from training.sweep.report import PAGE, PICTURE


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print what a sweep would do."""
    grid = f"the grid of {plan['grid_size']}" if plan["sampler"] == "grid" else plan["sampler"]
    repeats = f", {plan['repeats']} runs each" if plan["repeats"] > 1 else ""
    each, whole = plan["seconds_each"], plan["seconds"]
    click.secho(f"{plan['trials']} trials of {plan['method']}{repeats}, by {grid}", bold=True)
    facts(
        {
            "objective": f"{plan['objective']['name']}, {plan['objective']['direction']}",
            "rows": ", ".join(f"{number:,} {split}" for split, number in plan["rows"].items()),
            "steps": f"about {plan['steps']:,} a run",
            "takes": f"about {duration(each)} a trial, {duration(whole)} in all" if each is not None else None,
            "done": plan["done"],
            "folder": plan["folder"],
        }
    )
    click.echo()
    for line in columns([{"factor": name, "levels": levels(factor)} for name, factor in plan["space"].items()]):
        click.echo(line)


def levels(factor: Mapping[str, Any]) -> str:
    """Return what a factor may be."""
    if "values" in factor:
        return ", ".join(map(str, factor["values"]))
    return f"{factor['low']:g} to {factor['high']:g}{', by factors' if factor.get('log') else ''}"


def show_result(found: Mapping[str, Any]) -> None:
    """Print what came of a sweep: trials, the levels of each factor, the best trial, where everything lies."""
    for rows in (trial_rows(found), level_rows(found)):
        for line in columns(list(rows)):
            click.echo(line)
        click.echo()
    best, folder = found["best"], Path(found["folder"])
    params = ", ".join(f"{name} {text(level)}" for name, level in best["params"].items())
    click.secho(f"best: {params}: {found['objective']['name']} {best['value']:.4g} (trial {best['trial']})", bold=True)
    method = found["method"]
    facts(
        {
            "its spec": best["spec"],
            "train it": f"hone train {method} --spec {best['spec']}",
            "table": folder / PAGE,
            "picture": folder / PICTURE,
        }
    )


def trial_rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one row for each trial."""
    for trial in found["trials"]:
        value, seconds = trial["value"], trial["seconds"]
        yield {
            "trial": trial["number"],
            **{name: text(level) for name, level in trial["params"].items()},
            found["objective"]["name"]: trial["state"] if value is None else f"{value:.4g}",
            "took": "-" if seconds is None else duration(seconds),
        }


def level_rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one row for each level."""
    for factor in found["factors"]:
        for number, level in enumerate(factor["levels"]):
            half = level["half_width"]
            yield {
                "factor": factor["name"] if number == 0 else " ",
                "importance": f"{factor['importance']:.0%}"
                if number == 0 and factor["importance"] is not None
                else " ",
                "level": level["level"],
                "trials": level["num_trials"],
                "mean_others_held": f"{level['mean']:.4g}",
                "95_%": "-" if half is None else f"{level['mean'] - half:.4g} to {level['mean'] + half:.4g}",
            }
