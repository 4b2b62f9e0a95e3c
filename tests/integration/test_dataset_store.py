"""Datasets in Postgres: frozen once, rebuilt byte for byte, traced back to the people who shaped them."""

import json
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from hone.datasets import FreezePolicy, Kind
from hone.errors import Conflict, InvalidEvent, NotEnoughData
from hone.store.datasets import (
    freeze_feedback,
    get_dataset,
    read_bodies,
    rebuild,
    split_history,
    write_dataset,
)
from hone.store.imports import import_file
from hone.store.label_counts import count_labels
from hone.store.models import register_model, set_alias
from hone.store.tables import DatasetItemRow, ErasureRow, PreferencePairRow, ResponseRow, UnaryLabelRow
from tests.support.pairs import NOW, add_edit, add_label, add_pair
from tests.support.training import person, question, row, write_rows

Sessions = sessionmaker[Session]
OPEN = FreezePolicy(max_user_share=1.0)


def freeze(session: Session, watermark: int | None = None) -> str:
    return freeze_feedback(session, watermark=watermark, policy=OPEN)


def all_bodies(session: Session, dataset_id: str) -> list[str]:
    return [body for split in ("train", "dev", "test") for body in read_bodies(session, dataset_id, split)]


def test_a_dataset_is_rebuilt_byte_for_byte_after_people_changed_their_minds(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(30):
            add_pair(session, turn)
        add_edit(session, 31, "Corrected: open the Orders page.")
        dataset_id = freeze(session)
    with sessions.begin() as session:
        session.execute(update(PreferencePairRow).values(active=False, weight=0.1))
    with sessions() as session:
        rebuilt = rebuild(session, dataset_id)
        assert len(rebuilt) == 31
        assert rebuilt == all_bodies(session, dataset_id)
        assert any("Corrected" in body for body in rebuilt)


@pytest.mark.parametrize(
    ("kind", "number"), [("labels", 6), ("demonstrations", 3), ("prompts", 14)], ids=["labels", "edits", "prompts"]
)
def test_other_kinds_are_frozen_with_their_events_and_rebuilt_byte_for_byte(
    sessions: Sessions, kind: Kind, number: int
) -> None:
    with sessions.begin() as session:
        for turn in range(5):
            add_pair(session, turn)
        for turn in range(5, 8):
            add_edit(session, turn, f"Corrected {turn}.")
        for turn in range(8, 14):
            add_label(session, turn, good=turn % 2 > 0)
        dataset_id = freeze_feedback(session, kind=kind, watermark=None, policy=OPEN)
    with sessions.begin() as session:
        session.execute(update(UnaryLabelRow).values(active=False))
        session.execute(update(PreferencePairRow).values(active=False))
    with sessions() as session:
        bodies = [json.loads(body) for body in all_bodies(session, dataset_id)]
        assert rebuild(session, dataset_id) == all_bodies(session, dataset_id)
        assert get_dataset(session, dataset_id).kind == kind
        items = list(session.scalars(select(DatasetItemRow)))
    assert len(bodies) == number
    texts = {"labels": {"completion", "label"}, "demonstrations": {"completion"}, "prompts": set()}[kind]
    assert all({"completion", "label", "chosen"} & set(body) == texts for body in bodies)
    assert all(body["prompt"] and body["user_id"] for body in bodies)
    if kind != "prompts":
        assert all(item.event_ids for item in items), "each row names what made it"


def test_a_prompt_held_out_once_is_held_out_from_every_kind(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(30):
            add_pair(session, turn)
        freeze(session)
        before = split_history(session)
        freeze_feedback(session, kind="prompts", watermark=None, policy=OPEN)
        assert split_history(session) == before


def test_freezing_again_makes_no_second_dataset_and_the_same_files(sessions: Sessions, tmp_path: Path) -> None:
    for directory in ("one", "two"):
        with sessions.begin() as session:
            if directory == "one":
                for turn in range(12):
                    add_pair(session, turn)
            write_dataset(session, freeze(session), tmp_path / directory)
    for split in ("train", "dev", "test"):
        name = f"{split}.jsonl"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_only_active_pairs_up_to_the_watermark_are_frozen(sessions: Sessions) -> None:
    with sessions.begin() as session:
        old = [add_pair(session, turn) for turn in range(5)]
        session.refresh(old[-1])
        watermark = old[-1].rev
        add_pair(session, 6)
        old[0].active = False
        session.flush()
        assert len(all_bodies(session, freeze(session, watermark))) == 4


def test_each_row_names_the_events_that_made_it(sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_pair(session, 0)
        edit = add_edit(session, 1, "Better.")
        freeze(session)
        lineage = {item.user_id: item.event_ids for item in session.scalars(select(DatasetItemRow))}
        assert len(lineage[person(0)]) == 1
        assert lineage[person(1)] == [edit.body_event_id]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"finish_reason": "length"}, id="cut off by its length"),
        pytest.param({"finish_reason": "content_filter"}, id="withheld by the response hook"),
        pytest.param({"completed": False}, id="broken off"),
        pytest.param({"track": "shadow"}, id="never shown"),
        pytest.param({"license": "CC-BY-NC-4.0"}, id="not permissive"),
        pytest.param({"license": "MIT", "eval_only": True}, id="for evaluation only"),
    ],
)
def test_what_must_not_be_trained_on_never_enters(sessions: Sessions, answer: dict[str, object]) -> None:
    with sessions.begin() as session:
        for turn in range(8):
            add_pair(session, turn)
        add_pair(session, 9, answer=answer)
        dataset = get_dataset(session, freeze(session))
        assert dataset.num_train + dataset.num_dev + dataset.num_test == 8


