"""Where a consumer group stands. Offsets move in the transaction that stores the rows, guarded by an epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from hone.errors import Conflict, Fenced
from hone.store.engine import BY_INDEX
from hone.store.locks import SHARE_WITH_ERASURE


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
    letters: str | None = None
    "Under which name its dead letters are kept where a log may be read again from its start; None: the incarnation."

    @property
    def letters_name(self) -> str:
        """Return the name under which its dead letters are kept."""
        return self.letters or self.incarnation


# The rows are written in the order of the partitions, so that two claimants cannot deadlock. A zombie's open
# transaction holds its rows: the claim waits, and then reads what the zombie committed.
CLAIM = text("""
INSERT INTO consumer_offset AS held (consumer_group, incarnation, topic, partition, next_offset, epoch, owner, topic_id)
SELECT :group_name, :incarnation, topic, number, start, 1, :owner, topic_id
FROM unnest(CAST(:topics AS text[]), CAST(:numbers AS int[]), CAST(:starts AS bigint[]), CAST(:topic_ids AS text[]))
     AS p(topic, number, start, topic_id)
ORDER BY topic, number
ON CONFLICT (consumer_group, incarnation, topic, partition) DO UPDATE SET
    epoch = held.epoch + 1, owner = excluded.owner, topic_id = coalesce(held.topic_id, excluded.topic_id),
    updated_at = now()
RETURNING topic, partition, epoch, next_offset, topic_id
""")

ADVANCE = text("""
UPDATE consumer_offset AS held SET next_offset = step.next_offset, updated_at = now()
FROM unnest(CAST(:topics AS text[]), CAST(:numbers AS int[]), CAST(:epochs AS bigint[]),
            CAST(:firsts AS bigint[]), CAST(:nexts AS bigint[])) AS step(topic, number, epoch, first, next_offset)
WHERE held.consumer_group = :group_name AND held.incarnation = :incarnation
  AND held.topic = step.topic AND held.partition = step.number
  AND held.epoch = step.epoch AND held.next_offset <= step.first
""")

# A zombie that was stopped right here must not hold the rows, and with them its successor, for ever. An erasure waits
# for us, or we for it: see `hone.store.locks`.
BEGIN = text(f"{BY_INDEX}; SET LOCAL idle_in_transaction_session_timeout = '20s'; {SHARE_WITH_ERASURE}")


def claim_partitions(
    session: Session,
    group: Group,
    owner: str,
    starts: Mapping[Partition, int],
    topic_ids: Mapping[str, str] | None = None,
) -> dict[Partition, Claim]:
    """Raise the epoch of each partition and return where to read on; `starts` is used where nothing is stored yet.

    `topic_ids` are the broker's own ids of the topics, as far as it has any; the first one of a partition is kept.

    Raises:
        Conflict: the stored offset belongs to another topic of the same name. Roll back.
    """
    ordered, ids = sorted(starts), topic_ids or {}
    rows = session.execute(
        CLAIM,
        {
            "group_name": group.name,
            "incarnation": group.incarnation,
            "owner": owner,
            "topics": [p.topic for p in ordered],
            "numbers": [p.number for p in ordered],
            "starts": [starts[p] for p in ordered],
            "topic_ids": [ids.get(p.topic) for p in ordered],
        },
    ).all()
    for topic, number, _, offset, topic_id in rows:
        if topic_id != ids.get(topic, topic_id):
            raise Conflict(
                f"{topic}/{number} has the id {ids[topic]}, but the stored offset {offset} is of {topic_id}: the topic "
                "was created again. Nothing was skipped. Set HONE_KAFKA_INCARNATION to a new name to read it from its "
                "beginning"
            )
    return {Partition(topic, number): Claim(epoch, offset) for topic, number, epoch, offset, _ in rows}


def advance(session: Session, group: Group, steps: Mapping[Partition, Step]) -> None:
    """Move the offsets of the batch; call it first in the transaction, which no erasure then overtakes.

    Gaps are legal, going back is not.

    Raises:
        Fenced: somebody claimed one of the partitions since, or already stored a part of the batch. Roll back.
    """
    session.execute(BEGIN)
    ordered: Sequence[Partition] = sorted(steps)
    result = session.execute(
        ADVANCE,
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
