"""What one transaction of ingest leaves in Postgres: all of a batch, once, or nothing of it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import Fenced
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Reason, Response
from hone.settings import Pairs
from hone.store.erasure import erase_user
from hone.store.events import mark_dirty
from hone.store.offsets import Claim, Group, Partition, claim_partitions
from hone.store.tables import (
    ConsumerOffsetRow,
    DeadLetterRow,
    DirtyTurnRow,
    FeedbackEventRow,
    FeedbackStateRow,
    ResponseRow,
)
from ingest.batch import Outcome, RawMessage, sort_messages, store_batch
from ingest.pair_worker import derive_batch
from tests.support.events import at, encode, feedback, response, uid

GROUP = Group("test", "broker-1")
RESPONSES, FEEDBACK = Partition(RESPONSES_TOPIC, 0), Partition(FEEDBACK_TOPIC, 0)

MESSAGE = {"role": "user", "content": "How do I reset my password?"}

Sessions = sessionmaker[Session]


def claim(sessions: Sessions, owner: str = "one") -> dict[Partition, Claim]:
    with sessions.begin() as session:
        return claim_partitions(session, GROUP, owner, {RESPONSES: 0, FEEDBACK: 0})


def messages(*records: Response | Feedback | bytes, start: int = 0) -> list[RawMessage]:
    """Offsets are shared by both partitions here: gaps are legal."""
    found = []
    for offset, record in enumerate(records, start):
        partition = RESPONSES if isinstance(record, Response) else FEEDBACK
        body = record if isinstance(record, bytes) else encode(record)
        found.append(RawMessage(partition, offset, b"key", body, 0))
    return found


def store(sessions: Sessions, claims: dict[Partition, Claim], raw: list[RawMessage]) -> Outcome:
    with sessions.begin() as session:
        return store_batch(session, GROUP, sort_messages(raw, claims))


def count(sessions: Sessions, table: type) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture(params=[0, 20], ids=["by COPY", "by INSERT"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of these tests are small: both ways to write them."""
    monkeypatch.setattr("hone.store.events.FEW_ROWS", request.param)


@pytest.mark.usefixtures("by")
def test_every_field_of_a_response_comes_back_as_it_was_sent(sessions: Sessions) -> None:
    sent = response(
        "a",
        completion='tab\t newline\n return\r backslash \\ \\N quote " and 😀',
        parameters={"temperature": 0.7, "stop": ["\n", "\\"]},
        rollout_id=uid("rollout"),
        stage=2,
        idempotency_key=uid("key"),
        num_prompt_tokens=12,
        license="Apache-2.0",
        eval_only=True,
    )
    store(sessions, claim(sessions), messages(sent))
    with sessions() as session:
        row = session.scalars(select(ResponseRow)).one()
    for name in Response.__struct_fields__:
        if name not in ("schema_version", "messages"):
            assert getattr(row, name) == getattr(sent, name), name
    assert row.messages == [MESSAGE]


@pytest.mark.usefixtures("by")
def test_every_field_of_feedback_comes_back_as_it_was_sent(sessions: Sessions) -> None:
    sent = feedback(
        "choice", "a", rejected=(uid("b"), uid("c")), reasons=(Reason.TOO_LONG, Reason.STYLE), signed=False, text="a\\b"
    )
    store(sessions, claim(sessions), messages(sent))
    with sessions() as session:
        row = session.scalars(select(FeedbackEventRow)).one()
        state = session.scalars(select(FeedbackStateRow)).one()
    for name in Feedback.__struct_fields__:
        if name not in ("schema_version", "rejected", "reasons"):
            assert getattr(row, name) == getattr(sent, name), name
    assert (tuple(row.rejected), tuple(row.reasons)) == (sent.rejected, sent.reasons)
    assert (state.subject_id, state.slot, state.event_id) == (uid("a"), "choice", sent.event_id)


@pytest.mark.usefixtures("by")
def test_a_batch_stored_again_adds_nothing(sessions: Sessions) -> None:
    records = [response("a"), feedback("thumbs", "a", value=1), feedback("edit", "a", text="better")]
    first = store(sessions, claim(sessions), messages(*records))
    again = store(sessions, claim(sessions), messages(*records, *records, start=10))
    assert (first.num_new, again.num_new) == (3, 0)
    assert (count(sessions, ResponseRow), count(sessions, FeedbackEventRow)) == (1, 2)


