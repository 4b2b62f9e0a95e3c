"""What a plan counts in the database."""

from pathlib import Path
from uuid import uuid5

import pytest
from sqlalchemy.orm import Session, sessionmaker

from hone.store.label_counts import count_labels, label_noise, mean_tokens
from hone.store.models import STABLE, import_model, set_alias
from hone.store.tables import UnaryLabelRow
from tests.support.cli import make_run, read
from tests.support.pairs import add_answer, add_edit, add_pair
from tests.support.tiny_model import make_tiny_model
from tests.support.training import SPACE, person

Sessions = sessionmaker[Session]


def add_label(session: Session, turn: int, rater: int, label: bool, active: bool = True) -> None:
    session.add(
        UnaryLabelRow(
            response_id=uuid5(SPACE, f"lone {turn}"),
            user_id=person(rater),
            turn_id=uuid5(SPACE, f"turn {turn}"),
            label=label,
            weight=1.0,
            reasons=[],
            signed=True,
            active=active,
        )
    )


def test_pairs_edits_and_lone_thumbs_are_counted_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(5):
            add_pair(session, turn)
        add_pair(session, 6, active=False)
        add_edit(session, 7, "Corrected.")
        add_label(session, 0, 90, True)  # in a pair already
        add_label(session, 20, 91, True)
        add_label(session, 21, 92, False)
        add_label(session, 22, 93, False, active=False)
        session.flush()
        expected = {"pairs": 6, "edits": 1, "thumbs_up": 1, "thumbs_down": 1, "noise": None, "off_policy": 0}
        assert count_labels(session) == expected


def test_noise_is_measured_from_people_who_judged_the_same_answer(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for turn in range(100):
            add_label(session, turn, 500, True)
            add_label(session, turn, 501, turn >= 18)
        session.flush()
        assert label_noise(session) == pytest.approx((1 - 0.64**0.5) / 2)


def test_the_command_counts_the_feedback_and_takes_the_stable_model(
    sessions: Sessions, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sessions.begin() as session:
        assert mean_tokens(session) is None
        for turn in range(4):
            add_pair(session, turn)
        add_answer(session, "long", 9, "x" * 4000)
        assert mean_tokens(session)["answer"] > 100  # type: ignore[index]
    run = make_run(store_url, monkeypatch, tmp_path)
    assert "no model is stable yet: name a size or a directory" in run("plan", code=1).stderr
    assert read(run("plan", "--model", "8b", "--gpus", "1", "--json"))["labels"]["pairs"] == 4
    with sessions.begin() as session:
        set_alias(session, STABLE, import_model(session, make_tiny_model(tmp_path / "model")), expected_generation=None)
    found = read(run("plan", "--json"))
    assert found["labels"]["pairs"] == 4
    assert found["stages"][0]["method"] == "dpo"
    assert found["stages"][0]["below_minimum"]
    assert found["model"] == str((tmp_path / "model").absolute())
