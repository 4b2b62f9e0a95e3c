"""The command `hone import`: other people's training files as frozen datasets, for a cold start."""

import json
from pathlib import Path
from typing import Any, get_args

import click

from hone.cli.context import actor_option, current_settings, json_option, transaction, utc_now
from hone.cli.output import facts, show_json, working
from hone.datasets import SPLITS, FreezePolicy
from hone.imports import Format, Options
from hone.settings import Settings
from hone.store.audit import append_audit
from hone.store.datasets import store_dataset
from hone.store.imports import SHOWN_PROBLEMS, Import, prepare_import, refuse_problems

METHODS = {"demonstrations": "sft", "pairs": "dpo", "labels": "kto", "prompts": "rloo"}
"""Kind of rows -> the method that reads them first."""
NUM_SAMPLES = 3
SAMPLE_CHARACTERS = 300
SHOWN_KEYS = ("prompt", "completion", "chosen", "rejected", "label")


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--label", required=True, help="Name of the import; it stands in every row's source.")
@click.option("--format", "form", type=click.Choice(get_args(Format)), help="Default: found out from each row's keys.")
@click.option("--license", help="Licence of rows that name none; left out, they are your own.")
@click.option("--skip-bad", is_flag=True, help="Import the good rows, although others cannot be read.")
@click.option("--dry-run", is_flag=True, help="Show counts and a sample, store nothing.")
@actor_option
@json_option
def import_file(
    file: Path,
    label: str,
    form: Format | None,
    license: str | None,
    skip_bad: bool,
    dry_run: bool,
    actor: str,
    as_json: bool,
) -> None:
    """Freeze a file as a dataset: Alpaca, ChatML, ShareGPT, CSV, TRL.

    Its rows are demonstrations, pairs, labels or prompts. What is not permissive, or near a prompt that feedback holds
    out, is left out. Bad rows are named by their line, and nothing is stored unless --skip-bad says so. The same file,
    label and options give the same dataset.
    """
    settings = current_settings()
    with working(f"reading {file.name} …"), transaction(settings) as session:
        found = prepare_import(session, file, label, options=Options(form, license), policy=policy_of(settings))
        if not (skip_bad or dry_run):
            refuse_problems(file, found.read)
        told = describe(found, label)
        if not dry_run:
            dataset_id = store_dataset(session, found.frozen, found.policy)
            append_audit(session, actor, "dataset.import", f"dataset:{dataset_id}", str(file), told, utc_now())
    show(found, told | {"stored": not dry_run}, as_json, dry_run)
    if dry_run and not skip_bad:
        refuse_problems(file, found.read)


def policy_of(settings: Settings) -> FreezePolicy:
    """Return the shares of the splits; imported rows have no people to cap."""
    return FreezePolicy(dev_share=settings.trigger.dev_share, test_share=settings.trigger.test_share)


def describe(found: Import, label: str) -> dict[str, Any]:
    """Return what the file is and what becomes of its rows."""
    filters = found.frozen.manifest["filters"]
    return {
        "dataset_id": found.frozen.dataset_id,
        "label": label,
        "format": found.read.format,
        "kind": found.read.kind,
        "rows": len(found.read.candidates),
        "bad_rows": len(found.read.problems),
        **{split: found.frozen.count(split) for split in SPLITS},
        "left_out": {name: n["in"] - n["out"] for name, n in filters.items() if n["in"] > n["out"]},
        "licenses": found.frozen.manifest["licenses"],
    }


def show(found: Import, told: dict[str, Any], as_json: bool, dry_run: bool) -> None:
    """Print counts; bad rows and, of a dry run, samples."""
    problems = [str(problem) for problem in found.read.problems]
    samples = [json.loads(row.body) for row in found.frozen.rows[:NUM_SAMPLES]] if dry_run else []
    if as_json:
        return show_json(told | {"problems": problems, "samples": samples})
    facts(told)
    for text in problems[:SHOWN_PROBLEMS]:
        click.secho(f"  {text}", fg="yellow")
    for sample in samples:
        click.echo()
        facts(
            {key: clip(sample[key]) for key in ("prompt", "completion", "chosen", "rejected", "label") if key in sample}
        )
    if dry_run:
        return click.echo("\nnothing was stored" + ("" if problems else ": leave out --dry-run"))
    click.echo(f"\ntrain on it: hone train {METHODS[str(found.read.kind)]} --dataset {told['dataset_id']}")


def clip(value: Any) -> str:
    """Return a text, or a prompt's messages, short enough to look at."""
    text = " / ".join(f"{m['role']}: {m['content']}" for m in value) if isinstance(value, list) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]}…"