def test_the_last_word_wins_whatever_arrives_last(sessions: Sessions) -> None:
    old, new = feedback("thumbs", "a", value=1, second=1), feedback("thumbs", "a", value=-1, second=2)
    claims = claim(sessions)
    store(sessions, claims, messages(new))
    store(sessions, claims, messages(old, start=1))
    with sessions() as session:
        assert session.scalars(select(FeedbackStateRow.value)).all() == [-1]


def test_two_words_in_one_batch_leave_the_later_one(sessions: Sessions) -> None:
    batch = [feedback("thumbs", "a", value=v, second=s) for v, s in ((1, 3), (0, 9), (-1, 5))]
    store(sessions, claim(sessions), messages(*batch))
    with sessions() as session:
        assert session.scalars(select(FeedbackStateRow.value)).all() == [0]


def test_an_outcome_speaks_of_the_narrowest_subject_that_it_names(sessions: Sessions) -> None:
    store(
        sessions,
        claim(sessions),
        messages(
            feedback("outcome", "a", name="resolved", value=1, conversation_id=uid("c")),
            feedback("outcome", None, name="resolved", value=1, conversation_id=uid("c")),
            feedback("outcome", None, name="retained", value=0),
        ),
    )
    with sessions() as session:
        rows = session.execute(select(FeedbackStateRow.subject_id, FeedbackStateRow.slot)).all()
    assert set(map(tuple, rows)) == {
        (uid("a"), "outcome:resolved"),
        (uid("c"), "outcome:resolved"),
        (uid("ann"), "outcome:retained"),
    }


def test_new_answers_and_new_feedback_mark_their_turns(sessions: Sessions) -> None:
    claims = claim(sessions)
    store(sessions, claims, messages(response("a", turn="t1"), feedback("thumbs", "late", value=1)))
    with sessions() as session:
        assert set(session.scalars(select(DirtyTurnRow.turn_id))) == {uid("t1"), uid("late")}


def test_comments_and_outcomes_mark_nothing(sessions: Sessions) -> None:
    comment = feedback("comment", "a", text="thanks")
    store(sessions, claim(sessions), messages(comment, feedback("outcome", "a", name="resolved", value=1)))
    assert count(sessions, DirtyTurnRow) == 0


def test_a_newer_owner_fences_the_old_one_and_nothing_of_its_batch_stays(sessions: Sessions) -> None:
    zombie = claim(sessions, "zombie")
    successor = claim(sessions, "successor")
    with pytest.raises(Fenced, match="newer owner"):
        store(sessions, zombie, messages(response("a"), b"broken"))
    assert (count(sessions, ResponseRow), count(sessions, DeadLetterRow), count(sessions, DirtyTurnRow)) == (0, 0, 0)
    assert store(sessions, successor, messages(response("a"))).num_new == 1


def test_one_fenced_partition_fences_the_whole_batch(sessions: Sessions) -> None:
    old = claim(sessions)
    with sessions.begin() as session:
        claim_partitions(session, GROUP, "other", {FEEDBACK: 0})
    with pytest.raises(Fenced, match="1 of 2"):
        store(sessions, old, messages(response("a"), feedback("thumbs", "a", value=1)))
    assert count(sessions, ResponseRow) == 0


def test_a_claim_goes_on_where_the_last_owner_committed(sessions: Sessions) -> None:
    store(sessions, claim(sessions), messages(response("a"), response("b")))
    claims = claim(sessions, "next")
    assert claims == {RESPONSES: Claim(2, 2), FEEDBACK: Claim(2, 0)}


def test_an_offset_never_goes_back(sessions: Sessions) -> None:
    claims = claim(sessions)
    store(sessions, claims, messages(response("a"), start=7))
    with pytest.raises(Fenced):
        store(sessions, claims, messages(response("b"), start=7))
    with sessions() as session:
        moved = select(ConsumerOffsetRow.next_offset).where(ConsumerOffsetRow.topic == RESPONSES_TOPIC)
        assert session.scalar(moved) == 8


def test_another_life_of_the_broker_starts_at_its_own_beginning(sessions: Sessions) -> None:
    store(sessions, claim(sessions), messages(response("a"), start=41))
    with sessions.begin() as session:
        claims = claim_partitions(session, Group("test", "broker-2"), "one", {RESPONSES: 0})
    assert claims == {RESPONSES: Claim(1, 0)}


