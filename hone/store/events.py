"""Answers and feedback on their way into the tables: staged by COPY, merged by key, so that nothing enters twice."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.records import Feedback, Response
from hone.store.copy_text import array, copy_rows, encoded, joined
from hone.store.erasure import ERASED

RESPONSE_COLUMNS = (
    *("response_id", "conversation_id", "turn_id", "user_id", "messages", "completion", "model_version", "track"),
    *(
        "rollout_id",
        "stage",
        "propensity",
        "duel",
        "fallback",
        "parameters",
        "finish_reason",
        "completed",
        "idempotency_key",
    ),
    *("latency_ms", "first_byte_ms", "num_prompt_tokens", "num_completion_tokens", "license", "eval_only"),
    "created_at",
)
FEEDBACK_COLUMNS = (
    *("event_id", "kind", "response_id", "conversation_id", "turn_id", "user_id", "value", "text", "name"),
    *("rejected", "reasons", "occurred_at", "received_at", "signed"),
)
RESPONSE_FIELDS, FEEDBACK_FIELDS = itemgetter(*RESPONSE_COLUMNS), itemgetter(*FEEDBACK_COLUMNS)

# A message may be read long after its author was forgotten, or again from the start of the log: what erasure took
# away must not come back. The answer stays as a fact without its texts, as erasure leaves it; feedback is not stored.
MERGE_RESPONSES = f"""
UPDATE stage_response SET messages = '[]', completion = :erased, parameters = '{{}}'
WHERE user_id IN (SELECT user_id FROM erasure);
INSERT INTO response ({", ".join(RESPONSE_COLUMNS)})
SELECT {", ".join(RESPONSE_COLUMNS)} FROM stage_response ORDER BY response_id
ON CONFLICT (response_id) DO NOTHING RETURNING turn_id
"""

# Only rows that are new here may move the state: the state is then a function of `feedback_event`, whatever a
# second event with the same id says. Outcomes may have no response: then they speak of a conversation or a user.
MERGE_FEEDBACK = f"""
WITH fresh AS (
    INSERT INTO feedback_event ({", ".join(FEEDBACK_COLUMNS)})
    SELECT {", ".join(FEEDBACK_COLUMNS)} FROM stage_feedback_event AS stage
    WHERE NOT EXISTS (SELECT FROM erasure WHERE erasure.user_id = stage.user_id) ORDER BY event_id
    ON CONFLICT (event_id) DO NOTHING RETURNING *
), named AS (
    SELECT *, coalesce(response_id, conversation_id, user_id) AS subject_id,
           CASE WHEN kind IN ('signal', 'outcome') THEN kind || ':' || name ELSE kind END AS slot
    FROM fresh
), latest AS (
    SELECT DISTINCT ON (subject_id, slot, user_id) * FROM named
    ORDER BY subject_id, slot, user_id, occurred_at DESC, event_id DESC
), state AS (
    INSERT INTO feedback_state AS held (subject_id, slot, user_id, turn_id, value, text, rejected, reasons,
                                        occurred_at, event_id, signed)
    SELECT subject_id, slot, user_id, turn_id, value, text, rejected, reasons, occurred_at, event_id, signed
    FROM latest
    ON CONFLICT (subject_id, slot, user_id) DO UPDATE SET
        turn_id = excluded.turn_id, value = excluded.value, text = excluded.text, rejected = excluded.rejected,
        reasons = excluded.reasons, occurred_at = excluded.occurred_at, event_id = excluded.event_id,
        signed = excluded.signed
    WHERE (excluded.occurred_at, excluded.event_id) > (held.occurred_at, held.event_id)
)
SELECT kind, response_id FROM fresh
"""

# A mark that is there already is locked by the update that changes nothing: until we commit no pair worker can take
# it, derive pairs without our rows, and leave nothing behind. The oldest time stays, so that the age is honest.
MARK_DIRTY = """
INSERT INTO dirty_turn (turn_id) SELECT id FROM unnest(CAST(:ids AS uuid[])) AS id ORDER BY id
ON CONFLICT (turn_id) DO UPDATE SET marked_at = dirty_turn.marked_at
"""

KINDS_WITHOUT_PAIRS = frozenset({"outcome", "comment"})


@dataclass(frozen=True)
class Stored:
    """What one call added; what it was given beyond that was there already."""

    by_kind: Counter[str]
    "Number of new rows, by feedback kind, and `response`; people who asked to be forgotten have none."
    touched: frozenset[UUID]
    "Turns of new answers, and answers with new feedback: what `mark_dirty` takes."

    @property
    def num_rows(self) -> int:
        """Return the number of new rows."""
        return self.by_kind.total()


def store_events(session: Session, responses: Sequence[Response], feedback: Sequence[Feedback]) -> Stored:
    """Insert what is new and bring `feedback_state` to the last word. Idempotent; any order; marks nothing dirty.

    Raises:
        psycopg2.Error, sqlalchemy.exc.DBAPIError: see `hone.store.faults`; on a data fault nothing of the call stays
            if the caller opened a savepoint before it.
    """
    by_kind: Counter[str] = Counter()
    touched: set[UUID] = set()
    if responses:
        turns = merge_responses(session, responses)
        by_kind["response"] = len(turns)
        touched.update(turns)
    if feedback:
        for kind, response_id in merge_feedback(session, feedback):
            by_kind[kind] += 1
            if response_id is not None and kind not in KINDS_WITHOUT_PAIRS:
                touched.add(response_id)
    return Stored(by_kind, frozenset(touched))


def merge_responses(session: Session, responses: Sequence[Response]) -> list[UUID]:
    """Insert the answers that are new and return their turns, one for each answer."""
    copy_rows(session, "response", RESPONSE_COLUMNS, map(response_line, responses))
    return list(session.execute(text(MERGE_RESPONSES), {"erased": ERASED}).scalars())


def merge_feedback(session: Session, feedback: Sequence[Feedback]) -> list[tuple[str, UUID | None]]:
    """Insert the events that are new, move the state, and return (kind, response) of each new event."""
    copy_rows(session, "feedback_event", FEEDBACK_COLUMNS, map(feedback_line, feedback))
    return [(kind, response_id) for kind, response_id in session.execute(text(MERGE_FEEDBACK))]


def mark_dirty(session: Session, ids: Iterable[UUID]) -> None:
    """Ask for the pairs of these turns to be derived again; an id may also be that of an answer in the turn.

    An answer's id stands for its turn because feedback may arrive first, when nobody knows the turn.
    Call it last in the transaction: it waits for a pair worker that is just taking one of the marks.
    """
    marked = sorted(set(ids))
    if marked:
        session.execute(text(MARK_DIRTY), {"ids": [str(i) for i in marked]})


def response_line(response: Response) -> str:
    """Return the answer as a line for RESPONSE_COLUMNS."""
    fields = msgspec.to_builtins(response)
    for name in ("messages", "completion", "model_version", "parameters", "finish_reason", "license"):
        fields[name] = encoded(fields[name])
    return joined(RESPONSE_FIELDS(fields))


def feedback_line(event: Feedback) -> str:
    """Return the event as a line for FEEDBACK_COLUMNS."""
    fields = msgspec.to_builtins(event)
    fields["text"], fields["name"] = encoded(event.text), encoded(event.name)
    fields["rejected"], fields["reasons"] = array(event.rejected), array(event.reasons)
    return joined(FEEDBACK_FIELDS(fields))
