"""Answers and feedback on their way into the tables: what is new by its key goes straight in, many rows by COPY.

Looking first which keys are there, then COPY of the others, costs less than COPY into a temporary table and INSERT …
ON CONFLICT from it. A key that a neighbour stores between the look and the COPY makes the COPY fail: the caller rolls
back to its savepoint, and looks again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.records import Feedback, Response
from hone.store.copy_text import EMPTY, ENCODER, array, copy_rows, insert_new_rows, uuid_array
from hone.store.erasure import ERASED, Forgotten

RESPONSE_COLUMNS = (
    *("response_id", "conversation_id", "turn_id", "user_id", "messages", "completion", "model_version", "track"),
    *("rollout_id", "stage", "propensity", "duel", "fallback", "parameters", "finish_reason", "completed"),
    *("idempotency_key", "latency_ms", "first_byte_ms", "num_prompt_tokens", "num_completion_tokens", "license"),
    *("eval_only", "created_at"),
)
FEEDBACK_COLUMNS = (
    *("event_id", "kind", "response_id", "conversation_id", "turn_id", "user_id", "value", "text", "name"),
    *("rejected", "reasons", "occurred_at", "received_at", "signed"),
)

LOOK = text("""
SELECT 'event', event_id FROM feedback_event WHERE event_id = ANY(CAST(:events AS uuid[]))
UNION ALL SELECT 'answer', response_id FROM response WHERE response_id = ANY(CAST(:answers AS uuid[]))
""")

# Only rows that are new may move the state: the state is then a function of `feedback_event`, whatever a second event
# with the same id says. Outcomes may have no response: then they speak of a conversation or a user.
MOVE_STATE = text("""
WITH named AS (
    SELECT *, coalesce(response_id, conversation_id, user_id) AS subject_id,
           CASE WHEN kind IN ('signal', 'outcome') THEN kind || ':' || name ELSE kind END AS slot
    FROM feedback_event WHERE event_id = ANY(CAST(:events AS uuid[]))
), latest AS (
    SELECT DISTINCT ON (subject_id, slot, user_id) * FROM named
    ORDER BY subject_id, slot, user_id, occurred_at DESC, event_id DESC
)
INSERT INTO feedback_state AS held (subject_id, slot, user_id, turn_id, value, text, rejected, reasons,
                                    occurred_at, event_id, signed)
SELECT subject_id, slot, user_id, turn_id, value, text, rejected, reasons, occurred_at, event_id, signed FROM latest
ON CONFLICT (subject_id, slot, user_id) DO UPDATE SET
    turn_id = excluded.turn_id, value = excluded.value, text = excluded.text, rejected = excluded.rejected,
    reasons = excluded.reasons, occurred_at = excluded.occurred_at, event_id = excluded.event_id,
    signed = excluded.signed