def test_messages_below_the_stored_offset_are_left_out() -> None:
    batch = sort_messages(messages(response("a"), response("b"), response("c")), {RESPONSES: Claim(1, 2)})
    assert [item.message.offset for item in batch.good] == [2]


def test_what_only_the_database_refuses_is_cut_out_alone(sessions: Sessions) -> None:
    records = [response(f"r{n}") for n in range(20)]
    records[13] = response("r13", num_prompt_tokens=1 << 40)
    records[14] = response("r14", num_completion_tokens=1 << 40)
    outcome = store(sessions, claim(sessions), messages(*records))
    assert (outcome.num_new, count(sessions, ResponseRow)) == (18, 18)
    with sessions() as session:
        letters = session.execute(select(DeadLetterRow.offset, DeadLetterRow.reason, DeadLetterRow.body)).all()
    assert [tuple(row) for row in letters] == [(n, "database", encode(records[n])) for n in (13, 14)]


def test_a_refused_message_keeps_its_bytes_coordinates_and_reason(sessions: Sessions) -> None:
    store(sessions, claim(sessions), messages(response("a"), b'{"kind": "thumbs\x00', response("b")))
    with sessions() as session:
        letter = session.scalars(select(DeadLetterRow)).one()
    assert (letter.topic, letter.partition, letter.offset, letter.incarnation) == (FEEDBACK_TOPIC, 0, 1, "broker-1")
    assert (letter.body, letter.key, letter.reason) == (b'{"kind": "thumbs\x00', b"key", "not_json")
    assert letter.detail
    assert count(sessions, ResponseRow) == 2


def test_a_database_that_fails_otherwise_blames_no_message(sessions: Sessions) -> None:
    claims = claim(sessions)
    with sessions.begin() as session:
        session.execute(text("ALTER TABLE response RENAME COLUMN completion TO renamed"))
    with pytest.raises(Exception, match="completion"):
        store(sessions, claims, messages(response("a")))
    assert count(sessions, DeadLetterRow) == 0


def test_a_mark_that_ingest_holds_is_not_taken_before_its_rows_are_visible(sessions: Sessions) -> None:
    """Otherwise a worker would derive without the new rows, and the mark would be gone."""
    claims = claim(sessions)
    store(sessions, claims, messages(response("a")))
    with sessions() as writing:
        writing.begin()
        batch = sort_messages(messages(response("b", second=1), start=5), claims)
        store_batch(writing, GROUP, batch)
        with sessions.begin() as session:
            assert derive_batch(session, Pairs())[0] == 0
        writing.commit()
    with sessions.begin() as session:
        num_turns, changes = derive_batch(session, Pairs())
    assert num_turns == 1
    assert [change.source for change in changes] == ["regenerate"]


@pytest.mark.usefixtures("by")
def test_what_a_forgotten_person_sent_does_not_come_back_with_old_messages(sessions: Sessions) -> None:
    records = [
        response("a", parameters={"stop": ["x"]}),
        feedback("edit", "a", text="private"),
        response("b", user="bob"),
    ]
    store(sessions, claim(sessions), messages(*records))
    with sessions.begin() as session:
        erase_user(session, uid("ann"), actor="test", now=at(99))
    with sessions.begin() as session:
        session.execute(text("DELETE FROM response"))
        claims = claim_partitions(session, Group("test", "broker-2"), "one", {RESPONSES: 0, FEEDBACK: 0})
        again = store_batch(session, Group("test", "broker-2"), sort_messages(messages(*records), claims))
        assert again.stored[0].by_kind == {"response": 2}
    with sessions() as session:
        rows = session.execute(select(ResponseRow.completion, ResponseRow.messages, ResponseRow.parameters)).all()
    assert sorted(map(tuple, rows)) == [("[erased]", [], {}), ("answer b", [MESSAGE], {})]
    assert (count(sessions, FeedbackEventRow), count(sessions, FeedbackStateRow)) == (0, 0)


def test_erased_answers_make_no_pairs_and_no_labels(sessions: Sessions) -> None:
    records = [response("a"), response("b", second=1), feedback("thumbs", "b", user="bob", value=1)]
    store(sessions, claim(sessions), messages(*records))
    with sessions.begin() as session:
        assert len(derive_batch(session, Pairs())[1]) == 2
        erase_user(session, uid("ann"), actor="test", now=at(99))
        mark_dirty(session, [uid("turn")])
        assert [change.change for change in derive_batch(session, Pairs())[1]] == ["retracted"]


