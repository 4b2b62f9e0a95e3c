"""Where reading begins, and what stops it."""

from typing import Any
from uuid import uuid4

import pytest

from hone.errors import Conflict
from hone.health import Pulse
from hone.store.offsets import Claim, Group, Partition, Step
from ingest.batch import Batch
from ingest.breaker import Breaker
from ingest.consumer import Ingest, jumped, start_offset

P = Partition("topic", 3)


@pytest.mark.parametrize("stored", [5, 7, 9])
def test_reading_begins_at_the_stored_offset_between_the_watermarks(stored: int) -> None:
    assert start_offset(P, stored, 5, 9, "stop") == stored


def test_messages_that_retention_took_stop_it_and_the_gap_is_named() -> None:
    with pytest.raises(Conflict, match=r"topic/3: offsets 5 to 7 are gone .* ingest.on_retention_gap = 'continue'"):
        start_offset(P, 5, 8, 20, "stop")


def test_with_the_policy_continue_it_begins_after_the_gap() -> None:
    assert start_offset(P, 5, 8, 20, "continue") == 8


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_topic_that_ends_before_the_stored_offset_is_another_one_under_any_policy(policy: str) -> None:
    with pytest.raises(Conflict, match="ends at offset 4, but 5 is stored: the topic was created again"):
        start_offset(P, 5, 0, 4, policy)


def ingest() -> Ingest:
    """One that has claimed offset 10 of `P`; its source and sessions are never used here."""
    nothing: Any = None
    return Ingest(
        source=nothing,
        sessions=nothing,
        group=Group("g", "i"),
        owner=uuid4().hex,
        max_rows=1,
        poll_timeout_s=0.1,
        on_retention_gap="stop",
        breaker=Breaker(0.5),
        pulse=Pulse(),
        claims={P: Claim(1, 10)},
        unread={P},
    )


def batch(first: int) -> Batch:
    return Batch(steps={P: Step(1, first, first + 1)})


def test_a_first_message_at_the_claimed_offset_is_taken() -> None:
    assert not jumped(ingest(), batch(10))


def test_a_first_message_beyond_it_is_read_again_and_believed_the_second_time() -> None:
    program = ingest()
    assert jumped(program, batch(15))
    assert jumped(program, batch(12)), "the message at 15 was left over from before the claim"
    assert not jumped(program, batch(12))


def test_a_gap_later_in_the_log_is_legal() -> None:
    program = ingest()
    program.unread.clear()
    assert not jumped(program, batch(15))
