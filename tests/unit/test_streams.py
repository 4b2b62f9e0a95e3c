"""Messages of another shape become the records that the gateway would have made, or are refused with the place."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from hone import ids
from hone.errors import ConfigError, InvalidEvent
from hone.records import FEEDBACK_TOPIC, Feedback, FeedbackKind, Message, Reason, Response, Track
from hone.settings import Settings
from hone.tokens import Claims
from ingest.streams.book import open_book
from ingest.streams.config import read_streams
from tests.support.events import encode, feedback, uid
from tests.support.streams import ANSWER, KEY, RATING, RING, book, feedback_stream, message, read

EXAMPLE = Path(__file__).parents[2] / "configs" / "streams.toml"
PLAIN = {"on": str(uid("a")), "at": "2026-01-05T12:00:00Z"}


def example() -> Any:
    return open_book(Settings(identity_key=KEY.hex(), ingest={"streams": EXAMPLE}))  # type: ignore[arg-type]


def refusal(toml: str, body: Any, **about: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        read(toml, body, **about)
    return caught.value


def test_the_example_maps_its_rating() -> None:
    (event,) = example().decode(message(RATING))
    assert isinstance(event, Feedback)
    assert (event.kind, event.value, event.signed) == (FeedbackKind.THUMBS, -1, False)
    assert event.reasons == (Reason.HALLUCINATED, Reason.OTHER)
    assert event.occurred_at == datetime(2026, 1, 5, 12, 0, 0, 123_000, tzinfo=UTC)
    assert event.user_id == ids.user_id(KEY, "ann"), "the gateway's pseudonym, so that erasing reaches it"


def test_the_example_maps_its_answer_and_both_meet() -> None:
    (event,) = example().decode(message(RATING))
    (answer,) = example().decode(message(ANSWER, "acme.chat.answers"))
    assert isinstance(answer, Response)
    assert answer.response_id == event.response_id
    assert answer.messages == (Message("user", "Hi"),)
    assert (answer.completion, answer.model_version, answer.track) == ("Hello!", "acme-3", Track.STABLE)
    assert answer.created_at == datetime(2026, 1, 5, 12, tzinfo=UTC)
    assert answer.conversation_id == ids.conversation_id(KEY, ids.NOBODY, (), "c-1")
    assert answer.turn_id == ids.turn_id(KEY, answer.conversation_id, answer.messages)


def test_the_same_text_is_the_same_event_and_another_text_another() -> None:
    first, again, other = (example().decode(message({**RATING, "id": name}))[0] for name in ("r-1", "r-1", "r-2"))
    assert first == again
    assert first.event_id != other.event_id


def test_messages_of_other_actions_are_passed_over() -> None:
    assert example().decode(message({**RATING, "action": "viewed"})) == []


def test_a_tombstone_is_passed_over() -> None:
    assert example().decode(message(None)) == []


def test_native_messages_are_read_as_ever() -> None:
    record = feedback("thumbs", "a", value=1)
    assert list(example().decode(message(encode(record), FEEDBACK_TOPIC))) == [record]


def test_one_message_may_hold_an_answer_and_its_rating() -> None:
    both = feedback_stream(more="only = { rated = ['true'] }") + (
        '\n[streams.r]\ntopic = "t"\nrecord = "response"\n[streams.r.fields]\nresponse_id = "on"\nmessages = "q"\n'
        'completion = "a"\nmodel_version = { const = "m" }\ncreated_at = "at"'
    )
    document = {**PLAIN, "q": "Hi", "a": "Hello", "rated": True}
    event, answer = book(both).decode(message(document, "t"))
    assert (event.response_id, answer.response_id) == (uid("a"), uid("a"))
    assert len(book(both).decode(message({**document, "rated": False}, "t"))) == 1


@pytest.mark.parametrize(
    ("time", "value", "expected"),
    [
        ("s", 1767614400, datetime(2026, 1, 5, 12, tzinfo=UTC)),
        ("s", "1767614400.5", datetime(2026, 1, 5, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("ms", 1767614400001, datetime(2026, 1, 5, 12, 0, 0, 1000, tzinfo=UTC)),
        ("us", 1767614400000001, datetime(2026, 1, 5, 12, 0, 0, 1, tzinfo=UTC)),
        ("ns", 1767614400000001000, datetime(2026, 1, 5, 12, 0, 0, 1, tzinfo=UTC)),
        ("iso", "2026-01-05T14:00:00+02:00", datetime(2026, 1, 5, 12, tzinfo=UTC)),
        ("iso", "2026-01-05 12:00:00Z", datetime(2026, 1, 5, 12, tzinfo=UTC)),
    ],
)
def test_times_are_read_in_the_format_that_the_field_names(time: str, value: Any, expected: datetime) -> None:
    event = read(feedback_stream(f'occurred_at = {{ path = "at", time = "{time}" }}'), {**PLAIN, "at": value})
    assert isinstance(event, Feedback)
    assert event.occurred_at == expected


def test_a_time_without_a_zone_takes_that_of_the_field() -> None:
    toml = feedback_stream('occurred_at = { path = "at", zone = "Europe/Berlin" }')
    event = read(toml, {**PLAIN, "at": "2026-07-05T12:00:00"})
    assert event.occurred_at == datetime(2026, 7, 5, 10, tzinfo=UTC)  # type: ignore[union-attr]


def test_a_time_that_is_not_mapped_is_kafkas() -> None:
    event = read(feedback_stream('occurred_at = { kafka = "timestamp" }'), PLAIN, at_ms=1767614400000)
    assert event.occurred_at == datetime(2026, 1, 5, 12, tzinfo=UTC)  # type: ignore[union-attr]


def test_without_an_event_id_the_same_bytes_are_the_same_event_wherever_they_stand() -> None:
    toml = feedback_stream()
    first, elsewhere = (read(toml, PLAIN, at_ms=at, key=key) for at, key in ((1767614400000, b"k"), (-1, None)))
    assert first.event_id == elsewhere.event_id  # type: ignore[union-attr]
    assert read(toml, {**PLAIN, "x": 1}).event_id != first.event_id  # type: ignore[union-attr]


def test_names_in_a_path_may_be_places_in_lists_and_whole_columns() -> None:
    toml = feedback_stream('user_id = "people.1.name"')
    ann, column = ids.user_id(KEY, "ann"), {"people.1.name": "bob"}
    assert read(toml, {**PLAIN, "people": [{}, {"name": "ann"}]}).user_id == ann
    assert read(toml, {**PLAIN, **column}).user_id == ids.user_id(KEY, "bob")
    assert read(toml, {**PLAIN, "people": [1]}).user_id == ids.NOBODY


def test_numbers_as_texts_are_numbers() -> None:
    assert read(feedback_stream('value = "v"'), {**PLAIN, "v": "-1"}).value == -1  # type: ignore[union-attr]


def test_a_map_reads_booleans_and_whole_numbers_as_texts() -> None:
    toml = feedback_stream('value = { path = "v", map = { true = 1, false = -1, 5 = 1 } }')
    assert [read(toml, {**PLAIN, "v": v}).value for v in (True, False, 5, 5.0)] == [1, -1, 1, 1]  # type: ignore[union-attr]


def test_a_token_tells_everything_and_makes_the_event_signed() -> None:
    claims = Claims(uid("r"), uid("c"), uid("t"), uid("u"), datetime(2026, 2, 1, tzinfo=UTC))
    toml = feedback_stream('response_id = { path = "on", token = true }')
    event = read(toml, {**PLAIN, "on": RING.mint(claims)})
    assert isinstance(event, Feedback)
    assert (event.response_id, event.turn_id, event.user_id) == (uid("r"), uid("t"), uid("u"))
    assert event.signed


def test_a_token_that_ran_out_before_the_act_is_refused() -> None:
    claims = Claims(uid("r"), uid("c"), uid("t"), uid("u"), datetime(2026, 1, 5, 12, tzinfo=UTC) - timedelta(1))
    toml = feedback_stream('response_id = { path = "on", token = true }')
    assert refusal(toml, {**PLAIN, "on": RING.mint(claims)}).reason == "bad_token"


def test_an_outcome_of_a_person_names_no_answer() -> None:
    toml = feedback_stream('kind = { const = "outcome" }\nname = { const = "resolved" }\nuser_id = "who"')
    event = read(toml, {"at": PLAIN["at"], "who": "ann"})
    assert (event.user_id, event.response_id) == (ids.user_id(KEY, "ann"), None)


def test_an_openai_message_in_parts_is_its_text() -> None:
    parts = [{"type": "text", "text": "Look: "}, {"type": "image_url"}, {"type": "text", "text": "a cat"}]
    (answer,) = example().decode(
        message({**ANSWER, "input": [{"role": "user", "content": parts}]}, "acme.chat.answers")
    )
    assert answer.messages[0].content == "Look: a cat"


@pytest.mark.parametrize(
    ("fields", "body", "reason", "detail"),
    [
        ("", b"{", "not_json", "truncated"),
        ("", [1], "wrong_shape", "holds list"),
        ("", {"at": PLAIN["at"]}, "missing", "response_id: nothing at on"),
        ("", {"on": PLAIN["on"]}, "missing", "occurred_at: nothing at at"),
        ('kind = "what.now"', PLAIN, "missing", "kind: nothing at what.now"),
        ('kind = "k"', {**PLAIN, "k": "applause"}, "wrong_shape", "kind"),
        ('value = { path = "v", map = { up = 1 } }', {**PLAIN, "v": "sideways"}, "unmapped", "'sideways' at v"),
        ('value = { path = "v" }', {**PLAIN, "v": 7}, "bad_value", "thumbs"),
        ("", {**PLAIN, "at": "yesterday"}, "bad_timestamp", "'yesterday' at at"),
        ('occurred_at = "at"', {**PLAIN, "at": "2026-01-05T12:00:00"}, "bad_timestamp", "set zone"),
        ('occurred_at = { path = "at", time = "s" }', {**PLAIN, "at": 1767614400123}, "bad_timestamp", "1767614400123"),
        ('occurred_at = { path = "at", time = "ms" }', {**PLAIN, "at": 1767614400}, "bad_timestamp", "1970"),
        ('text = "t"', {**PLAIN, "t": "a\0b"}, "nul_character", "U+0000"),
        ('response_id = { path = "on", token = true }', PLAIN, "bad_token", "not an id of an answer"),
    ],
)
def test_what_does_not_map_is_refused_with_reason_and_place(fields: str, body: Any, reason: str, detail: str) -> None:
    error = refusal(feedback_stream(fields), body)
    assert error.reason == reason
    assert detail in error.detail


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[streams.s]\nrecord = 'feedback'\n[streams.s.fields]\nvalue = 'v'", "fields.kind is missing"),
        (feedback_stream('colour = "c"'), "colour is not a field of a feedback"),
        (feedback_stream('value = { path = "v", const = 1 }'), "exactly one of path, const and kafka"),
        (feedback_stream('value = { pfad = "v" }'), "pfad"),
        (feedback_stream('user_id = { path = "u", token = true }'), "token = true is for"),
        (feedback_stream('occurred_at = { path = "t", zone = "Mars" }'), "zone 'Mars' is not known"),
        (feedback_stream(more='format = "avro"'), "needs either registry = true or a schema file"),
        (feedback_stream(more='format = "protobuf"\nschema = "x.pb"'), "message is missing"),
        (feedback_stream(more='format = "xml"'), "xml"),
        ("[streams.s", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, toml: str, says: str) -> None:
    path = tmp_path / "streams.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError, match=says.replace("+", r"\+")) as caught:
        read_streams(path)
    assert str(path) in str(caught.value)


def test_streams_need_the_gateways_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HONE_IDENTITY_KEY"):
        open_book(Settings(ingest={"streams": EXAMPLE}))  # type: ignore[arg-type]


def test_a_trial_draws_a_key_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    found = open_book(Settings(ingest={"streams": EXAMPLE}), is_trial=True)  # type: ignore[arg-type]
    assert found.decode(message(RATING))
    assert "HONE_IDENTITY_KEY is not set" in caplog.text
    with pytest.raises(ConfigError, match="no such key"):
        open_book(Settings(identity_key="short", ingest={"streams": EXAMPLE}), is_trial=True)  # type: ignore[arg-type]


def test_a_trial_of_ids_that_are_verified_says_whose_keys_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "streams.toml"
    path.write_text(feedback_stream('response_id = { path = "on", token = true }'))
    with pytest.raises(ConfigError, match=r"stream s verifies .* HONE_TOKEN_KEYS is not set"):
        open_book(Settings(ingest={"streams": path}), is_trial=True)  # type: ignore[arg-type]


def test_hones_own_topics_cannot_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "streams.toml"
    path.write_text(feedback_stream().replace('topic = "t"', f'topic = "{FEEDBACK_TOPIC}"'))
    with pytest.raises(ConfigError, match="needs no mapping"):
        open_book(Settings(identity_key=KEY.hex(), ingest={"streams": path}))  # type: ignore[arg-type]


def test_two_formats_of_one_topic_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "streams.toml"
    avro = feedback_stream(more='format = "avro"\nschema = "x.avsc"').replace("streams.s", "streams.other")
    path.write_text(feedback_stream() + "\n" + avro)
    with pytest.raises(ConfigError, match="two formats"):
        open_book(Settings(identity_key=KEY.hex(), ingest={"streams": path}))  # type: ignore[arg-type]


def test_ids_that_are_uuids_stay(tmp_path: Path) -> None:
    event_id = "019b9000-0000-7000-8000-000000000001"
    event = read(feedback_stream('event_id = "id"'), {**PLAIN, "id": event_id})
    assert event.event_id == UUID(event_id)  # type: ignore[union-attr]
    assert msgspec.json.decode(encode(event), type=Feedback) == event
