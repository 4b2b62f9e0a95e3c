"""Frozen datasets: made from the stored feedback or an imported file, kept for ever, made again byte for byte."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Select, column, func, select, true
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from hone.canonical import sha256_file
from hone.datasets import SPLITS, Candidate, FreezePolicy, Frozen, FrozenRow, Kind, dataset_id_of, freeze, frozen_row
from hone.errors import Conflict, NotEnoughData
from hone.imports import Options, read_file
from hone.store.candidates import candidates_of, rebuilt_candidates
from hone.store.models import family_of
from hone.store.tables import DatasetItemRow, DatasetRow, ErasureRow

FEEDBACK = "feedback"
MAX_ROWS_PER_INSERT = 2000


def freeze_feedback(
    session: Session, *, kind: Kind = "pairs", watermark: int | None, policy: FreezePolicy, base: str | None = None
) -> str:
    """Store the dataset of what people said up to revision `watermark` (None: all) and return its id; idempotent.

    Args:
        base: the version that will be trained, for which answers are on- or off-policy; None: the stable one.

    Raises:
        NotEnoughData: no row is left for training; names what was left out, and why.
    """
    frozen = freeze(
        candidates_of(session, kind, watermark),
        policy,
        kind=kind,
        watermark=watermark,
        erased=frozenset(session.scalars(select(ErasureRow.user_id))),
        history=split_history(session, source=FEEDBACK),
        family=family_of(session, base),
    )
    return store_dataset(session, frozen, policy)


def store_dataset(session: Session, frozen: Frozen, policy: FreezePolicy) -> str:
    """Insert a dataset and its rows, unless it is there. Raises NotEnoughData without training rows."""
    if not frozen.count("train"):
        raise NotEnoughData(explain_empty(frozen, policy))
    dataset_id = frozen.dataset_id
    values = {
        "dataset_id": dataset_id,
        "kind": frozen.manifest["kind"],
        "source": frozen.manifest["source"],
        "manifest": frozen.manifest,
        **{f"num_{split}": frozen.count(split) for split in SPLITS},
    }
    is_new = session.execute(
        insert(DatasetRow).values(values).on_conflict_do_nothing().returning(DatasetRow.dataset_id)
    ).first()
    if is_new:
        session.flush()
        for start in range(0, len(frozen.rows), MAX_ROWS_PER_INSERT):
            rows = frozen.rows[start : start + MAX_ROWS_PER_INSERT]
            session.execute(insert(DatasetItemRow), list(item_values(dataset_id, start, rows)))
    return dataset_id


def item_values(dataset_id: str, start: int, rows: Sequence[FrozenRow]) -> Iterator[dict[str, Any]]:
    """Yield the columns of each row, at its place in the dataset."""
    for position, row in enumerate(rows, start):
        yield {
            "dataset_id": dataset_id,
            "position": position,
            "row_id": row.row_id,
            "split": row.split,
            "user_id": row.candidate.user_id,
            "event_ids": list(row.candidate.event_ids),
            "body": row.body,
        }


def explain_empty(frozen: Frozen, policy: FreezePolicy) -> str:
    """Return why nothing is left to train on, and what to do."""
    dropped = {name: count["in"] - count["out"] for name, count in frozen.manifest["filters"].items()}
    text = (
        ", ".join(f"{name} {number}" for name, number in dropped.items() if number)
        or f"there are no {frozen.manifest['kind']}"
    )
    if dropped["user_cap"]:
        text += f"; max_user_share = {policy.max_user_share} needs at least {1 / policy.max_user_share:.0f} people"
    return f"no usable row is left ({text}): wait for more feedback, or widen the limits in [trigger]"


def get_dataset(session: Session, dataset_id: str) -> DatasetRow:
    """Return the dataset's row.

    Raises:
        Conflict: it does not exist.
    """
    row = session.get(DatasetRow, dataset_id)
    if row is None:
        raise Conflict(f"dataset {dataset_id} does not exist: freeze or import it first")
    return row


def read_bodies(session: Session, dataset_id: str, split: str) -> list[str]:
    """Return the canonical JSON of the split's rows, in order."""
    statement = select(DatasetItemRow.body).where(
        DatasetItemRow.dataset_id == dataset_id, DatasetItemRow.split == split
    )
    return list(session.scalars(statement.order_by(DatasetItemRow.position)))


def write_dataset(session: Session, dataset_id: str, directory: Path) -> None:
    """Write `train.jsonl`, `dev.jsonl` and `test.jsonl`; equal datasets give equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = read_bodies(session, dataset_id, split)
        (directory / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def split_history(session: Session, source: str | None = None) -> dict[str, str]:
    """Return the split that each prompt had in earlier datasets (of `source`, if given); a held-out one wins."""
    item = func.jsonb_array_elements(DatasetRow.manifest["rows"]).table_valued(column("value", JSONB), name="item")
    statement: Select[Any] = select(item.c.value["prompt_key"].astext, item.c.value["split"].astext).distinct()
    statement = statement.select_from(DatasetRow).join(item, onclause=true())
    if source:
        statement = statement.where(DatasetRow.source == source)
    found: dict[str, str] = {}
    for key, split in session.execute(statement):
        found[key] = max(found.get(key, split), split, key=SPLITS.index)
    return found


def rebuild(session: Session, dataset_id: str, *, file: Path | None = None) -> list[str]:
    """Make the rows again from the manifest and what it points to, and return their canonical JSON, in order.

    Args:
        file: the imported file, for a dataset that was imported.

    Raises:
        Conflict: something that the manifest names is gone (erased) or has changed.
    """
    manifest = get_dataset(session, dataset_id).manifest
    if dataset_id_of(manifest) != dataset_id:
        raise Conflict(f"the manifest of dataset {dataset_id} was changed: its hash is {dataset_id_of(manifest)}")
    candidates: Iterable[Candidate] = (
        rebuilt_import(manifest, file)
        if "file_sha256" in manifest
        else rebuilt_candidates(session, manifest["kind"], manifest["rows"])
    )
    bodies = []
    for entry, candidate in zip(manifest["rows"], candidates, strict=True):
        row = frozen_row(candidate, entry["split"], entry["prompt_key"])
        if row.row_id != entry["row_id"]:
            raise Conflict(
                f"row {entry['row_id']} of dataset {dataset_id} cannot be made again: its texts have changed"
            )
        bodies.append(row.body)
    return bodies


def rebuilt_import(manifest: Mapping[str, Any], file: Path | None) -> list[Candidate]:
    """Return the candidates that the manifest's rows name, from the file. Raises Conflict when it is another file."""
    found = sha256_file(file) if file else None
    if file is None or found != manifest["file_sha256"]:
        raise Conflict(
            f"{file} has SHA-256 {found}, the dataset was made from {manifest['file_sha256']}: give that file"
        )
    read = read_file(file, manifest["source"], Options(manifest["format"], manifest["default_license"]))
    by_origin = {candidate.origin: candidate for candidate in read.candidates}
    return [by_origin[entry["origin"]] for entry in manifest["rows"]]
