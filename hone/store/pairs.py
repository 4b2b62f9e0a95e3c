"""Dirty turns, the rows from which their pairs are derived, and the pairs and labels themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Row, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.records import Track
from hone.store.engine import BY_INDEX
from hone.store.erasure import ERASED
from hone.store.locks import SHARE_REVISIONS, SHARE_WITH_ERASURE
from hone.store.tables import REVISIONS, FeedbackStateRow, PreferencePairRow, ResponseRow, UnaryLabelRow

COUNTED_TRACKS = frozenset({Track.STABLE, Track.CANARY, Track.REPLAY})
"""Of answers that people saw."""

PAIR_KEY = ("turn_id", "source", "chosen_id", "rejected_id", "user_id")
LABEL_KEY = ("response_id", "user_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the pair policy knows of a response."""

    response_id: UUID
    turn_id: UUID
    user_id: UUID
    completion: str
    track: str
    completed: bool
    idempotency_key: UUID | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """One person's last word in one slot about one answer."""

    subject_id: UUID
    slot: str
    user_id: UUID
    value: float | None
    text: str | None
    rejected: Sequence[UUID]
    reasons: Sequence[str]
    occurred_at: datetime
    event_id: UUID
    signed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One wanted row of `preference_pair`."""

    turn_id: UUID
    source: str
    chosen_id: UUID
    rejected_id: UUID
    user_id: UUID
    body_event_id: UUID | None
    weight: float
    signed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One wanted row of `unary_label`."""

    response_id: UUID
    user_id: UUID
    turn_id: UUID
    label: bool
    weight: float
    reasons: tuple[str, ...]
    signed: bool


@dataclass(frozen=True)
class Change:
    """What a diff did to one row: `created` (or back again), `changed` or `retracted`."""

    source: str
    change: str


# The lock that comes with the delete keeps a mark from two workers; ingest waits with its own until we commit.
# An array, and no join: with statistics of an emptier table the planner would read the whole backlog for each batch.
TAKE_DIRTY = """
DELETE FROM dirty_turn WHERE turn_id = ANY(ARRAY(
    SELECT turn_id FROM dirty_turn ORDER BY marked_at LIMIT :limit FOR UPDATE SKIP LOCKED
)) RETURNING turn_id
"""

LOCK_TURNS = "SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS bigint[])) AS key"


def begin_pair_transaction(session: Session) -> None:
    """Call it first: plans that use the indexes, and no erasure and no watermark before this transaction ends."""
    session.execute(text(f"{BY_INDEX}; {SHARE_WITH_ERASURE}; {SHARE_REVISIONS}"))


def take_dirty_turns(session: Session, limit: int) -> list[UUID]:
    """Take up to `limit` marks, the oldest first, and return their turns, locked until the transaction ends.

    Whoever reads after this sees all that was committed with the marks. A mark whose answer never arrived gives an
    id that is no turn's; deriving it gives nothing.
    """
    marks = list(session.scalars(text(TAKE_DIRTY), {"limit": limit}))
    if not marks:
        return []
    resolved = session.scalars(select(ResponseRow.turn_id).where(ResponseRow.response_id.in_(marks)))
    turns = sorted({*marks, *resolved})
    lock_turns(session, turns)
    return turns


def lock_turns(session: Session, turns: Iterable[UUID]) -> None:
    """Wait until nobody else derives these turns; in one order everywhere, so that nobody waits in a circle."""
    keys = sorted({int.from_bytes(turn.bytes[:8], "big", signed=True) for turn in turns})
    session.execute(text(LOCK_TURNS), {"keys": keys})


def read_answers(session: Session, turns: Sequence[UUID]) -> list[Answer]:
    """Return every answer of the turns that still has its text."""
    columns = [getattr(ResponseRow, name) for name in Answer.__dataclass_fields__]
    query = select(*columns).where(ResponseRow.turn_id.in_(turns), ResponseRow.completion != ERASED)
    return [Answer(**row._mapping) for row in session.execute(query)]


