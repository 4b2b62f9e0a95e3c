"""What becomes a record, and what becomes a dead letter with which reason."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from hone.errors import HoneError, InvalidEvent
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback
from hone.store.offsets import Claim, Partition
from ingest.batch import Batch, RawMessage, sort_messages
from ingest.breaker import Breaker
from ingest.decode import MAX_BODY_BYTES, decode
from tests.support.events import encode, feedback, response, uid


def thumb(**changes: Any) -> bytes:
    """A thumb as JSON in which some fields are replaced, or removed by `...`."""
    fields = msgspec.to_builtins(feedback("thumbs", "a", value=1)) | changes
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not ...})


@pytest.mark.parametrize(
    "record",
    [
        response("a"),
        feedback("thumbs", "a", value=0),
        feedback("edit", "a", text="better \\u0000 as six characters"),
        feedback("regenerate", "a", value=0.5),
        feedback("choice", "a", rejected=(uid("b"),)),
        feedback("comment", "a", text=""),
        feedback("signal", "a", name="copied"),
        feedback("outcome", None, name="resolved", value=1),
    ],
    ids=lambda record: getattr(record, "kind", "response"),
)
def test_a_complete_record_comes_back_equal(record: Any) -> None:
    assert decode(FEEDBACK_TOPIC if isinstance(record, Feedback) else RESPONSES_TOPIC, encode(record)) == record


def test_unknown_fields_of_a_newer_client_are_ignored() -> None:
    assert decode(FEEDBACK_TOPIC, thumb(colour="red")).schema_version == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(None, "empty", id="no body"),
        pytest.param(b"", "empty", id="an empty body"),
        pytest.param(b'{"kind": "thumbs"', "not_json", id="half a message"),
        pytest.param(b"\xff\xfe", "not_json", id="not UTF-8"),
        pytest.param(thumb(text="x").replace(b'"x"', b'"\\ud800"'), "not_json", id="half a surrogate pair"),
        pytest.param(thumb(text="x").replace(b'"x"', b'"\xed\xa0\x80"'), "not_json", id="a surrogate as bytes"),
        pytest.param(b"[" * 100_000, "wrong_shape", id="deep nesting where an object belongs"),
        pytest.param(b"[1, 2]", "wrong_shape", id="a list"),
        pytest.param(thumb(kind="applause"), "wrong_shape", id="an unknown kind"),
        pytest.param(thumb(reasons=["ugly"]), "wrong_shape", id="an unknown reason"),
        pytest.param(thumb(event_id="7"), "wrong_shape", id="an event id that is no uuid"),
        pytest.param(thumb(event_id=...), "wrong_shape", id="no event id"),
        pytest.param(thumb(value="1"), "wrong_shape", id="a number as text"),
        pytest.param(thumb(occurred_at="99999-01-01T00:00:00Z"), "wrong_shape", id="the year 99999"),
        pytest.param(thumb(occurred_at="9999-12-31T23:59:59-14:00"), "bad_timestamp", id="the year 9999"),
        pytest.param(thumb(occurred_at="0001-01-01T00:00:00Z"), "bad_timestamp", id="the year 1"),
        pytest.param(thumb(received_at="2026-01-01T00:00:00"), "bad_timestamp", id="a time without an offset"),
        pytest.param(thumb(schema_version=2), "schema_version", id="another version with the same fields"),
        pytest.param(
            thumb(schema_version=2, kind="applause"), "schema_version", id="another version with other values"
        ),
        pytest.param(thumb(text="a\0b"), "nul_character", id="a NUL in a text"),
        pytest.param(thumb(text="\\\0"), "nul_character", id="a NUL after a backslash"),
        pytest.param(thumb(value=2), "bad_value", id="two thumbs"),
        pytest.param(thumb(value=...), "bad_value", id="no thumb"),
        pytest.param(thumb(response_id=...), "bad_value", id="a thumb on nothing"),
        pytest.param(thumb(kind="edit"), "bad_value", id="an edit without a text"),
        pytest.param(thumb(kind="choice"), "bad_value", id="a choice of one"),
        pytest.param(thumb(kind="choice", rejected=[str(uid("a"))]), "bad_value", id="a choice against itself"),
        pytest.param(thumb(kind="signal"), "bad_value", id="a signal without a name"),
        pytest.param(thumb(kind="signal", name="n" * 200), "bad_value", id="a signal with a long name"),
        pytest.param(thumb(kind="outcome", name="x", value=...), "bad_value", id="an outcome without a value"),
        pytest.param(thumb(kind="regenerate", value=7), "bad_value", id="seven times the answer rendered"),
        pytest.param(thumb(text="x" * MAX_BODY_BYTES), "too_large", id="a huge body"),
    ],
)
def test_poison_is_refused_with_its_reason(body: bytes | None, reason: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        decode(FEEDBACK_TOPIC, body)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_nul_deep_in_a_response_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="nul_character"):
        decode(RESPONSES_TOPIC, encode(response("a", parameters={"stop": ["\0"]})))


def test_a_response_from_a_broken_clock_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="bad_timestamp"):
        decode(RESPONSES_TOPIC, encode(response("a", created_at=datetime(1970, 1, 1, tzinfo=UTC))))


def test_the_breaker_opens_when_more_than_its_share_of_a_thousand_is_invalid() -> None:
    breaker = Breaker(0.5)
    breaker.check(900, 900)  # too few to judge
    breaker.count(900, 900)
    with pytest.raises(HoneError, match="1000 of the last 1000"):
        breaker.check(100, 100)


def test_the_breaker_counts_a_batch_that_is_read_again_once() -> None:
    breaker = Breaker(0.5)
    for _ in range(200):
        breaker.check(10, 9)


def test_the_breaker_forgets_what_is_long_past() -> None:
    breaker = Breaker(0.5)
    breaker.count(900, 900)
    for _ in range(20):
        breaker.count(100, 10)
    breaker.check(100, 100)


P = Partition(FEEDBACK_TOPIC, 0)
GOOD = encode(feedback("thumbs", "a", value=1))


def sorted_batch(start: int, *bodies: bytes, runs: dict[Partition, int] | None = None) -> Batch:
    raw = [RawMessage(P, offset, None, body, 0) for offset, body in enumerate(bodies, start)]
    return sort_messages(raw, {P: Claim(1, 0)}, runs=runs)


def test_a_run_of_invalid_messages_is_counted_over_batches_and_ends_with_a_valid_one() -> None:
    first = sorted_batch(0, GOOD, b"x", b"y")
    second = sorted_batch(3, b"z", GOOD, b"x", runs=first.runs)
    assert (first.longest_run, second.longest_run, second.runs) == (2, 3, {P: 1})


def test_the_breaker_opens_at_a_long_run_however_small_its_share() -> None:
    breaker = Breaker(0.5, 20)
    breaker.count(10_000, 0)
    breaker.check(1000, 20, 20)
    with pytest.raises(HoneError, match="21 messages in a row are invalid"):
        breaker.check(1000, 21, 21)
