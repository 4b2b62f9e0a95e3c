"""Capture health from stored rows: in the monitor's gauges, and in `hone status`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from hone.settings import Settings
from hone.store.capture import read_capture
from monitoring.exporter import Monitor, Watch
from tests.support.cli import make_run

Sessions = sessionmaker[Session]
NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)

# Ten answers an hour for thirty days; on each a thumb with probability 0.6 and an edit with 0.3, drawn by a hash.
FILL = """
INSERT INTO response (response_id, conversation_id, turn_id, user_id, messages, completion, model_version, track,
                      propensity, fallback, parameters, completed, latency_ms, eval_only, created_at)
SELECT md5('r' || h || '.' || n)::uuid, md5('c')::uuid, md5('t')::uuid, md5('u' || n)::uuid, '[]', 'x', 'm',
       CASE WHEN n = 10 THEN 'shadow' ELSE 'stable' END, 1, false, '{}', true, 1, false, at
FROM generate_series(0, 719) AS h, generate_series(1, 10) AS n, LATERAL (SELECT :now - h * interval '1 hour') AS t(at);
INSERT INTO feedback_event (event_id, kind, response_id, user_id, value, rejected, reasons, occurred_at, received_at,
                            signed, stored_at)
SELECT md5(kind || h || '.' || n)::uuid, kind, md5('r' || h || '.' || n)::uuid, md5('u' || n)::uuid, 1, '{}', '{}',
       at, at, true, :now
FROM generate_series(0, 719) AS h, generate_series(1, 9) AS n, (VALUES ('thumbs', 6), ('edit', 3)) AS k(kind, share),
     LATERAL (SELECT :now - h * interval '1 hour') AS t(at)
WHERE abs(hashtext(kind || h || '.' || n)) % 10 < share AND NOT (kind = 'thumbs' AND h < :silent_h)
"""


def fill(sessions: Sessions, silent_h: int) -> None:
    """Thirty days, in the last `silent_h` hours of which no thumb came."""
    with sessions.begin() as session:
        session.execute(text(FILL), {"now": NOW, "silent_h": silent_h})


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_a_thumbs_button_that_broke_shows_in_the_monitor_and_an_edit_that_works_does_not(sessions: Sessions) -> None:
    fill(sessions, silent_h=20)
    watching = Monitor(sessions, Settings(), Watch(settle_s=0), NOW)
    watching.look(NOW)
    threshold = value("hone_capture_threshold_log")
    thumbs, edits = value("hone_capture_log_e", kind="thumbs"), value("hone_capture_log_e", kind="edit")
    assert threshold is not None and thumbs is not None and edits is not None
    assert edits < threshold < thumbs
    assert value("hone_capture_events", kind="thumbs", of="usual") == pytest.approx(9 * 24 * 0.6, rel=0.1)
    assert value("hone_capture_events", kind="thumbs", of="seen") == pytest.approx(4 * 9 * 0.6, rel=0.5)
    assert value("hone_capture_baseline_ratio", kind="thumbs") == 1


def test_between_two_hours_only_the_newest_rows_are_read_with_the_same_result(sessions: Sessions) -> None:
    fill(sessions, silent_h=20)
    watching = Monitor(sessions, Settings(), Watch(settle_s=0), NOW)
    watching.look(NOW)
    event = "UPDATE feedback_event SET kind = 'thumbs' WHERE kind = 'edit' AND received_at > :then"
    with sessions.begin() as session:
        session.execute(text(event), {"then": NOW - timedelta(minutes=40)})
    later = NOW + timedelta(minutes=20)
    watching.look(later)
    with sessions() as session:
        whole = {found.kind: found for found in read_capture(session, later)}
    assert value("hone_capture_log_e", kind="thumbs") == pytest.approx(whole["thumbs"].log_e)
    assert value("hone_capture_events", kind="thumbs", of="seen") == whole["thumbs"].seen


def test_the_newest_hours_are_found_by_an_index_and_not_by_reading_all(sessions: Sessions) -> None:
    fill(sessions, silent_h=0)
    query = "EXPLAIN SELECT count(*) FROM feedback_event WHERE stored_at >= now() - interval '1 hour'"
    with sessions() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(session.scalars(text(query)))
    assert "Bitmap Index Scan on feedback_event_stored_at_idx" in plan


def test_status_says_it_in_words(
    sessions: Sessions, store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(store_url, monkeypatch, tmp_path)
    assert "no past of a week yet" in run("status").stdout
    fill(sessions, silent_h=20)
    shown = run("status").stdout
    assert "thumbs FELL SILENT" in shown
    assert "edit as usual" in shown
