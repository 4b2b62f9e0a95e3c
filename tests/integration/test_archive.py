"""Old feedback leaves the database for files, and comes back from them as it was."""

import gzip
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from hone.records import Feedback
from hone.settings import Pairs
from hone.store.events import mark_dirty, store_events
from hone.store.tables import AuditRow, FeedbackEventRow, FeedbackStateRow, PreferencePairRow
from ingest.decode import decode
from ingest.pair_worker import derive_batch
from tests.support.cli import Run, make_run, read
from tests.support.events import feedback, response, uid

Sessions = sessionmaker[Session]
EVENTS = [
    feedback("thumbs", "a", value=1, event_id=uid("up")),
    feedback("thumbs", "b", value=-1, event_id=uid("down")),
    feedback("edit", "a", text="answer a, better", event_id=uid("edit")),
    feedback("choice", "a", rejected=(uid("b"),), event_id=uid("choice")),
    feedback("thumbs", "b", value=0, second=99, event_id=uid("new")),
]


@pytest.fixture
def run(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return make_run(store_url, monkeypatch, tmp_path)


@pytest.fixture
def history(sessions: Sessions) -> Sessions:
    """Five events, of which all but the last were stored long ago."""
    with sessions.begin() as session:
        mark_dirty(session, store_events(session, [response("a"), response("b", second=1)], EVENTS).touched)
        derive_batch(session, Pairs())
        session.execute(
            text("UPDATE feedback_event SET stored_at = '2026-01-05' WHERE event_id <> :new"), {"new": uid("new")}
        )
    return sessions


def count(sessions: Sessions, table: type) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_without_yes_it_counts_and_changes_nothing(history: Sessions, run: Run, tmp_path: Path) -> None:
    shown = read(run("archive", "--before", "2026-02-01", "--to", tmp_path / "old", "--json"))
    assert shown == {"events": {"choice": 1, "thumbs": 2}, "archived": False}
    assert (count(history, FeedbackEventRow), (tmp_path / "old").exists()) == (5, False)


def test_old_events_move_into_a_file_from_which_they_come_back_equal(
    history: Sessions, run: Run, tmp_path: Path
) -> None:
    states, pairs = count(history, FeedbackStateRow), count(history, PreferencePairRow)
    shown = read(run("archive", "--before", "2026-02-01", "--to", tmp_path / "old", "--yes", "--json"))
    (file,) = (tmp_path / "old").iterdir()
    records = [decode("hone.feedback.v1", line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert shown["events"] == shown["files"][0]["num_events"] == 3
    assert {r.event_id: r for r in records if isinstance(r, Feedback)} == {
        event.event_id: event for event in (EVENTS[0], EVENTS[1], EVENTS[3])
    }
    assert count(history, FeedbackEventRow) == 2, "the edit, whose text pairs need, and the new one"
    with history.begin() as session:
        mark_dirty(session, [uid("turn")])
        assert derive_batch(session, Pairs())[1] == [], "pairs follow from the last words, which stay"
        (audit,) = session.scalars(select(AuditRow)).all()
        assert audit.detail["num_events"] == 3
        store_events(session, [], [r for r in records if isinstance(r, Feedback)])
    assert count(history, FeedbackEventRow) == 5
    assert (count(history, FeedbackStateRow), count(history, PreferencePairRow)) == (states, pairs)


def test_a_folder_that_cannot_be_written_loses_nothing(history: Sessions, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shown = run("archive", "--before", "2026-02-01", "--to", tmp_path / "file" / "x", "--yes", code=1)
    assert "nothing of it was deleted" in shown.output
    assert count(history, FeedbackEventRow) == 5
