"""Finds again what a replay sent: events and answers by id, those among the dead letters, and what came of them."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC

FIND_EVENTS = "SELECT event_id, turn_id FROM feedback_event WHERE event_id = ANY(CAST(:ids AS uuid[]))"
FIND_ANSWERS = "SELECT response_id, turn_id FROM response WHERE response_id = ANY(CAST(:ids AS uuid[]))"
FIND_REFUSED = "SELECT body FROM dead_letter WHERE topic = ANY(:topics) AND body IS NOT NULL"

TURNS_BY_LICENSE = """
SELECT license, eval_only, count(DISTINCT turn_id) AS turns, count(*) AS answers
FROM response WHERE turn_id = ANY(CAST(:ids AS uuid[])) GROUP BY license, eval_only ORDER BY license, eval_only
"""
PAIRS_BY_SOURCE = """
SELECT source, count(*) FROM preference_pair
WHERE active AND turn_id = ANY(CAST(:ids AS uuid[])) GROUP BY source ORDER BY source
"""
COUNT_DIRTY = """
SELECT count(*) FROM dirty_turn WHERE turn_id = ANY(CAST(:ids AS uuid[]))
   OR turn_id IN (SELECT response_id FROM response WHERE turn_id = ANY(CAST(:ids AS uuid[])))
"""


@dataclass(frozen=True)
class LicenseCount:
    """Stored turns and answers under one licence."""

    license: str | None
    eval_only: bool
    turns: int
    answers: int


def find_events(session: Session, event_ids: Collection[UUID]) -> dict[UUID, UUID | None]:
    """Return those of the events that are stored, with their turns."""
    return {event: turn for event, turn in session.execute(text(FIND_EVENTS), {"ids": texts(event_ids)})}


def find_answers(session: Session, response_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Return those of the answers that are stored, with their turns."""
    return {answer: turn for answer, turn in session.execute(text(FIND_ANSWERS), {"ids": texts(response_ids)})}


def find_refused(session: Session, ids: Collection[UUID]) -> set[UUID]:
    """Return those of the events and answers that became dead letters. Reads all bodies of the dead letters."""
    wanted, found = set(ids), set()
    for (body,) in session.execute(text(FIND_REFUSED), {"topics": [RESPONSES_TOPIC, FEEDBACK_TOPIC]}):
        found.update(named_ids(bytes(body)) & wanted)
    return found


def named_ids(body: bytes) -> set[UUID]:
    """Return the event that a message is, or else the answer; none where it cannot be read."""
    try:
        fields = json.loads(body)
        return {UUID(fields["event_id"] if "event_id" in fields else fields["response_id"])}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def count_licenses(session: Session, turns: Iterable[UUID]) -> list[LicenseCount]:
    """Return turns and answers by licence."""
    return [LicenseCount(*row) for row in session.execute(text(TURNS_BY_LICENSE), {"ids": texts(turns)})]


def count_pairs_of(session: Session, turns: Iterable[UUID]) -> dict[str, int]:
    """Return the active pairs of the turns by source."""
    return {source: number for source, number in session.execute(text(PAIRS_BY_SOURCE), {"ids": texts(turns)})}


def count_dirty(session: Session, turns: Iterable[UUID]) -> int:
    """Return how many marks of these turns still wait for the pair worker."""
    return int(session.scalar(text(COUNT_DIRTY), {"ids": texts(turns)}) or 0)


def texts(ids: Iterable[UUID]) -> Sequence[str]:
    """Return the ids as Postgres reads an array of them."""
    return [str(i) for i in ids]
