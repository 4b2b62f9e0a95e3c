"""Imported files as datasets: read, filtered and split like people's own feedback, and kept under the import's name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from hone.canonical import sha256_file
from hone.datasets import FreezePolicy, Frozen, freeze
from hone.errors import Conflict, InvalidEvent, NotEnoughData
from hone.imports import Imported, Options, read_file
from hone.store.datasets import FEEDBACK, split_history, store_dataset

SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Import:
    """A file that was read, and the dataset that it makes, not stored yet."""

    read: Imported
    frozen: Frozen
    policy: FreezePolicy


def import_file(
    session: Session, path: Path, label: str, *, options: Options | None = None, policy: FreezePolicy | None = None
) -> str:
    """Store the file's rows as a dataset named `label` and return its id; idempotent. All rows must be good.

    Raises:
        InvalidEvent: rows cannot be read; names file and lines.
        NotEnoughData: nothing is left for training.
        Conflict: the label is taken by people's own feedback.
    """
    found = prepare_import(session, path, label, options=options, policy=policy)
    refuse_problems(path, found.read)
    return store_dataset(session, found.frozen, found.policy)


def prepare_import(
    session: Session, path: Path, label: str, *, options: Options | None = None, policy: FreezePolicy | None = None
) -> Import:
    """Return what the file would become. Prompts near one that feedback holds out for dev or test go there too.

    Raises:
        NotEnoughData: the file holds no good row. Conflict: the label is taken.
    """
    if label == FEEDBACK:
        raise Conflict(f"label {label!r} is taken by the pairs that people gave: choose another name")
    policy, options = policy or FreezePolicy(), options or Options()
    read = read_file(path, label, options)
    if read.kind is None:
        refuse_problems(path, read)
        raise NotEnoughData(f"{path} holds no row")
    frozen = freeze(
        read.candidates,
        policy,
        kind=read.kind,
        source=label,
        history=split_history(session),
        extra={"file_sha256": sha256_file(path), **facts_of(read, options)},
    )
    return Import(read, frozen, policy)


def facts_of(read: Imported, options: Options) -> dict[str, Any]:
    """Return what the manifest keeps of how the file was read."""
    return {"format": read.format, "default_license": options.license, "num_bad_rows": len(read.problems)}


def refuse_problems(path: Path, read: Imported) -> None:
    """Raise InvalidEvent where rows are bad, with the first of them by line."""
    if not read.problems:
        return
    shown = "; ".join(map(str, read.problems[:SHOWN_PROBLEMS]))
    more = len(read.problems) - SHOWN_PROBLEMS
    text = f"{path} {shown}" + (f"; and {more} more" if more > 0 else "")
    raise InvalidEvent("bad_row", f"{text}: correct them, or leave them out with --skip-bad")