def test_an_erasure_waits_for_open_batches_and_then_reaches_their_rows(sessions: Sessions) -> None:
    claims = claim(sessions)
    raw = messages(response("a"), feedback("edit", "a", text="private"))
    with ThreadPoolExecutor(1) as pool, sessions() as writing:
        store_batch(writing, GROUP, sort_messages(raw, claims))
        erasing = pool.submit(erase, sessions)
        with pytest.raises(TimeoutError):
            erasing.result(0.5)
        writing.commit()
        counts = erasing.result(30)
    assert (counts["responses"], counts["feedback_events"], counts["feedback_states"]) == (1, 1, 1)
    assert (count(sessions, FeedbackEventRow), count(sessions, FeedbackStateRow)) == (0, 0)


def test_an_erasure_waits_for_pairs_that_are_being_written(sessions: Sessions) -> None:
    store(sessions, claim(sessions), messages(response("a"), feedback("edit", "a", text="answer a, but private")))
    with ThreadPoolExecutor(1) as pool, sessions() as writing:
        assert len(derive_batch(writing, Pairs())[1]) == 1
        erasing = pool.submit(erase, sessions)
        with pytest.raises(TimeoutError):
            erasing.result(0.5)
        writing.commit()
        assert erasing.result(30)["pairs"] == 1


def test_a_batch_that_begins_during_an_erasure_waits_and_leaves_the_person_out(sessions: Sessions) -> None:
    claims = claim(sessions)
    with ThreadPoolExecutor(1) as pool, sessions() as erasing:
        erase_user(erasing, uid("ann"), actor="test", now=at(99))
        raw = messages(response("a"), feedback("edit", "a", text="private"))
        storing = pool.submit(store, sessions, claims, raw)
        with pytest.raises(TimeoutError):
            storing.result(0.5)
        erasing.commit()
        storing.result(30)
    assert count(sessions, FeedbackEventRow) == 0
    with sessions() as session:
        assert session.scalars(select(ResponseRow.completion)).all() == ["[erased]"]


def erase(sessions: Sessions) -> dict[str, int]:
    with sessions.begin() as session:
        return erase_user(session, uid("ann"), actor="test", now=at(99))


@pytest.mark.usefixtures("by")
def test_an_event_that_a_neighbour_stores_at_the_same_time_is_one_row_and_a_duplicate(sessions: Sessions) -> None:
    """Our look cannot see it, and our COPY meets it: the batch is tried again. An INSERT waits for it."""
    twin, mine = feedback("thumbs", "a", value=1), feedback("thumbs", "b", value=1)
    ours = claim(sessions)
    with sessions.begin() as session:
        theirs = claim_partitions(session, Group("other", "broker-1"), "two", {FEEDBACK: 0})
    with ThreadPoolExecutor(1) as pool, sessions() as neighbour:
        store_batch(neighbour, Group("other", "broker-1"), sort_messages(messages(twin), theirs))
        storing = pool.submit(store, sessions, ours, messages(mine, twin, b"poison"))
        with pytest.raises(TimeoutError):
            storing.result(0.5)
        neighbour.commit()
        outcome = storing.result(30)
    assert (outcome.num_new, len(outcome.refused)) == (1, 1)
    assert (count(sessions, FeedbackEventRow), count(sessions, DeadLetterRow)) == (2, 1)


@pytest.mark.usefixtures("by")
def test_a_number_that_no_column_holds_is_cut_out_alone(sessions: Sessions) -> None:
    records = [response(f"r{n}") for n in range(5)]
    records[3] = response("r3", num_prompt_tokens=1 << 70)
    outcome = store(sessions, claim(sessions), messages(*records))
    assert (outcome.num_new, [error.reason for _, error in outcome.refused]) == (4, ["database"])


def test_the_same_event_with_another_time_is_one_row(sessions: Sessions) -> None:
    first, again = (feedback("thumbs", "a", value=v, second=s, event_id=uid("e")) for v, s in ((1, 5), (-1, 90)))
    claims = claim(sessions)
    store(sessions, claims, messages(first, again))
    store(sessions, claims, messages(again, start=5))
    with sessions() as session:
        assert session.execute(select(FeedbackEventRow.value, FeedbackEventRow.occurred_at)).all() == [(1.0, at(5))]
        assert session.scalars(select(FeedbackStateRow.value)).all() == [1.0]
