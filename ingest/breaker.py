"""A circuit breaker: many invalid messages in a row mean a broken producer, not broken messages."""

from collections import deque

from hone.errors import HoneError

WINDOW_MESSAGES = 1000


class Breaker:
    """Watches the share of invalid messages over the last batches, at least WINDOW_MESSAGES of them."""

    def __init__(self, max_invalid_share: float) -> None:
        self.max_invalid_share = max_invalid_share
        self.batches: deque[tuple[int, int]] = deque()

    def check(self, num_messages: int, num_invalid: int) -> None:
        """Judge a batch before it is stored.

        Raises:
            HoneError: the share is too large; nothing of this batch may be stored, so that a repaired ingest reads it.
        """
        total = num_messages + sum(messages for messages, _ in self.batches)
        invalid = num_invalid + sum(bad for _, bad in self.batches)
        if total >= WINDOW_MESSAGES and invalid > self.max_invalid_share * total:
            raise HoneError(
                f"{invalid} of the last {total} messages are invalid, more than ingest.max_invalid_share = "
                f"{self.max_invalid_share:g}: repair the producer (the table dead_letter has the reasons), or raise it"
            )

    def count(self, num_messages: int, num_invalid: int) -> None:
        """Remember a batch that was stored, and forget those that the window no longer needs."""
        self.batches.append((num_messages, num_invalid))
        total = sum(messages for messages, _ in self.batches)
        while total - self.batches[0][0] >= WINDOW_MESSAGES:
            total -= self.batches.popleft()[0]