def test_an_erased_person_is_refused_and_an_old_dataset_with_them_cannot_be_rebuilt(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(10):
            add_pair(session, turn)
        before = freeze(session)
        session.add(ErasureRow(user_id=person(3), requested_at=NOW, counts={}))
        session.execute(delete(ResponseRow).where(ResponseRow.user_id == person(3)))
        after = freeze(session)
        assert len(all_bodies(session, after)) == 9
        with pytest.raises(Conflict, match="was erased"):
            rebuild(session, before)


def test_prompts_never_change_sides_between_datasets(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(40):
            add_pair(session, turn)
        freeze(session)
        before = split_history(session)
        for turn in range(40):
            asked = {"messages": [{"role": "user", "content": question(turn)}]}
            add_pair(session, 100 + turn, answer=asked)
        freeze(session)
        assert before.items() <= split_history(session).items()


def test_too_few_people_are_named_as_the_reason(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(10):
            add_pair(session, turn)
        with pytest.raises(NotEnoughData, match=r"user_cap 10.*needs at least 50 people"):
            freeze_feedback(session, watermark=None, policy=FreezePolicy())
        with pytest.raises(NotEnoughData, match="there are no pairs"):
            freeze_feedback(session, watermark=0, policy=OPEN)


def imported(path: Path, numbers: range) -> Path:
    lines = [
        {"id": k, "source": "file", "license": "MIT" if k % 2 else None, **{x: row(k)[x] for x in ("prompt", "chosen")}}
        | {"rejected": row(k)["rejected"]}
        for k in numbers
    ]
    return write_rows(path, lines)


def test_an_imported_file_becomes_a_dataset_that_only_that_file_rebuilds(sessions: Sessions, tmp_path: Path) -> None:
    path = imported(tmp_path / "pairs.jsonl", range(50))
    with sessions.begin() as session:
        dataset_id = import_file(session, path, "vendor")
        assert import_file(session, path, "vendor") == dataset_id
        assert get_dataset(session, dataset_id).source == "vendor"
        assert rebuild(session, dataset_id, file=path) == all_bodies(session, dataset_id)
        assert json.loads(all_bodies(session, dataset_id)[0])["source"] == "import:vendor"
        other = imported(tmp_path / "other.jsonl", range(49))
        with pytest.raises(Conflict, match="give that file"):
            rebuild(session, dataset_id, file=other)


def test_imported_prompts_that_people_hold_out_are_not_trained_on(sessions: Sessions, tmp_path: Path) -> None:
    with sessions.begin() as session:
        for turn in range(40):
            add_pair(session, turn)
        feedback = freeze(session)
        held_out = {body["prompt"][0]["content"] for body in map(json.loads, read_bodies(session, feedback, "test"))}
        assert held_out
        dataset_id = import_file(session, imported(tmp_path / "pairs.jsonl", range(40)), "vendor")
        trained = {body["prompt"][0]["content"] for body in map(json.loads, read_bodies(session, dataset_id, "train"))}
        assert not held_out & trained


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("not json", id="no JSON"),
        pytest.param('{"id": 1, "prompt": "x", "chosen": "a"}', id="a missing key"),
        pytest.param('{"id": 1, "prompt": "x", "chosen": "a", "rejected": 3}', id="a number for a text"),
        pytest.param('{"id": 1, "prompt": 7, "chosen": "a", "rejected": "b"}', id="a number for a prompt"),
        pytest.param('["x"]', id="no object"),
    ],
)
def test_a_bad_line_is_named(sessions: Sessions, tmp_path: Path, line: str) -> None:
    path = imported(tmp_path / "pairs.jsonl", range(3))
    path.write_text(path.read_text() + line + "\n")
    with sessions() as session, pytest.raises(InvalidEvent, match=r"pairs\.jsonl line 4"):
        import_file(session, path, "vendor")


def test_the_name_of_peoples_own_pairs_cannot_be_taken(sessions: Sessions, tmp_path: Path) -> None:
    with sessions() as session, pytest.raises(Conflict, match="is taken"):
        import_file(session, imported(tmp_path / "pairs.jsonl", range(3)), "feedback")


def test_a_change_of_the_base_marks_the_old_ones_pairs_and_deletes_none(sessions: Sessions) -> None:
    with sessions.begin() as session:
        old = register_model(session, digest="1" * 64, directory=Path("/old"), status="imported")
        child = register_model(session, digest="2" * 64, directory=Path("/child"), parent=old)
        new = register_model(session, digest="3" * 64, directory=Path("/new"), status="imported")
        set_alias(session, "stable", child, expected_generation=None)
        for turn in range(30):
            add_pair(session, turn, answer={"model_version": old if turn % 2 else child})
        for turn in range(31, 34):
            add_edit(session, turn, f"Corrected {turn}: an answer of a model that nobody registered.")
        before = freeze(session)
        assert get_dataset(session, before).manifest["off_policy"] == {"base": child, "other_base": 3}
        strict = FreezePolicy(max_user_share=1.0, max_generations=0)
        strict_id = freeze_feedback(session, watermark=None, policy=strict)
        assert get_dataset(session, strict_id).manifest["off_policy"]["old_generation"] == 15
        assert count_labels(session)["off_policy"] == 3
    with sessions.begin() as session:
        set_alias(session, "stable", new, expected_generation=1)
        after = freeze(session)
        assert get_dataset(session, after).manifest["off_policy"] == {"base": new, "other_base": 33}
        assert freeze_feedback(session, watermark=None, policy=OPEN, base=child) == before, (
            "a request may name its base"
        )
        rows = [json.loads(body) for body in read_bodies(session, after, "train")]
        assert {row["weight"] for row in rows} <= {0.4, 0.5}, "0.8 and 1, halved"
        assert rebuild(session, after) == all_bodies(session, after)
        assert session.scalar(select(func.count()).select_from(PreferencePairRow).where(PreferencePairRow.active)) == 33
        assert count_labels(session)["off_policy"] == 33
        demonstrations = freeze_feedback(session, kind="demonstrations", watermark=None, policy=OPEN)
        assert get_dataset(session, demonstrations).manifest["off_policy"] == {"base": new}
