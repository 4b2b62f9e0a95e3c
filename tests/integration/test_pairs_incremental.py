"""Pairs are a function of the stored events: what the worker has done step by step equals one full derivation."""

import random
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count as counter
from itertools import pairwise
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session, sessionmaker

from hone.records import Feedback, Response
from hone.settings import Pairs
from hone.store.erasure import erase_user
from hone.store.events import mark_dirty, store_events
from hone.store.pairs import TAKE_DIRTY, Answer, Signal, begin_pair_transaction
from hone.store.tables import DirtyTurnRow, PreferencePairRow, UnaryLabelRow
from ingest.pair_worker import derive_batch
from ingest.pairing import derive
from tests.support.events import at, feedback, response, uid

Sessions = sessionmaker[Session]
Record = Response | Feedback
Keys = set[tuple[Any, ...]]

POLICY = Pairs()
NUMBERS = counter()


def store(sessions: Sessions, records: Iterable[Record]) -> None:
    records = list(records)
    with sessions.begin() as session:
        stored = store_events(
            session,
            [record for record in records if isinstance(record, Response)],
            [record for record in records if isinstance(record, Feedback)],
        )
        mark_dirty(session, stored.touched)


def work(sessions: Sessions, policy: Pairs = POLICY) -> int:
    with sessions.begin() as session:
        return derive_batch(session, policy)[0]


def drain(sessions: Sessions) -> None:
    while work(sessions):
        pass


def held(sessions: Sessions, turns: Sequence[UUID]) -> tuple[Keys, Keys]:
    """The active pairs and labels in the database."""
    pair, label = PreferencePairRow, UnaryLabelRow
    pairs = select(
        pair.turn_id, pair.source, pair.chosen_id, pair.rejected_id, pair.user_id, pair.body_event_id, pair.weight
    ).where(pair.active, pair.turn_id.in_(turns))
    labels = select(label.response_id, label.user_id, label.label, label.weight).where(
        label.active, label.turn_id.in_(turns)
    )
    with sessions() as session:
        return set(map(tuple, session.execute(pairs))), set(map(tuple, session.execute(labels)))


def recomputed(records: Iterable[Record]) -> tuple[Keys, Keys]:
    """The same from the records alone, with the last word found in Python."""
    records = list(records)
    answers = [
        Answer(**{name: getattr(record, name) for name in Answer.__dataclass_fields__})
        for record in records
        if isinstance(record, Response)
    ]
    last: dict[tuple[Any, ...], Signal] = {}
    events = [record for record in records if isinstance(record, Feedback) and record.response_id]
    for event_ in sorted(events, key=lambda e: (e.occurred_at, e.event_id)):
        slot = f"signal:{event_.name}" if event_.kind == "signal" else str(event_.kind)
        names = [name for name in Signal.__dataclass_fields__ if hasattr(event_, name)]
        fields = {name: getattr(event_, name) for name in names}
        assert event_.response_id
        last[event_.response_id, slot, event_.user_id] = Signal(**fields, subject_id=event_.response_id, slot=slot)
    pairs, labels = derive(answers, last.values(), POLICY)
    return (
        {(p.turn_id, p.source, p.chosen_id, p.rejected_id, p.user_id, p.body_event_id, p.weight) for p in pairs},
        {(label.response_id, label.user_id, label.label, label.weight) for label in labels},
    )


