"""Feedback of which nothing came: counted, with the reason."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from hone.cli.context import utc_now
from hone.settings import Pairs
from hone.store.events import mark_dirty, store_events
from hone.store.unpaired import ARRIVAL, count_unanswered, edits_without_pair
from ingest.pair_worker import derive_batch
from tests.support.cli import make_run, read
from tests.support.events import feedback, response

Sessions = sessionmaker[Session]
ORIGINAL = "one two three four five six seven eight nine ten"
EDITS = {
    "paired": ORIGINAL.replace("three", "3"),
    "far": "something else altogether",
    "same": f" {ORIGINAL}\n",
    "cut": "whatever",
    "late": ORIGINAL.replace("two", "2"),
}


def store(sessions: Sessions) -> None:
    """Edits of each fate; all turns are derived but that of `late`."""
    answers = [response(name, turn=name, completion=ORIGINAL, completed=name != "cut") for name in EDITS]
    edits = [feedback("edit", name, text=text) for name, text in EDITS.items()]
    thumbs = [feedback("thumbs", "nowhere", value=1), feedback("thumbs", "nowhere", value=-1, user="bob", signed=False)]
    with sessions.begin() as session:
        edits.append(feedback("edit", "nowhere", text="x"))
        stored = store_events(session, answers[:-1], [*edits[:4], edits[-1], *thumbs])
        mark_dirty(session, stored.touched)
    with sessions.begin() as session:
        derive_batch(session, Pairs())
    with sessions.begin() as session:
        mark_dirty(session, store_events(session, answers[-1:], [edits[4]]).touched)


def test_edits_without_a_pair_are_counted_by_why(sessions: Sessions) -> None:
    store(sessions)
    with sessions() as session:
        assert edits_without_pair(session, Pairs()) == {
            "too_far": 1,
            "unchanged": 1,
            "not_counted": 1,
            "waiting": 1,
            "no_answer": 1,
        }
        assert edits_without_pair(session, Pairs(edit_max_distance=1.0))["other"] == 1, "derived by other settings"


def test_feedback_whose_answer_never_came_is_counted_until_it_comes(sessions: Sessions) -> None:
    store(sessions)
    since, until = utc_now() - timedelta(days=1), utc_now() + timedelta(days=1)
    with sessions.begin() as session:
        found = count_unanswered(session, since, until)
        assert (found.num_events, found.num_answers, found.num_unsigned) == (3, 1, 1)
        store_events(session, [response("nowhere")], [])
        assert count_unanswered(session, since, until).num_events == 0


def test_pairs_says_why_there_are_fewer_than_edits(
    sessions: Sessions, store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store(sessions)
    run = make_run(store_url, monkeypatch, tmp_path)
    monkeypatch.setattr("hone.store.unpaired.ARRIVAL", -ARRIVAL)
    text = run("pairs").stdout
    assert "no pair came of 5 edits:\n  1 changed more than 90% of the words" in text
    assert "orphans: 3 acts of feedback (1 unsigned) of the last 7 days on 1 answer" in text
    assert read(run("pairs", "--json"))["edits_without_pair"]["too_far"] == 1
    assert read(run("status", "--json"))["orphans"]["num_events"] == 3
