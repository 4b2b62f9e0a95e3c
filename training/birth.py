"""What a model is told apart by: a birth certificate for machines, a model card and curves for people.

Both lie in the run's directory and are a function of job, report, and files: the same run writes the same bytes.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hone import gates
from hone.canonical import sha256_file
from hone.weights import read_base
from training.spec import Job

CERTIFICATE, CARD, CURVES = "birth_certificate.json", "MODEL_CARD.md", "curves.png"
PACKAGES = ("hone", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "safetensors", "numpy")
COLUMNS = 3
PANEL_INCHES = (4.2, 2.6)


def certificate(job: Job, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the model comes from, with hashes of all that went in and came out, and what its gates say."""
    results = gates.judge(report["measured"], job.spec.thresholds) if job.spec.method != "reward_model" else []
    return {
        "schema_version": 1,
        "run_id": job.run_id,
        "model_version": report.get("model_version"),
        "weights_digest": report.get("digest"),
        "base": {"version": job.base_version, "directory": str(job.base_directory)},
        "dataset": {"id": job.spec.dataset, "files": hashes(job.directory / "data", "*.jsonl")},
        "spec": job.spec.model_dump(mode="json"),
        "adapter_on": base.model_version if (base := read_base(job.directory / "model")) else None,
        "training": report["training"],
        "gates": [{"gate": r.gate, "verdict": r.verdict.value, "reason": r.reason} for r in results],
        "files": hashes(job.directory / "model", "**/*"),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
    }


def hashes(directory: Path, pattern: str) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name in the directory."""
    files = sorted(path for path in directory.glob(pattern) if path.is_file())
    return {str(path.relative_to(directory)): sha256_file(path) for path in files}


def version_of(package: str) -> str | None:
    """Return the installed version; None: it is not installed as a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def card(facts: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown, of a certificate."""
    spec, training = facts["spec"], facts["training"]
    trained = "all weights" if spec["adapter"] == "full" else f"{spec['adapter']}, rank {spec['lora']['rank']}, "
    trained += "" if spec["adapter"] == "full" else f"on {facts['adapter_on']}" if facts["adapter_on"] else "merged"
    rows = {
        "made by run": facts["run_id"],
        "base": facts["base"]["version"],
        "method": f"{spec['method']} ({spec['engine']})",
        "trained": trained,
        "dataset": facts["dataset"]["id"] or "rows of the run's directory",
        "rows": f"{training['num_rows']:,} ({sum(training['dropped'].values())} dropped)",
        "off-policy": off_policy(training.get("off_policy", {})),
        "mixed in": replayed(training.get("replay", {})),
        "steps": f"{training['num_steps']:,} of {spec['batch_size']} at learning rate {spec['learning_rate']:g}",
        "weights": facts["weights_digest"] or "see the files' hashes",
    }
    lines = [f"# {facts['model_version'] or facts['run_id']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## Gates", "", *gate_lines(facts["gates"])]
    fired = ", ".join(f"{rule} at step {step}" for rule, step in training["fired"].items())
    lines += ["", "## Training", "", f"![curves]({CURVES})", "", f"Stop rules that fired: {fired or 'none'}.", ""]
    if training.get("best_step"):
        lines += [f"Held-out rows chose the checkpoint of step {training['best_step']}.", ""]
    lines += ["## Limits", ""]
    lines += ["Trained on people's feedback of one application; judged on its held-out prompts and nothing else."]
    lines += [f"Hashes of data, spec and weights: `{CERTIFICATE}`.", ""]
    return "\n".join(lines)


def off_policy(counts: Mapping[str, int]) -> str:
    """Return how many rows have answers that the base would not have given."""
    names = {"other_base": "answered by another base", "old_generation": "answered many generations ago"}
    return ", ".join(f"{number:,} rows {names[reason]}" for reason, number in counts.items()) or "no row"


def replayed(replay: Mapping[str, Any]) -> str:
    """Return how many rows of which kind were mixed in, and where none was, why."""
    told = []
    for name, what in (("older", "older rows"), ("general", "general instructions")):
        facts = replay.get(name, {"num": 0, "why": "not asked for"})
        told.append(f"{facts['num']:,} {what}" + (f" ({facts['why']})" if facts.get("why") else ""))
    return ", ".join(told)


def gate_lines(results: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the gates' table, or that there are none."""
    if not results:
        return ["A reward model meets no gate: it serves no traffic."]
    lines = ["| gate | verdict | reason |", "|---|---|---|"]
    return lines + [f"| {r['gate']} | {r['verdict']} | {r['reason'].replace('|', '/')} |" for r in results]


def write_birth(job: Job, report: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> None:
    """Leave certificate, card and curves in the run's directory."""
    facts = certificate(job, report)
    (job.directory / CERTIFICATE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (job.directory / CARD).write_text(card(facts), encoding="utf-8")
    draw_curves(history, job.directory / CURVES)


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a picture with one panel for each figure of the steps; nothing for a run without steps."""
    every = dict.fromkeys(name for step in history for name in step)
    names = [name for name in every if len({step[name] for step in history if name in step}) > 1]
    if not names:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, 1):
        panel = figure.add_subplot(rows, columns, place)
        points = [(step, figures[name]) for step, figures in enumerate(history, 1) if name in figures]
        panel.plot(*zip(*points, strict=True), linewidth=1.2, color="#2b6cb0")
        panel.set_title(name.replace("_", " "), fontsize=10, loc="left")
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if place > len(names) - columns:
            panel.set_xlabel("step", fontsize=8)
    figure.savefig(path, dpi=110)
