"""Shows a plan to people: the road and why, then each stage with its arithmetic, then what is against it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hone.cli.output import duration
from hone.plan.decide import Plan, Stage
from hone.plan.facts import GB
from hone.plan.memory import Memory

TERMS = {
    "weights": "weights of the base",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimiser": "optimiser (AdamW)",
    "frozen_models": "frozen models",
    "activations": "activations",
    "logits": "logits",
    "cache": "keys and values of samples",
    "runtime": "CUDA context",
}


def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan."""
    question = plan.question
    hardware = question.hardware
    devices = f"{hardware.gpus} × {hardware.name}" if hardware.gpus else "this machine's CPU"
    console.print(
        f"[bold]{' → '.join(stage.method for stage in plan.stages) or 'no training'}[/]  "
        f"{question.model}, {question.shape.num_parameters / 1e9:.3g} B parameters, on {devices}",
        highlight=False,
    )
    console.print(Text(f"because {plan.road.why}" if plan.road else "no rule of [[road]] holds", style="dim"))
    if question.override.stages:
        console.print(Text(f"overridden: {question.override.reason}", style="yellow"))
    for stage in plan.stages:
        console.print()
        console.print(stage_view(plan, stage))
    for text in plan.warnings:
        console.print(Text(f"\n! {text}", style="yellow"))
    for text in plan.refusals:
        console.print(Text(f"\n✗ {text}", style="red"))
    if plan.ok and len(plan.stages) > 1:
        seconds = sum(stage.cost.seconds for stage in plan.stages if stage.cost)
        usd = sum(stage.cost.usd for stage in plan.stages if stage.cost)
        console.print(f"\nin all about {duration(seconds)}, {usd:,.0f} USD", highlight=False)


def stage_view(plan: Plan, stage: Stage) -> Group:
    """Return one stage: its numbers, its memory, its reasons."""
    parts: list[Any] = [Text(stage.method, style="bold"), Padding(facts_table(stage), (0, 0, 0, 2))]
    if stage.fit:
        limit = plan.question.hardware.device.memory_gb
        parts.append(Padding(memory_table(stage.fit.memory, limit), (1, 0, 0, 2)))
    if not all(option.fits for option in stage.options):
        parts.append(Padding(options_table(stage), (1, 0, 0, 2)))
    reasons = Table.grid(padding=(0, 2))
    for what, why in stage.why:
        reasons.add_row(Text(what, style="dim"), Text(why, style="dim"))
    parts.append(Padding(reasons, (1, 0, 0, 2)))
    return Group(*parts)


def facts_table(stage: Stage) -> Table:
    """Return what the stage does, one fact a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in stage_facts(stage):
        table.add_row(Text(name, style="dim"), value)
    return table


def stage_facts(stage: Stage) -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact."""
    labels = f"{stage.num_labels:,}, advised at least {stage.minimum:,}"
    yield "labels", f"{labels}{'  (below minimum)' if stage.below_minimum else ''}"
    targets = stage.targets if isinstance(stage.targets, str) else ", ".join(stage.targets)
    yield "trains", "all weights" if stage.adapter == "full" else f"{stage.adapter}, rank {stage.rank}, {targets}"
    if stage.loss:
        yield "loss", f"{stage.loss}{f', {stage.label_smoothing:.2f} flipped' if stage.label_smoothing else ''}"
    yield "learning rate", f"{stage.learning_rate:g}, {stage.epochs:g} pass{'' if stage.epochs == 1 else 'es'}"
    if stage.fit and stage.cost:
        fit, cost = stage.fit, stage.cost
        parts = f"{fit.labels_per_device} a device × {fit.accumulation} accumulated × {fit.setup.world} devices"
        yield "batch", f"{fit.batch} = {parts}"
        yield "length", f"{fit.setup.tokens} tokens"
        checkpointing = ", gradient checkpointing" if fit.setup.checkpointing else ""
        yield "spread", f"{fit.setup.sharding}, {fit.setup.precision}{checkpointing}"
        yield "takes", f"about {duration(cost.seconds)}, {cost.steps:,} steps, {cost.tokens / 1e6:,.1f} M tokens"
        yield "costs", f"{cost.usd:,.2f} USD at the table's price"


def memory_table(memory: Memory, device_gb: float) -> Table:
    """Return the arithmetic of one device."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in asdict(memory).items():
        if value:
            table.add_row(Text(TERMS[name], style="dim"), gigabytes(value))
    table.add_row(Text("each device, at most"), Text(gigabytes(memory.total), style="bold"), f"of {device_gb:g} GB")
    return table


def options_table(stage: Stage) -> Table:
    """Return every way that was looked at, with the least memory it takes."""
    table = Table.grid(padding=(0, 2))
    for option in stage.options:
        mark = Text("fits", style="green") if option.fits else Text("too large", style="red")
        name = f"{option.adapter}, {option.sharding}"
        table.add_row(Text(name, style="dim"), f"at least {gigabytes(option.least.total)} a device", mark)
    return table


def gigabytes(value: float) -> str:
    """Return bytes in words: GB, or MB where that is more telling."""
    return f"{value / GB:,.1f} GB" if value >= GB / 10 else f"{value / 1e6:,.1f} MB"


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values, ready for JSON."""
    question = plan.question
    return {
        "ok": plan.ok,
        "road": plan.road.id if plan.road else None,
        "why": plan.road.why if plan.road else None,
        "model": question.model,
        "parameters": question.shape.num_parameters,
        "goal": question.goal,
        "labels": question.labels.model_dump(),
        "hardware": question.hardware.model_dump(),
        "override": asdict(question.override),
        "stages": [stage_json(stage) for stage in plan.stages],
        "warnings": list(plan.warnings),
        "refusals": list(plan.refusals),
    }


def stage_json(stage: Stage) -> dict[str, Any]:
    """Return one stage as plain values."""
    found = asdict(stage)
    found["below_minimum"] = stage.below_minimum
    if stage.fit and stage.cost:
        found["fit"]["batch"] = stage.fit.batch
        found["fit"]["memory"]["total"] = stage.fit.memory.total
        found["cost"]["seconds"] = stage.cost.seconds
    return found
