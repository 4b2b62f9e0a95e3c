"""Frozen datasets: made from the stored feedback or an imported file, kept for ever, made again byte for byte."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast
from uuid import UUID

from sqlalchemy import Select, column, func, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session, aliased

from hone.canonical import sha256_file
from hone.datasets import SPLITS, Candidate, FreezePolicy, Frozen, FrozenRow, dataset_id_of, freeze, frozen_row
from hone.errors import Conflict, InvalidEvent, NotEnoughData
from hone.records import FeedbackKind, Message, Track
from hone.store.tables import (
    DatasetItemRow,
    DatasetRow,
    ErasureRow,
    FeedbackEventRow,
    FeedbackStateRow,
    PreferencePairRow,
    ResponseRow,
)

FEEDBACK = "feedback"
WHOLE = "stop"
"""The finish reason of an answer that ended by itself."""
PREFERENCE_KINDS = (FeedbackKind.THUMBS, FeedbackKind.EDIT, FeedbackKind.REGENERATE, FeedbackKind.CHOICE)
MAX_ROWS_PER_INSERT = 2000
PAIR_FORM = "a line is one JSON object {id, prompt, chosen, rejected}, see docs/training.md"

Chosen = aliased(ResponseRow, name="chosen")
Rejected = aliased(ResponseRow, name="rejected")


def freeze_pairs(session: Session, *, watermark: int | None, policy: FreezePolicy) -> str:
    """Store the dataset of the active pairs up to revision `watermark` (None: all) and return its id; idempotent.

    Raises:
        NotEnoughData: no pair is left for training; names what was left out, and why.
    """
    frozen = freeze(
        pair_candidates(session, watermark),
        policy,
        watermark=watermark,
        erased=frozenset(session.scalars(select(ErasureRow.user_id))),
        history=split_history(session, source=FEEDBACK),
    )
    return store_dataset(session, frozen, policy)


def import_pairs(session: Session, path: Path, label: str, policy: FreezePolicy | None = None) -> str:
    """Store an offline file of pairs as a dataset named `label` and return its id; idempotent.

    The file holds one JSON object a line: {id, prompt, chosen, rejected, source, license}; `prompt` is a text or a
    list of {role, content}. A row without a licence is the operator's own. Prompts near one that feedback holds out
    for dev or test go there too, and are not trained on.

    Raises:
        InvalidEvent: a line is not such an object; names file and line.
        NotEnoughData: no pair is left for training.
    """
    if label == FEEDBACK:
        raise Conflict(f"label {label!r} is taken by the pairs that people gave: choose another name")
    policy = policy or FreezePolicy()
    frozen = freeze(
        imported_candidates(path, label),
        policy,
        source=label,
        history=split_history(session),
        extra={"file_sha256": sha256_file(path)},
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
    text = ", ".join(f"{name} {number}" for name, number in dropped.items() if number) or "there are no pairs"
    if dropped["user_cap"]:
        text += f"; max_user_share = {policy.max_user_share} needs at least {1 / policy.max_user_share:.0f} people"
    return f"no pair is left to train on ({text}): wait for more feedback, or widen the limits in [trigger]"


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
    statement = statement.select_from(DatasetRow).join(item, onclause=DatasetRow.kind == "pairs")
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
        rebuilt_import(manifest, file) if "file_sha256" in manifest else rebuilt_pairs(session, manifest["rows"])
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


def pair_candidates(session: Session, watermark: int | None) -> list[Candidate]:
    """Return the active pairs up to the watermark, with texts and the events behind them."""
    pair = PreferencePairRow
    statement = (
        select(pair, Chosen, Rejected, FeedbackEventRow.text)
        .join(Chosen, Chosen.response_id == pair.chosen_id)
        .join(Rejected, Rejected.response_id == pair.rejected_id)
        .outerjoin(FeedbackEventRow, FeedbackEventRow.event_id == pair.body_event_id)
        .where(pair.active)
        .order_by(pair.turn_id, pair.source, pair.chosen_id, pair.rejected_id, pair.user_id)
    )
    if watermark is not None:
        statement = statement.where(pair.rev <= watermark)
    events = events_by_answer(session)
    return [candidate_of(*row, events) for row in session.execute(statement)]


def candidate_of(
    pair: PreferencePairRow,
    chosen: ResponseRow,
    rejected: ResponseRow,
    text: str | None,
    events: Mapping[tuple[UUID, UUID], list[UUID]],
) -> Candidate:
    """Return the candidate of a stored pair; of an edit, `text` is the corrected answer."""
    answers = (chosen, rejected)
    event_ids = {id for answer in answers for id in events.get((pair.user_id, answer.response_id), ())}
    if pair.body_event_id:
        event_ids.add(pair.body_event_id)
    return Candidate(
        prompt=messages_of(rejected.messages),
        chosen=chosen.completion if pair.body_event_id is None else text or "",
        rejected=rejected.completion,
        weight=pair.weight,
        source=pair.source,
        user_id=pair.user_id,
        turn_id=pair.turn_id,
        chosen_id=pair.chosen_id,
        rejected_id=pair.rejected_id,
        body_event_id=pair.body_event_id,
        event_ids=tuple(sorted(event_ids)),
        licenses=frozenset(answer.license for answer in answers if answer.license is not None),
        eval_only=any(answer.eval_only for answer in answers),
        is_shadow=any(answer.track == Track.SHADOW for answer in answers),
        is_whole=all(answer.completed and answer.finish_reason == WHOLE for answer in answers),
    )


def events_by_answer(session: Session) -> dict[tuple[UUID, UUID], list[UUID]]:
    """Return (person, answer) -> the events with which that person last judged it, for answers in active pairs."""
    state, pair = FeedbackStateRow, PreferencePairRow
    statement = select(state.user_id, state.subject_id, state.event_id).where(
        state.slot.in_([kind.value for kind in PREFERENCE_KINDS]),
        state.turn_id.in_(select(pair.turn_id).where(pair.active)),
    )
    found: dict[tuple[UUID, UUID], list[UUID]] = {}
    for user_id, subject_id, event_id in session.execute(statement):
        found.setdefault((user_id, subject_id), []).append(event_id)
    return found


def messages_of(messages: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return stored messages as records."""
    return tuple(Message(role=message["role"], content=message.get("content")) for message in messages)


