"""A circuit breaker: a large share or a long run of invalid messages means a broken producer, not broken messages."""

from collections import deque
from collections.abc import Mapping

from hone.errors import HoneError
from hone.store.offsets import Partition

WINDOW_MESSAGES = 1000


class BreakerOpen(HoneError):
    """Too many messages are invalid; nothing of the batch was stored."""

    def __init__(self, found: str, setting: str, value: float, example: str) -> None:
        """`found` is what was seen, beyond what the setting allows; `example` is one of the messages."""
        self.found = f"{found}, more than ingest.{setting} = {value:g}; the last: {example}"
        super().__init__(
            f"{self.found}. Repair the producer, or raise the setting; then start ingest again "
            "(`hone restart ingest` where `hone up` runs)"
        )


class Breaker:
    """Watches the share of invalid messages over the last batches, at least WINDOW_MESSAGES of them, and their runs."""

    def __init__(self, max_invalid_share: float, max_invalid_run: int = WINDOW_MESSAGES) -> None:
        self.max_invalid_share = max_invalid_share
        self.max_invalid_run = max_invalid_run
        self.batches: deque[tuple[int, int]] = deque()
        self.runs: Mapping[Partition, int] = {}
        "How many invalid messages each partition ended with."

    def check(self, num_messages: int, num_invalid: int, longest_run: int = 0, example: str = "") -> None:
        """Judge a batch before it is committed; `example` is one of its invalid messages.

        Raises:
            BreakerOpen: share or run is too large; nothing of this batch may stay, so that a repaired ingest reads it.
        """
        if longest_run > self.max_invalid_run:
            raise BreakerOpen(
                f"{longest_run} messages in a row are invalid", "max_invalid_run", self.max_invalid_run, example
            )
        total = num_messages + sum(messages for messages, _ in self.batches)
        invalid = num_invalid + sum(bad for _, bad in self.batches)
        if total >= WINDOW_MESSAGES and invalid > self.max_invalid_share * total:
            found = f"{invalid} of the last {total} messages are invalid"
            raise BreakerOpen(found, "max_invalid_share", self.max_invalid_share, example)

    def count(self, num_messages: int, num_invalid: int, runs: Mapping[Partition, int] | None = None) -> None:
        """Remember a batch that was stored, and forget those that the window no longer needs."""
        self.runs = runs or {}
        self.batches.append((num_messages, num_invalid))
        total = sum(messages for messages, _ in self.batches)
        while total - self.batches[0][0] >= WINDOW_MESSAGES:
            total -= self.batches.popleft()[0]
