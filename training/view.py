"""Shows a run to people: what it would do, and what came of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from hone.cli.output import duration, facts
from hone.cli.plan_view import gigabytes

STATUS_TEXTS = {
    "passed": "passed every gate: a rollout may show it to people",
    "rejected": "is rejected by its gates: it gets no traffic",
    "inconclusive": "had too little to be judged by: it gets no traffic",
    "overridden": "did not pass its gates, and was let through by an override",
}
SHOWN_GATES = 3


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print what a run would do, in a dozen lines."""
    spec, labels = plan["spec"], plan["labels"]
    click.secho(f"{spec['method']} from {plan['base_version']} on {spec['dataset']}", bold=True)
    facts(
        {
            "labels": labels_text(labels),
            "rows": rows_text(plan),
            "mixed_in": mixed_text(plan["replay"]),
            "trains": trained_text(spec),
            "steps": steps_text(plan),
            **estimate_facts(plan["estimate"]),
            "judged_by": judging_text(plan["judging"]),
            "writes": plan["directory"],
            **({"starts": " ".join(plan["command"])} if "command" in plan else {}),
        }
    )
    if labels["below_minimum"]:
        click.secho(f"\n! {shortage(labels)}: expect little, and trust the gates", fg="yellow")
    for path, text in plan.get("files", {}).items():
        click.echo(f"\n{path}\n{text.rstrip()}")
    click.echo("\ndry run: nothing was trained")


def labels_text(labels: Mapping[str, Any]) -> str:
    """Return how many labels of each kind there are, from where, beside what is advised."""
    counts = ", ".join(f"{number:,} {kind}" for kind, number in labels["counts"].items() if number) or "none"
    sources = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in labels["sources"].items())
    return f"{counts}{f' ({sources})' if sources else ''}; advised at least {labels['minimum']:,}"


def shortage(labels: Mapping[str, Any]) -> str:
    """Return which minimum the labels miss."""
    if labels["usable"] < labels["minimum"]:
        return f"{labels['usable']:,} usable rows are below the advised minimum of {labels['minimum']:,}"
    return f"fewer than {labels['minimum_of_class']} rows of a class"


def rows_text(plan: Mapping[str, Any]) -> str:
    """Return the rows of each split, and those that the method cannot use."""
    found = ", ".join(f"{number:,} {split}" for split, number in plan["rows"].items())
    dropped = [f"{number:,} {reason.replace('_', ' ')}" for reason, number in plan["dropped"].items() if number]
    return f"{found}; dropped: {', '.join(dropped)}" if dropped else found


def mixed_text(replay: Mapping[str, Any]) -> str:
    """Return how many rows are mixed in against forgetting, or why none."""
    parts = {name: replay.get(name, {}) for name in ("older", "general")}
    numbers = [f"{part['num']:,} {name} rows" for name, part in parts.items() if part.get("num")]
    reasons = [part["why"] for part in parts.values() if part.get("why")]
    return ", ".join(numbers) or f"nothing{': ' if reasons else ''}{'; '.join(reasons)}"


def trained_text(spec: Mapping[str, Any]) -> str:
    """Return what learns."""
    if spec["adapter"] == "full":
        return f"all weights, {spec['precision']}"
    targets = spec["lora"]["targets"]
    where = targets if isinstance(targets, str) else ", ".join(targets)
    return f"{spec['adapter']} of rank {spec['lora']['rank']} on {where}, {spec['precision']}, engine {spec['engine']}"


def steps_text(plan: Mapping[str, Any]) -> str:
    """Return how many steps of which size."""
    spec = plan["spec"]
    what = "answers" if spec["method"] in ("ppo", "rloo", "grpo") else "rows"
    return f"{plan['steps']:,} of {spec['batch_size']} {what}, learning rate {spec['learning_rate']:g}"


def estimate_facts(estimate: Mapping[str, Any] | None) -> dict[str, str]:
    """Return time and memory by the planner's arithmetic."""
    if estimate is None:
        return {"takes": "not known: the planner cannot count this base, or this GPU"}
    return {
        "takes": f"about {duration(estimate['seconds'])} on {estimate['device']}, evaluation not counted",
        "memory": f"at most {gigabytes(estimate['memory_bytes'])} of each device",
    }


def judging_text(judging: Mapping[str, int] | None) -> str:
    """Return who will judge the model, beside how many the gates need."""
    if judging is None:
        return "no gate: a reward model, or rows of a directory, so nothing is registered"
    enough = "" if judging["num_pairs"] >= judging["needed"] else ": too few, it will be held back"
    return f"{judging['num_pairs']:,} held-out pairs of people, gates need {judging['needed']:,}{enough}"


def show_result(found: Mapping[str, Any]) -> None:
    """Print what came of a run, and of its gates."""
    training, best = found["training"], found["training"].get("best_step")
    fired = ", ".join(f"{rule} at step {step}" for rule, step in training["fired"].items())
    click.secho(f"run {found['run_id']} is done", bold=True)
    facts(
        {
            "steps": f"{training['num_steps']:,} on {training['num_rows']:,} rows",
            **dict(changes(training["first_step"], training["last_step"])),
            "stop_rules": fired or "none fired",
            **({"chosen": f"by dev rows: the checkpoint of step {best}"} if best else {}),
            **({"model": found["model_version"]} if found["model_version"] else {}),
            "directory": found["directory"],
        }
    )
    if found["verdict"]:
        show_verdict(found["model_version"], **found["verdict"])
    elif found["model_version"]:
        click.echo(
            "\nIt is not registered, and no gate judged it: its rows are files. `hone import` makes a dataset of them."
        )
    else:
        reward = f'rewards.models={{"{found["directory"]}"=1.0}}'
        click.echo(f"\nNext: a policy that earns its scores: hone train ppo --set '{reward}' --dataset …")


def show_verdict(model_version: str, status: str, gates: Sequence[Mapping[str, str]]) -> None:
    """Print whether the model may meet traffic, the first gates that hold it back, and what can be done."""
    held = [gate for gate in gates if gate["verdict"] != "pass"]
    click.echo()
    click.secho(f"{model_version} {STATUS_TEXTS.get(status, status)}", bold=True, fg="yellow" if held else "green")
    for gate in held[:SHOWN_GATES]:
        click.echo(f"  {gate['gate'].replace('_', ' ')} {gate['verdict']}: {gate['reason']}")
    if len(held) > SHOWN_GATES:
        click.echo(f"  and {len(held) - SHOWN_GATES} more: hone models show {model_version}")
    if status not in ("rejected", "inconclusive"):
        return click.echo(f"Next: hone rollout start {model_version} --reason …")
    return click.echo(
        "Next: collect more feedback, or train with another spec or more data; whoever knows better may let it pass: "
        f"hone models override {model_version} --reason …"
    )


def changes(first: Mapping[str, float], last: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield how the figures that people look at first have changed."""
    for name in ("loss", "accuracy", "margin", "reward", "kl"):
        if name in first and name in last:
            yield name, f"{first[name]:.3f} to {last[name]:.3f}"