def rebuilt_pairs(session: Session, entries: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """Yield the candidates that the manifest's rows name, from responses and events alone.

    Raises:
        Conflict: an answer or event is gone.
    """
    responses = fetch(
        session, ResponseRow, {UUID(entry[key]) for entry in entries for key in ("chosen_id", "rejected_id")}
    )
    events = fetch(
        session, FeedbackEventRow, {UUID(entry["body_event_id"]) for entry in entries if "body_event_id" in entry}
    )
    for entry in entries:
        user_id, turn_id, chosen_id, rejected_id = (
            UUID(entry[key]) for key in ("user_id", "turn_id", "chosen_id", "rejected_id")
        )
        body_event_id = UUID(entry["body_event_id"]) if "body_event_id" in entry else None
        try:
            rejected = responses[rejected_id]
            chosen = events[body_event_id].text if body_event_id else responses[chosen_id].completion
        except KeyError as missing:
            raise Conflict(f"row {entry['row_id']} cannot be made again: {missing} was erased") from None
        yield Candidate(
            prompt=messages_of(rejected.messages),
            chosen=chosen or "",
            rejected=rejected.completion,
            weight=entry["weight"],
            source=entry["source"],
            user_id=user_id,
            turn_id=turn_id,
            chosen_id=chosen_id,
            rejected_id=rejected_id,
            body_event_id=body_event_id,
        )


def fetch(session: Session, table: type[Any], ids: set[UUID]) -> dict[UUID, Any]:
    """Return the rows of the given primary keys."""
    key = table.__mapper__.primary_key[0]
    found: dict[UUID, Any] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), MAX_ROWS_PER_INSERT):
        chunk = wanted[start : start + MAX_ROWS_PER_INSERT]
        for row in session.scalars(select(table).where(key.in_(chunk))):
            found[getattr(row, key.key)] = row
    return found


def imported_candidates(path: Path, label: str) -> list[Candidate]:
    """Return the pairs of an imported file. Raises InvalidEvent on the first line that is not one."""
    candidates = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                candidates.append(imported_candidate(json.loads(line), label))
            except KeyError as error:
                raise InvalidEvent("bad_pair", f"{path} line {number} has no {error}: {PAIR_FORM}") from None
            except (ValueError, TypeError, AttributeError) as error:
                raise InvalidEvent("bad_pair", f"{path} line {number}: {error}: {PAIR_FORM}") from None
    return candidates


def open_text(path: Path) -> TextIO:
    """Open a file of lines, unpacked where its name ends in `.gz`."""
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))  # the caller's `with` closes it
    return path.open(encoding="utf-8")


def imported_candidate(row: Mapping[str, Any], label: str) -> Candidate:
    """Return the candidate of one line."""
    prompt = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
    texts = {key: row[key] for key in ("chosen", "rejected")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("chosen and rejected must be texts")
    license = row.get("license")
    return Candidate(
        prompt=messages_of(prompt),
        weight=float(row.get("weight", 1.0)),
        source=f"import:{label}",
        origin=str(row["id"]),
        licenses=frozenset([license] if license else []),
        eval_only=bool(row.get("eval_only", False)),
        **texts,
    )


def rebuilt_import(manifest: Mapping[str, Any], file: Path | None) -> list[Candidate]:
    """Return the candidates that the manifest's rows name, from the file. Raises Conflict when it is another file."""
    found = sha256_file(file) if file else None
    if file is None or found != manifest["file_sha256"]:
        raise Conflict(
            f"{file} has SHA-256 {found}, the dataset was made from {manifest['file_sha256']}: give that file"
        )
    by_origin = {candidate.origin: candidate for candidate in imported_candidates(file, manifest["source"])}
    return [by_origin[entry["origin"]] for entry in manifest["rows"]]
