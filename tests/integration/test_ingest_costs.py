"""What a batch costs, in figures that no busy machine changes: statements, plans, WAL bytes, buffer touches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from hone.records import FEEDBACK_TOPIC, Feedback, Response
from hone.store.engine import BY_INDEX
from hone.store.offsets import Group, Partition, claim_partitions
from ingest.batch import RawMessage, sort_messages, store_batch
from tests.support.events import encode, feedback, response

Sessions = sessionmaker[Session]
GROUP, P = Group("test", "broker-1"), Partition(FEEDBACK_TOPIC, 0)
BASE_TABLES = ("response", "feedback_event", "feedback_state", "dirty_turn", "consumer_offset")


def records(num: int, name: str) -> list[Response | Feedback]:
    """One answer for two acts of feedback, as the benchmark has them: 400 bytes or so each."""
    found: list[Response | Feedback] = []
    for n in range(num // 3):
        found.append(response(f"{name}{n}", turn=f"{name}{n}", completion="It is on its way to you. " * 8))
        found.append(feedback("thumbs", f"{name}{n}", value=1, user=f"u{n % 50}"))
        found.append(feedback("edit", f"{name}{n}", text="It will be there on Friday.\n" * 8, user=f"u{n % 50}"))
    return found


def store(sessions: Sessions, items: list[Response | Feedback], first: int) -> None:
    raw = [RawMessage(P, first + n, None, encode(item), 0) for n, item in enumerate(items)]
    with sessions.begin() as session:
        claims = claim_partitions(session, GROUP, "test", {P: 0})
    batch = sort_messages(raw, claims, lambda message: (items[message.offset - first],))
    with sessions.begin() as session:
        store_batch(session, GROUP, batch)


@contextmanager
def statements(sessions: Sessions) -> Iterator[list[tuple[str, Any]]]:
    """Every statement but COPY, which goes past SQLAlchemy."""
    engine, seen = sessions.kw["bind"], []
    assert isinstance(engine, Engine)

    def remember(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", remember)
    yield seen
    event.remove(engine, "before_cursor_execute", remember)


def scalar(sessions: Sessions, statement: str, **values: Any) -> Any:
    with sessions.begin() as session:
        return session.scalar(text(statement), values)


def test_a_large_batch_takes_as_many_statements_as_a_small_one(sessions: Sessions) -> None:
    counts = []
    for number, size in enumerate((9, 30, 1500)):
        with statements(sessions) as seen:
            store(sessions, records(size, f"s{number}-"), first=10_000 * number)
        counts.append(len(seen))
    names = "claim, begin, advance, savepoint, erasures, look, state, release, marks; and two COPYs"
    assert counts == [8, 9, 9], f"{names}; below 20 rows two INSERTs without a look"


def test_no_statement_of_a_batch_reads_a_whole_table(sessions: Sessions) -> None:
    with statements(sessions) as seen:
        store(sessions, records(60, "p"), first=0)
    plans = []
    with sessions.begin() as session:
        session.execute(text(BY_INDEX))
        for statement, parameters in seen:
            if statement.split()[0] in ("SELECT", "WITH", "UPDATE", "INSERT"):
                rows = session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(row[0] for row in rows))
    assert [plan for plan in plans if any(f"Seq Scan on {table}" in plan for table in BASE_TABLES)] == []
    read = "\n".join(plans)
    assert all(f"on {table}" in read for table in BASE_TABLES), "the test must have seen every table"


def test_the_planner_would_read_whole_tables_without_the_settings(sessions: Sessions) -> None:
    """Otherwise the test above could not fail."""
    store(sessions, records(9, "q"), first=0)
    scalar(sessions, "SELECT pg_stat_force_next_flush()")
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"}).execute(text("ANALYZE feedback_event"))
    with sessions() as session:
        query = "EXPLAIN SELECT * FROM feedback_event WHERE event_id = ANY('{00000000-0000-0000-0000-000000000000}')"
        assert any("Seq Scan on feedback_event" in row[0] for row in session.execute(text(query)))


TOUCHES = """
SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))
FROM pg_statio_user_tables WHERE schemaname = 'public'
"""


def test_a_message_costs_few_bytes_of_wal_and_few_buffers(sessions: Sessions) -> None:
    store(sessions, records(1500, "warm"), first=0)
    items = records(1500, "w")
    body_bytes = sum(len(encode(item)) for item in items)
    scalar(sessions, "SELECT pg_stat_force_next_flush()")
    before, touches = scalar(sessions, "SELECT pg_current_wal_insert_lsn()"), scalar(sessions, TOUCHES)
    store(sessions, items, first=10_000)
    wal = scalar(sessions, "SELECT pg_current_wal_insert_lsn() - CAST(:lsn AS pg_lsn)", lsn=before)
    scalar(sessions, "SELECT pg_stat_force_next_flush()")
    touches = scalar(sessions, TOUCHES) - touches
    assert 0.5 < float(wal) / body_bytes < 2.5, "rows, six indexes, state and marks: two and a half times the messages"
    assert 5 < touches / len(items) < 40
