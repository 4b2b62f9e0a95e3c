"""Where a consumer group stands. Offsets move in the transaction that stores the rows, guarded by an epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.errors import Fenced


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int


class Claim(NamedTuple):
    """The right to move one partition's offset, until somebody claims it with a larger epoch."""

    epoch: int
    next_offset: int


class Step(NamedTuple):
    """One partition's part of a batch."""

    epoch: int
    first_offset: int
    next_offset: int


@dataclass(frozen=True)
class Group:
    """A consumer group on one life of a broker."""

    name: str
    incarnation: str


# The rows are written in the order of the partitions, so that two claimants cannot deadlock. A zombie's open
# transaction holds its rows: the claim waits, and then reads what the zombie committed.
CLAIM = """
INSERT INTO consumer_offset AS held (consumer_group, incarnation, topic, partition, next_offset, epoch, owner)
SELECT :group_name, :incarnation, topic, number, start, 1, :owner
FROM unnest(CAST(:topics AS text[]), CAST(:numbers AS int[]), CAST(:starts AS bigint[])) AS p(topic, number, start)
ORDER BY topic, number
ON CONFLICT (consumer_group, incarnation, topic, partition) DO UPDATE SET
    epoch = held.epoch + 1, owner = excluded.owner, updated_at = now()
RETURNING topic, partition, epoch, next_offset
"""

ADVANCE = """
UPDATE consumer_offset AS held SET next_offset = step.next_offset, updated_at = now()
FROM unnest(CAST(:topics AS text[]), CAST(:numbers AS int[]), CAST(:epochs AS bigint[]),
            CAST(:firsts AS bigint[]), CAST(:nexts AS bigint[])) AS step(topic, number, epoch, first, next_offset)
WHERE held.consumer_group = :group_name AND held.incarnation = :incarnation
  AND held.topic = step.topic AND held.partition = step.number
  AND held.epoch = step.epoch AND held.next_offset <= step.first
"""

# A zombie that was stopped right here must not hold the rows, and with them its successor, for ever.
PATIENCE = "SET LOCAL idle_in_transaction_session_timeout = '20s'"


def claim_partitions(
    session: Session, group: Group, owner: str, starts: Mapping[Partition, int]
) -> dict[Partition, Claim]:
    """Raise the epoch of each partition and return where to read on; `starts` is used where nothing is stored yet."""
    ordered = sorted(starts)
    rows = session.execute(
        text(CLAIM),
        {
            "group_name": group.name,
            "incarnation": group.incarnation,
            "owner": owner,
            "topics": [p.topic for p in ordered],
            "numbers": [p.number for p in ordered],
            "starts": [starts[p] for p in ordered],
        },
    )
    return {Partition(topic, number): Claim(epoch, offset) for topic, number, epoch, offset in rows}


def advance(session: Session, group: Group, steps: Mapping[Partition, Step]) -> None:
    """Move the offsets of the batch; call it first in the transaction. Gaps are legal, going back is not.

    Raises:
        Fenced: somebody claimed one of the partitions since, or already stored a part of the batch. Roll back.
    """
    session.execute(text(PATIENCE))
    ordered: Sequence[Partition] = sorted(steps)
    result = session.execute(
        text(ADVANCE),
        {
            "group_name": group.name,
            "incarnation": group.incarnation,
            "topics": [p.topic for p in ordered],
            "numbers": [p.number for p in ordered],
            "epochs": [steps[p].epoch for p in ordered],
            "firsts": [steps[p].first_offset for p in ordered],
            "nexts": [steps[p].next_offset for p in ordered],
        },
    )
    num_moved: int = result.rowcount  # type: ignore[attr-defined]
    if num_moved != len(steps):
        raise Fenced(
            f"{len(steps) - num_moved} of {len(steps)} partitions of group {group.name} have a newer owner: "
            "drop the batch and join the group again"
        )
