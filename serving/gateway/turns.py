"""Which turns were answered lately, and by whom: what tells a regenerate from a first question while duels are on.

The database derives regenerations from stored rows and needs none of this. It is a memory of one process, bounded: what
it has forgotten, or another gateway saw, is answered by the user's own arm, as if there were no duels.
"""

from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from hone.records import Track
from serving.router import Regenerate

MAX_TURNS = 20_000


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """The first whole answer of a turn, given by the user's own arm of a rollout."""

    rollout_id: UUID
    track: Track
    idempotency_key: UUID | None


class Turns:
    """The newest turns, each until it was asked for again."""

    def __init__(self, max_turns: int = MAX_TURNS) -> None:
        self._max_turns = max_turns
        self._answered: OrderedDict[UUID, FirstAnswer | None] = OrderedDict()

    def again(self, turn_id: UUID, idempotency_key: UUID | None) -> Regenerate | None:
        """Return what this request repeats, if it is the first regenerate of its turn; a retry repeats nothing."""
        first = self._answered.get(turn_id)
        if first is None or (idempotency_key is not None and idempotency_key == first.idempotency_key):
            return None
        return Regenerate(turn_id, first.rollout_id, first.track)

    def note(self, turn_id: UUID, answer: FirstAnswer | None) -> None:
        """Remember a whole answer (None: not of the user's own arm); after a second one the turn takes no part."""
        if turn_id not in self._answered:
            self._answered[turn_id] = answer
        elif not is_retry(self._answered[turn_id], answer):
            self._answered[turn_id] = None
        self._answered.move_to_end(turn_id)
        while len(self._answered) > self._max_turns:
            self._answered.popitem(last=False)


def is_retry(first: FirstAnswer | None, answer: FirstAnswer | None) -> bool:
    """Say whether both answers belong to one request that was sent twice."""
    return first is not None and first.idempotency_key is not None and first == answer