WHERE (excluded.occurred_at, excluded.event_id) > (held.occurred_at, held.event_id)
""")

# A mark that is there already is locked by the update that changes nothing: until we commit no pair worker can take
# it, derive pairs without our rows, and leave nothing behind. The oldest time stays, so that the age is honest.
MARK_DIRTY = text("""
INSERT INTO dirty_turn (turn_id) SELECT DISTINCT id FROM unnest(CAST(:ids AS uuid[])) AS id ORDER BY id
ON CONFLICT (turn_id) DO UPDATE SET marked_at = dirty_turn.marked_at
""")

Record = TypeVar("Record", Response, Feedback)

FEW_ROWS = 20
"""From so many on COPY after a look costs no more than INSERT, which takes two thirds for one row: see benchmarks."""

KINDS_WITHOUT_PAIRS = frozenset({"outcome", "comment"})


@dataclass(frozen=True)
class Stored:
    """What one call added; what it was given beyond that was there already."""

    by_kind: Counter[str]
    "Number of new rows, by feedback kind, and `response`; people who asked to be forgotten have none."
    touched: Sequence[UUID]
    "Turns of new answers, and answers with new feedback: what `mark_dirty` takes. May repeat."

    @property
    def num_rows(self) -> int:
        """Return the number of new rows."""
        return self.by_kind.total()


def store_events(
    session: Session,
    responses: Sequence[Response],
    feedback: Sequence[Feedback],
    forgotten: Forgotten | None = None,
) -> Stored:
    """Insert what is new and bring `feedback_state` to the last word. Idempotent; any order; marks nothing dirty.

    A message may be read long after its author was forgotten, or again from the start of the log: what erasure took
    away must not come back. The answer stays as a fact without its texts, as erasure leaves it; feedback is not stored.

    Raises:
        psycopg2.Error, sqlalchemy.exc.DBAPIError: see `hone.store.faults`; on a data fault nothing of the call stays
            if the caller opened a savepoint before it.
        OverflowError: an integer has more than 64 bits.
    """
    answers, events = append_new(session, responses, feedback, forgotten or Forgotten())
    if events:
        session.execute(MOVE_STATE, {"events": uuid_array(event.event_id for event in events)})
    by_kind: Counter[str] = Counter(event.kind for event in events)
    if answers:
        by_kind["response"] = len(answers)
    touched = [answer.turn_id for answer in answers]
    touched += [event.response_id for event in events if event.response_id and event.kind not in KINDS_WITHOUT_PAIRS]
    return Stored(by_kind, touched)


def append_new(
    session: Session, responses: Sequence[Response], feedback: Sequence[Feedback], forgotten: Forgotten
) -> tuple[list[Response], list[Feedback]]:
    """Store the rows that are new, in the order of their keys so that neighbours never wait in a circle; return them.

    Few by INSERT … ON CONFLICT DO NOTHING, many by COPY after a look.
    """
    forgotten.refresh(session)
    # Integers hash and compare many times faster than uuids. Of several events with one key the first counts.
    answers = by_key({answer.response_id.int: answer for answer in reversed(responses)})
    said = [event for event in feedback if event.user_id.int not in forgotten.users] if forgotten.users else feedback
    events = by_key({event.event_id.int: event for event in reversed(said)})
    if len(answers) + len(events) < FEW_ROWS:
        new_answers = insert_new(session, "response", RESPONSE_COLUMNS, answers, lambda a: response_row(a, forgotten))
        return new_answers, insert_new(session, "feedback_event", FEEDBACK_COLUMNS, events, feedback_row)
    wanted = {
        "events": uuid_array(event.event_id for event in events.values()),
        "answers": uuid_array(answer.response_id for answer in answers.values()),
    }
    for kind, held in session.execute(LOOK, wanted):
        (events if kind == "event" else answers).pop(held.int)
    if answers:
        copy_rows(session, "response", RESPONSE_COLUMNS, [response_row(a, forgotten) for a in answers.values()])
    if events:
        copy_rows(session, "feedback_event", FEEDBACK_COLUMNS, list(map(feedback_row, events.values())))
    return list(answers.values()), list(events.values())


def insert_new(
    session: Session,
    table: str,
    columns: Sequence[str],
    records: dict[int, Record],
    row_of: Callable[[Record], tuple[object, ...]],
) -> list[Record]:
    """Insert the records that are new, by their keys; return them."""
    if not records:
        return []
    new = insert_new_rows(session, table, columns, list(map(row_of, records.values())))
    return [record for key, record in records.items() if key in new]


def by_key(records: dict[int, Record]) -> dict[int, Record]:
    """Return the records in the order of their keys; keys alone are sorted faster than pairs."""
    return {key: records[key] for key in sorted(records)}


def mark_dirty(session: Session, ids: Iterable[UUID]) -> None:
    """Ask for the pairs of these turns to be derived again; an id may also be that of an answer in the turn.

    An answer's id stands for its turn because feedback may arrive first, when nobody knows the turn.
    Call it last in the transaction: it waits for a pair worker that is just taking one of the marks.
    """
    marked = list(ids)
    if marked:
        session.execute(MARK_DIRTY, {"ids": uuid_array(marked)})


def response_row(answer: Response, forgotten: Forgotten) -> tuple[object, ...]:
    """Return the answer as RESPONSE_COLUMNS; of a person who was forgotten without its texts."""
    messages, completion, parameters = "[]", ERASED, "{}"
    if answer.user_id.int not in forgotten.users:
        messages, completion = ENCODER.encode(answer.messages).decode(), answer.completion
        parameters = ENCODER.encode(answer.parameters).decode()
    return (
        *(answer.response_id, answer.conversation_id, answer.turn_id, answer.user_id, messages, completion),
        *(answer.model_version, answer.track, answer.rollout_id, answer.stage, answer.propensity, answer.duel),
        *(answer.fallback, parameters, answer.finish_reason, answer.completed, answer.idempotency_key),
        *(answer.latency_ms, answer.first_byte_ms, answer.num_prompt_tokens, answer.num_completion_tokens),
        *(answer.license, answer.eval_only, answer.created_at),
    )


def feedback_row(event: Feedback) -> tuple[object, ...]:
    """Return the event as FEEDBACK_COLUMNS."""
    return (
        event.event_id,
        event.kind,
        event.response_id,
        event.conversation_id,
        event.turn_id,
        event.user_id,
        event.value,
        event.text,
        event.name,
        array(event.rejected) if event.rejected else EMPTY,
        array(event.reasons) if event.reasons else EMPTY,
        event.occurred_at,
        event.received_at,
        event.signed,
    )
