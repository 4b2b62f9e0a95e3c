"""Everything breaks at once, and in the middle of a COPY: nothing is lost and nothing doubled. The long form is `make
chaos-ingest`.
"""

from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select, text

from benchmarks import ingest_chaos
from benchmarks.chaos_faults import SHARES, schedule
from hone.local.postgres import find_postmaster, start_postgres
from hone.records import RESPONSES_TOPIC
from hone.store.tables import FeedbackEventRow, ResponseRow
from tests.support.events import feedback, response
from tests.support.ingest_process import produce, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SLOW = """
CREATE DOMAIN slow AS text CONSTRAINT wait CHECK (pg_sleep(0.05) IS NOT NULL);
ALTER TABLE response ALTER COLUMN license TYPE slow
"""
"""Every row takes its time on the way into the table, so that a COPY can be met."""


def test_a_schedule_is_a_function_of_its_seed_and_holds_every_kind_of_fault() -> None:
    faults = schedule(7, 200, 1_000_000, 3)
    assert faults == schedule(7, 200, 1_000_000, 3) != schedule(8, 200, 1_000_000, 3)
    assert {fault.kind for fault in faults} == set(SHARES)


def test_a_traceback_is_a_defect_unless_the_driver_printed_it() -> None:
    entry = "2026-11-24 19:51:29,139 INFO ingest: reading\n"
    trace = "Traceback (most recent call last):\n  File\n"
    printed = f"{trace}psycopg2.errors.AdminShutdown: x\n\n{ingest_chaos.PRINTED_BY_DRIVER} 0x7f> returned a result\n"
    assert ingest_chaos.count_defects(f"{entry}{printed}{entry}{trace}KeyError: 1\n{entry}") == 1
    assert ingest_chaos.count_defects(entry + printed + entry + ingest_chaos.PRINTED_BY_DRIVER) == 0


def test_a_schedule_of_faults_loses_and_doubles_nothing() -> None:
    found = ingest_chaos.run(seed=5, num_events=12_000, num_faults=8, members=3, minutes=3, rebalancing="cooperative")
    assert (found["lost"], found["extra"]) == (0, 0)
    assert (found["events"], found["rows"], found["faults"]) == (12_000, 12_000, 8)
    assert (found["dead_letters"], found["stopped_by_themselves"]) == (found["poison"], {})


def test_a_database_that_crashes_in_the_middle_of_a_copy_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with ingest_chaos.stage(tmp_path, "eager") as (scene, broker):
        with scene.sessions.begin() as session:
            session.execute(text(SLOW))
        scene.members = [scene.start()]
        produce(broker.bootstrap_servers, *(response(f"r{n}") for n in range(200)), feedback("thumbs", "r1", value=1))
        copying = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY response%' AND state = 'active'")
        with scene.sessions() as watcher:
            watcher.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            wait_for(lambda: watcher.scalar(copying), 60)
            server = find_postmaster(scene.postgres_dir)
            assert server
            server.send_signal(3)
            psutil.wait_procs([server], timeout=30)
        start_postgres(scene.postgres_dir, settings=scene.postgres_settings)
        with scene.sessions.begin() as session:
            assert session.scalar(select(func.count()).select_from(ResponseRow)) == 0, "it was hit before the commit"
            session.execute(text("ALTER DOMAIN slow DROP CONSTRAINT wait"))
        wait_for(lambda: ingest_chaos.num_stored(scene.sessions) == ingest_chaos.num_in_log(broker), 60)
        with scene.sessions() as session:
            assert session.scalar(select(func.count()).select_from(ResponseRow)) == 200
            assert session.scalar(select(func.count()).select_from(FeedbackEventRow)) == 1
        assert scene.supervisor.exit_code(scene.members[0]) is None
        assert RESPONSES_TOPIC in (tmp_path / "ingest-1.log").read_text()