ANSWERS = ("a", "b", "c", "d")


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Two turns of up to two answers each, and what two people did with them, in any order and with repeats."""
    world = f"w{next(NUMBERS)}-"
    records: list[Record] = [
        response(
            world + name,
            turn=world + ("t1" if name in "ab" else "t2"),
            second=index,
            idempotency_key=uid(str(draw(st.integers(0, 1)))),
            completed=draw(st.booleans()) or name == "a",
        )
        for index, name in enumerate(draw(st.sets(st.sampled_from(ANSWERS), min_size=1)))
    ]
    for number in range(draw(st.integers(0, 8))):
        on = draw(st.sampled_from(ANSWERS))
        kind, fields = draw(
            st.sampled_from(
                [
                    ("thumbs", {"value": 1}),
                    ("thumbs", {"value": -1}),
                    ("thumbs", {"value": 0}),
                    ("edit", {"text": f"answer {world}{on} but better"}),
                    ("choice", {"rejected": tuple(uid(world + name) for name in ANSWERS if name != on)}),
                    ("signal", {"name": "copied"}),
                    ("regenerate", {"value": 1.0}),
                ]
            )
        )
        records.append(
            feedback(
                kind,
                world + on,
                user=draw(st.sampled_from(["ann", "bob"])),
                second=draw(st.integers(10, 13)),
                event_id=uid(f"{world}{number}"),
                signed=draw(st.booleans()),
                **fields,
            )
        )
    repeats = draw(st.lists(st.sampled_from(records), max_size=4))
    return draw(st.permutations([*records, *repeats]))


def turns_of(records: Iterable[Record]) -> list[UUID]:
    return sorted({record.turn_id for record in records if isinstance(record, Response)})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), cuts=st.lists(st.integers(0, 16), max_size=4))
def test_any_arrival_order_in_any_batches_gives_the_pairs_of_a_full_derivation(
    sessions: Sessions, history: list[Record], cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), len(history)]
    for start, end in pairwise(edges):
        store(sessions, history[start:end])
        work(sessions)
    drain(sessions)
    assert held(sessions, turns_of(history)) == recomputed(history)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), cuts=st.lists(st.integers(0, 16), min_size=1, max_size=4), when=st.integers(0, 3))
def test_a_person_who_is_erased_at_any_moment_leaves_the_pairs_of_the_others(
    sessions: Sessions, history: list[Record], cuts: list[int], when: int
) -> None:
    """Bob, since the answers are Ann's. What he sends later, or what arrives late, counts no more."""
    bob = uid(f"bob{next(NUMBERS)}")
    history = [
        msgspec.structs.replace(record, user_id=bob) if record.user_id == uid("bob") else record for record in history
    ]
    edges = [0, *sorted(cuts), len(history)]
    for number, (start, end) in enumerate(pairwise(edges)):
        store(sessions, history[start:end])
        if number == min(when, len(cuts)):
            with sessions.begin() as session:
                erase_user(session, bob, actor="test", now=at(99))
        work(sessions)
    drain(sessions)
    assert held(sessions, turns_of(history)) == recomputed([r for r in history if r.user_id != bob])


def busy_history(num_turns: int) -> list[Record]:
    """Many turns of three answers, with thumbs that change and a choice, shuffled."""
    dice = random.Random(7)
    records: list[Record] = []
    for turn in range(num_turns):
        names = [f"x{turn}-{n}" for n in range(3)]
        records += [response(name, turn=f"turn{turn}", second=n) for n, name in enumerate(names)]
        for _ in range(6):
            value, second = dice.choice([-1, 0, 1]), dice.randrange(99)
            records.append(feedback("thumbs", dice.choice(names), value=value, second=second))
        records.append(feedback("choice", names[0], rejected=(uid(names[1]),)))
    dice.shuffle(records)
    return records


def test_workers_and_writers_at_once_end_with_the_pairs_of_a_full_derivation(sessions: Sessions) -> None:
    records, done = busy_history(40), threading.Event()

    def write(part: list[Record]) -> None:
        for start in range(0, len(part), 5):
            store(sessions, part[start : start + 5])

    def work_until_done() -> None:
        while not done.is_set():
            work(sessions, POLICY.model_copy(update={"batch_turns": 7}))

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work_until_done) for _ in range(2)]
        writers = [pool.submit(write, records[half::2]) for half in (0, 1)]
        wait(writers)
        done.set()
    for future in (*workers, *writers):
        future.result()
    drain(sessions)
    pairs, labels = held(sessions, turns_of(records))
    assert (pairs, labels) == recomputed(records)
    assert len(pairs) > 50


def revisions(sessions: Sessions) -> dict[tuple[str, bool], int]:
    with sessions() as session:
        rows = session.scalars(select(PreferencePairRow)).all()
        return {(row.source, row.active): row.rev for row in rows}


