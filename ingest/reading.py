"""What the loop needs of whatever it reads: a consumer group, a whole topic, or a file."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from hone.store.offsets import Partition
from ingest.batch import RawMessage


class Reading(Protocol):
    """Partitions come as `unclaimed`, and are read from where `read_from` says. See `ingest.source.Source`."""

    may_hold_old: bool
    "Whether a message that was read before the last `read_from` may come after it."
    unclaimed: set[Partition]
    positions: dict[Partition, int]

    def read_from(self, positions: Mapping[Partition, int]) -> None:
        """Read the claimed partitions from these offsets on."""

    def release(self) -> None:
        """Stop reading; everything that was read from is unclaimed again."""

    def rejoin(self) -> None:
        """Begin anew after somebody else claimed what was ours."""

    def poll(self, max_messages: int, timeout_s: float) -> list[RawMessage]:
        """Return messages of partitions that are being read."""

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that there is, and the one after the last."""

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Return the ids of topics that have one."""

    def num_behind(self, partition: Partition, next_offset: int) -> int | None:
        """Return how many messages wait, where that is known."""

    def hint(self, positions: Mapping[Partition, int]) -> None:
        """Note what has been committed."""

    def close(self) -> None:
        """Let go of everything."""
