"""A run in the foreground: `python -m training run SPEC.toml`, or `hone train`. Its row is kept like a retraining's."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from hone.cli.context import transaction as explained_transaction
from hone.datasets import SPLITS, tally
from hone.errors import HoneError
from hone.plan.decide import minimum_of
from hone.plan.tables import load_tables
from hone.settings import Settings
from hone.store.evaluations import list_evaluations
from hone.store.models import get_model
from hone.store.runs import fail_run, finish_run, start_run
from training.jobs import is_judged, is_stored, make_job, needs_database
from training.launch.start import launch, plan_start
from training.pairs import Row, read_rows
from training.retrain import judge, read_report, transaction, utc_now
from training.spec import Job, RunSpec


def run_spec(settings: Settings, spec: RunSpec) -> dict[str, Any]:
    """Train and evaluate here, and return what became of it.

    A run on a frozen dataset gets its row in Postgres, and a policy is judged and registered; a run on a directory of
    rows leaves only its own directory.

    Raises:
        HoneError: spec, base or data do not allow the run, or it went wrong.
    """
    with optional_transaction(settings, spec) as session:
        job = make_job(session, settings, spec)
        is_kept = is_stored(spec)
        if session is not None and is_kept:
            begin(session, job)
    try:
        train_where_told(job)
    except HoneError as error:
        if is_kept:
            with transaction(settings) as session:
                fail_run(session, job.run_id, str(error), utc_now())
        raise
    report = read_report(job.directory)
    if is_kept:
        with transaction(settings) as session:
            finish_run(session, job.run_id, report["training"], utc_now())
    return {
        "run_id": job.run_id,
        "model_version": report.get("model_version"),
        "directory": str(job.directory),
        "training": report["training"],
        "verdict": verdict_of(settings, judge(settings, job.run_id)) if is_judged(spec) else None,
    }


def verdict_of(settings: Settings, model_version: str) -> dict[str, Any]:
    """Return the status of a version, and what each gate said of it."""
    with transaction(settings) as session:
        gates = list_evaluations(session, model_version)
        return {
            "status": get_model(session, model_version).status,
            "gates": [{"gate": g.gate, "verdict": g.verdict.value, "reason": g.reason} for g in gates],
        }


def train_where_told(job: Job) -> None:
    """Train in this process, or in those that the spec's launcher starts. Raises HoneError."""
    from training.run import run_job

    if job.spec.launcher == "local" and job.spec.launch.world == 1:
        return run_job(job)
    import torch

    launch(job, has_gpu=torch.cuda.is_available())


def describe(settings: Settings, spec: RunSpec) -> dict[str, Any]:
    """Return what would be trained, from what, on how many rows, without training; the run's directory is written.

    Raises:
        HoneError: the run could not start.
    """
    from training.preflight import inspect

    with optional_transaction(settings, spec) as session:
        job = make_job(session, settings, spec)
    rows = {split: read_rows(job.directory / "data" / f"{split}.jsonl") for split in SPLITS}
    found = inspect(job)
    return {
        "run_id": job.run_id,
        "directory": str(job.directory),
        "base_version": job.base_version,
        "base_directory": str(job.base_directory),
        "rows": {split: len(members) for split, members in rows.items()},
        "labels": labels_of_run(spec, rows["train"], found["num_usable"]),
        "replay": job.replay,
        "judging": judging(job),
        **starts(job),
        **found,
        "spec": json.loads(spec.model_dump_json()),
    }


def labels_of_run(spec: RunSpec, rows: Sequence[Row], usable: int) -> dict[str, Any]:
    """Return the rows by kind and source beside what the planner's tables advise; KTO needs some of either class."""
    minimum = load_tables().minimum
    advised = minimum_of(spec.method, spec.adapter, minimum)
    counts = Counter(kind_of(row) for row in rows)
    rarer = min(counts["thumbs up"] + counts["pairs"], counts["thumbs down"] + counts["pairs"])
    return {
        "counts": {kind: number for kind, number in counts.items() if number},
        "sources": tally(row["source"] for row in rows if row.get("source")),
        "usable": usable,
        "minimum": advised,
        "minimum_of_class": minimum.kto_class,
        "below_minimum": usable < advised or (spec.method == "kto" and rarer < minimum.kto_class),
    }


def judging(job: Job) -> dict[str, int] | None:
    """Return how many held-out pairs of people will judge the model, and how many the gates need; None: no gate will.

    Raises:
        ConfigError: the operator's checks, which it is asked beside them, cannot be read.
    """
    from training.evaluate import read_exam

    if not is_judged(job.spec):
        return None
    return {"num_pairs": len(read_exam(job).held_out), "needed": job.spec.thresholds.min_test_pairs}


def kind_of(row: Row) -> str:
    """Return what a row is, in words."""
    if "chosen" in row:
        return "pairs"
    if "label" in row:
        return "thumbs up" if row["label"] else "thumbs down"
    return "demonstrations" if "completion" in row else "prompts"


def starts(job: Job) -> dict[str, Any]:
    """Return the command that would be started and the files that it would be given, for every launcher but `local`."""
    if job.spec.launcher == "local":
        return {}
    start = plan_start(job, has_gpu=job.spec.precision == "bf16")
    return {"command": start.command, "files": {str(path): text for path, text in start.files.items()}}


def begin(session: Session, job: Job) -> None:
    """Make the row of the run."""
    assert job.spec.dataset is not None
    start_run(
        session,
        run_id=job.run_id,
        request_id=None,
        dataset_id=job.spec.dataset,
        method=job.spec.method,
        base_version=job.base_version,
        spec=job.spec.model_dump(mode="json"),
        directory=job.directory,
        now=utc_now(),
    )


@contextmanager
def optional_transaction(settings: Settings, spec: RunSpec) -> Iterator[Session | None]:
    """Open a session where the spec names something that only the database knows.

    Raises:
        HoneError: the database does not answer, or lacks this version's tables.
    """
    if not needs_database(spec):
        yield None
        return
    with explained_transaction(settings) as session:
        yield session