def test_a_retracted_pair_stays_inactive_with_a_higher_revision_and_may_come_back(sessions: Sessions) -> None:
    same = {"idempotency_key": uid("k")}
    store(sessions, [response("a", **same), response("b", second=1, **same)])
    store(sessions, [feedback("thumbs", "a", value=1), feedback("thumbs", "b", value=-1)])
    drain(sessions)
    first = revisions(sessions)["thumbs", True]
    store(sessions, [feedback("thumbs", "a", value=0, second=20)])
    drain(sessions)
    retracted = revisions(sessions)
    assert list(retracted) == [("thumbs", False)]
    assert retracted["thumbs", False] > first
    store(sessions, [feedback("thumbs", "a", value=1, second=30)])
    drain(sessions)
    assert revisions(sessions)["thumbs", True] > retracted["thumbs", False]


def test_deriving_again_without_a_change_moves_no_revision(sessions: Sessions) -> None:
    store(sessions, [response("a"), response("b", second=1), feedback("thumbs", "b", value=1)])
    drain(sessions)
    before = revisions(sessions)
    with sessions.begin() as session:
        mark_dirty(session, [uid("turn"), uid("a")])
    assert work(sessions) >= 1
    assert revisions(sessions) == before != {}


def test_a_later_edit_moves_the_revision_of_its_pair(sessions: Sessions) -> None:
    store(sessions, [response("a"), feedback("edit", "a", text="answer a one")])
    drain(sessions)
    before = revisions(sessions)["edit", True]
    later = feedback("edit", "a", text="answer a two", second=50)
    store(sessions, [later])
    drain(sessions)
    assert revisions(sessions)["edit", True] > before
    with sessions() as session:
        assert session.scalars(select(PreferencePairRow.body_event_id)).all() == [later.event_id]


def test_a_worker_that_fails_leaves_its_marks(sessions: Sessions) -> None:
    store(sessions, [response("a"), response("b", second=1)])
    with sessions() as session:
        assert derive_batch(session, POLICY)[0] == 1
        session.rollback()
    with sessions() as session:
        assert session.scalars(select(DirtyTurnRow.turn_id)).all() == [uid("turn")]
    drain(sessions)
    assert list(revisions(sessions)) == [("regenerate", True)]


BASE_TABLES = ("response", "feedback_state", "dirty_turn", "preference_pair", "unary_label")


def test_no_statement_of_the_pair_transaction_reads_a_whole_table(sessions: Sessions) -> None:
    store(sessions, [response("a"), response("b", second=1), feedback("thumbs", "a", value=1)])
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    seen: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def remember(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.split()[0] in ("SELECT", "DELETE", "INSERT") and not many:
            seen.append((statement, parameters))

    drain(sessions)
    event.remove(engine, "before_cursor_execute", remember)
    plans = []
    with sessions() as session:
        begin_pair_transaction(session)
        for statement, parameters in seen:
            rows = session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in rows))
    whole = [plan for plan in plans if any(f"Seq Scan on {table}" in plan for table in BASE_TABLES)]
    assert whole == []
    read = "\n".join(plans)
    assert all(f"on {table}" in read for table in BASE_TABLES), "the test must have seen every table"


def test_the_planner_would_read_whole_tables_without_the_settings(sessions: Sessions) -> None:
    """Otherwise the test above could not fail."""
    with sessions() as session:
        rows = session.execute(text(f"EXPLAIN SELECT * FROM response WHERE turn_id = '{uid('turn')}' OR true"))
        assert any("Seq Scan on response" in row[0] for row in rows)


FILL = "INSERT INTO dirty_turn SELECT gen_random_uuid() FROM generate_series(1, {})"


def test_taking_marks_from_a_large_backlog_reads_only_the_marks_that_it_takes(sessions: Sessions) -> None:
    """Statistics that are older than the backlog must not make the planner read all of it."""
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        for statement in (FILL.format(1), "VACUUM ANALYZE dirty_turn", FILL.format(20_000)):
            session.execute(text(statement))
    with sessions() as session:
        begin_pair_transaction(session)
        rows = session.execute(text(f"EXPLAIN (ANALYZE, BUFFERS) {TAKE_DIRTY}"), {"limit": 500}).scalars().all()
        session.rollback()
    touches = next(int(found[1]) for row in rows if (found := re.search(r"shared hit=(\d+)", row)))
    assert touches < 5 * 500, "\n".join(rows)