def read_signals(session: Session, answers: Iterable[Answer]) -> list[Signal]:
    """Return everybody's last words about the answers."""
    columns = [getattr(FeedbackStateRow, name) for name in Signal.__dataclass_fields__]
    ids = [answer.response_id for answer in answers]
    return [
        Signal(**row._mapping) for row in session.execute(select(*columns).where(FeedbackStateRow.subject_id.in_(ids)))
    ]


def write_pairs(session: Session, turns: Sequence[UUID], wanted: Iterable[Pair]) -> list[Change]:
    """Make the active pairs of the turns equal to `wanted`; a row's `rev` rises only where the row changes."""
    held = session.execute(select(PreferencePairRow.__table__).where(PreferencePairRow.turn_id.in_(turns))).all()
    changed, changes = diff(held, [asdict(pair) for pair in wanted], PAIR_KEY)
    if changed:
        statement = insert(PreferencePairRow)
        fields = ("body_event_id", "weight", "signed", "active")
        updates = {name: statement.excluded[name] for name in fields}
        moved = {"rev": REVISIONS.next_value(), "updated_at": func.now()}
        session.execute(statement.on_conflict_do_update(index_elements=PAIR_KEY, set_=updates | moved), changed)
    return [Change(str(row["source"]), change) for row, change in zip(changed, changes, strict=True)]


def write_labels(session: Session, turns: Sequence[UUID], wanted: Iterable[Label]) -> list[Change]:
    """Make the active labels of the turns equal to `wanted`; a row's `rev` rises only where the row changes."""
    held = session.execute(select(UnaryLabelRow.__table__).where(UnaryLabelRow.turn_id.in_(turns))).all()
    rows = [{**asdict(label), "reasons": list(label.reasons)} for label in wanted]
    changed, changes = diff(held, rows, LABEL_KEY)
    if changed:
        statement = insert(UnaryLabelRow)
        fields = ("turn_id", "label", "weight", "reasons", "signed", "active")
        updates = {name: statement.excluded[name] for name in fields}
        moved = {"rev": REVISIONS.next_value(), "updated_at": func.now()}
        session.execute(statement.on_conflict_do_update(index_elements=LABEL_KEY, set_=updates | moved), changed)
    return [Change("label", change) for change in changes]


def diff(
    held: Sequence[Row[tuple[object, ...]]], wanted: Sequence[Mapping[str, object]], key: Sequence[str]
) -> tuple[list[dict[str, object]], list[str]]:
    """Return the rows to write so that the active ones equal `wanted`, sorted by key, and what happens to each."""
    before = {tuple(row._mapping[name] for name in key): row._mapping for row in held}
    after = {tuple(row[name] for name in key): {**row, "active": True} for row in wanted}
    writes: dict[tuple[object, ...], tuple[dict[str, object], str]] = {}
    for identity, row in after.items():
        old = before.get(identity)
        if old is None or not old["active"]:
            writes[identity] = (row, "created")
        elif any(old[name] != value for name, value in row.items()):
            writes[identity] = (row, "changed")
    for identity, old in before.items():
        if old["active"] and identity not in after:
            kept = {name: value for name, value in old.items() if name not in ("rev", "created_at", "updated_at")}
            writes[identity] = ({**kept, "active": False}, "retracted")
    ordered = [writes[identity] for identity in sorted(writes, key=str)]
    return [row for row, _ in ordered], [change for _, change in ordered]


def backlog(session: Session, now: datetime) -> tuple[int, float]:
    """Return the number of dirty turns, and the age of the oldest mark in seconds (0 when there is none)."""
    number, oldest = session.execute(text("SELECT count(*), min(marked_at) FROM dirty_turn")).one()
    return number, max(0.0, (now - oldest).total_seconds()) if oldest else 0.0


COUNT_ORPHANS = """
SELECT count(DISTINCT subject_id) FROM feedback_state AS state
WHERE signed AND occurred_at < :before AND slot NOT LIKE 'outcome:%'
  AND NOT EXISTS (SELECT FROM response WHERE response_id = state.subject_id)
"""


def count_orphans(session: Session, before: datetime) -> int:
    """Return how many answers have signed feedback older than `before` and never arrived. Reads the whole state."""
    return int(session.scalar(text(COUNT_ORPHANS), {"before": before}) or 0)
