"""Feedback of which nothing came, and why: for people who wonder where their pairs are. Reads only."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import and_, exists, select, text
from sqlalchemy.orm import Session

from hone.edits import edit_fault
from hone.settings import Pairs
from hone.store.erasure import ERASED
from hone.store.pairs import COUNTED_TRACKS
from hone.store.tables import DirtyTurnRow, FeedbackStateRow, PreferencePairRow, ResponseRow

MAX_EDITS = 10_000
"""The newest edits without a pair; each costs some microseconds for each of its words."""


def edits_without_pair(session: Session, policy: Pairs) -> dict[str, int]:
    """Return how many of the newest edits made no pair, by the reason. Reads everybody's last words.

    `no_answer`: the answer never arrived · `not_counted`: it was not completed, nobody saw it, or it was erased ·
    `unchanged`, `too_far`: by the policy's distances · `waiting`: for the pair worker · `other`: more than eight
    answers to the turn, or the settings have changed since.
    """
    state, answer, pair = FeedbackStateRow, ResponseRow, PreferencePairRow
    is_waiting = exists().where(DirtyTurnRow.turn_id.in_([answer.turn_id, state.subject_id]))
    its_pair = and_(
        pair.turn_id == answer.turn_id,
        pair.source == "edit",
        pair.chosen_id == state.subject_id,
        pair.user_id == state.user_id,
        pair.active,
    )
    query = (
        select(state.text, answer.completion, answer.completed, answer.track, is_waiting)
        .join(answer, answer.response_id == state.subject_id, isouter=True)
        .where(state.slot == "edit", ~exists().where(its_pair))
        .order_by(state.occurred_at.desc())
        .limit(MAX_EDITS)
    )
    return dict(Counter(why_no_pair(*row, policy) for row in session.execute(query)))


def why_no_pair(
    edited: str | None, completion: str | None, completed: bool, track: str, is_waiting: bool, policy: Pairs
) -> str:
    """Return why an edit has no pair."""
    if is_waiting:
        return "waiting"
    if completion is None:
        return "no_answer"
    if not completed or track not in COUNTED_TRACKS or completion == ERASED or not completion.strip():
        return "not_counted"
    return edit_fault(completion, edited or "", policy) or "other"


@dataclass(frozen=True)
class Unanswered:
    """Feedback on answers that are not stored."""

    num_events: int
    num_answers: int
    num_unsigned: int
    "Of the events: nobody vouches that there was such an answer."


# What was stored of late lies behind an index over the order of storage.
UNANSWERED = """
SELECT count(*), count(DISTINCT response_id), count(*) FILTER (WHERE NOT signed) FROM feedback_event AS event
WHERE stored_at >= :since AND stored_at < :until AND response_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM response WHERE response.response_id = event.response_id)
"""


ARRIVAL = timedelta(minutes=10)
"""An answer may come that much later than feedback on it."""
LATELY = timedelta(days=7)


def recent_unanswered(session: Session, now: datetime) -> Unanswered:
    """Return the feedback of the last days whose answer should be there by now."""
    return count_unanswered(session, now - LATELY, now - ARRIVAL)


def count_unanswered(session: Session, since: datetime, until: datetime) -> Unanswered:
    """Return the feedback stored in a span of time whose answer is not there. It takes effect if the answer comes."""
    return Unanswered(*session.execute(text(UNANSWERED), {"since": since, "until": until}).one())
