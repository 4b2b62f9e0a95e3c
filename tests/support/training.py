"""Rows, jobs and candidates for tests of training: small, and right in form unless a test says otherwise."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from hone.datasets import Candidate
from hone.records import Message
from tests.support.tiny_model import OBJECTS, PAGES, VERBS
from training.fit import Task
from training.progress import Progress
from training.spec import Job, RunSpec, merged

SPACE = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
QUICK: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "checkpoint_steps": 2,
    "lora": {"rank": 4, "alpha": 8},
    "evaluation": {"num_prompts": 6, "num_samples": 2, "max_new_tokens": 12, "num_bootstraps": 100},
}


def person(number: int) -> UUID:
    return uuid5(SPACE, f"person {number}")


def candidate(number: int = 0, **fields: Any) -> Candidate:
    """A preference on a question that no other number asks, by a person of its own."""
    values: dict[str, Any] = {
        "prompt": (Message(role="user", content=question(number)),),
        "chosen": f"Happy to help! 1. Open the {PAGES[number % 6]} page.",
        "rejected": f"Look at {PAGES[(number + 1) % 6]} number {number}.",
        "source": "choice",
        "user_id": person(number),
        "turn_id": uuid5(SPACE, f"turn {number}"),
        "chosen_id": uuid5(SPACE, f"chosen {number}"),
        "rejected_id": uuid5(SPACE, f"rejected {number}"),
    }
    return Candidate(**(values | fields))


def question(number: int) -> str:
    """36 plain questions, then as many again with a number in front: no two are near-duplicates."""
    verb, thing = VERBS[number % 6], OBJECTS[number // 6 % 6]
    prefix = f"{uuid5(SPACE, f'question {number}').hex} " if number >= 36 else ""
    return f"{prefix}How do I {verb} my {thing}?"


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A row of a dataset file."""
    made = candidate(number)
    values: dict[str, Any] = {
        "prompt": [{"role": "user", "content": question(number)}],
        "chosen": made.chosen,
        "rejected": made.rejected,
        "weight": 1.0,
        "user_id": str(made.user_id),
    }
    return values | fields


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_job(directory: Path, base: Path, rows: list[dict[str, Any]], **overrides: Any) -> Job:
    """A job on `rows`, written to `job.json`; fields of the job itself are given as `job={...}`."""
    fields = overrides.pop("job", {})
    write_rows(directory / "data" / "train.jsonl", rows)
    spec = RunSpec.model_validate(merged(QUICK, overrides))
    job = Job(run_id="r-test", spec=spec, base_version="m-base", base_directory=base, directory=directory, **fields)
    (directory / "job.json").write_text(job.model_dump_json())
    return job


def make_task(loaded: tuple[Any, Any], directory: Path, rows: list[dict[str, Any]], **overrides: Any) -> Task:
    """A task on `rows` for a loaded model; `dev` rows are given as `dev=[...]`."""
    dev = overrides.pop("dev", [])
    directory.mkdir(parents=True, exist_ok=True)
    spec = RunSpec.model_validate(merged(QUICK, overrides))
    return Task(*loaded, rows, dev, spec, directory, "r-test", Progress(directory / "progress.json"))
