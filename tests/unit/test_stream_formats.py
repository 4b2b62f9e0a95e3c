"""Avro, Protobuf and the Schema Registry, read with confluent-kafka's own client."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pytest
from google.protobuf import descriptor_pb2

from hone import ids
from hone.errors import ConfigError, InvalidEvent, Retryable
from hone.records import Feedback
from ingest.streams.book import Book
from ingest.streams.formats import registry_client
from ingest.streams.protobuf import message_of_file, pool_of
from tests.support.events import uid
from tests.support.registry import Registry, framed, rating_file, registry, who_file
from tests.support.streams import KEY, book, feedback_stream, message

SCHEMA = {
    "type": "record",
    "name": "Rating",
    "fields": [
        {"name": "on", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "up", "type": ["null", "boolean"], "default": None},
    ],
}
AT = datetime(2026, 1, 5, 12, 0, 0, 500_000, tzinfo=UTC)
AVRO_FIELDS = 'value = { path = "up", map = { true = 1, false = -1 } }\noccurred_at = "at"'
PROTOBUF_FIELDS = 'value = "thumb_value"\nuser_id = "by.name"\noccurred_at = "at"'


@pytest.fixture
def server() -> Iterator[Registry]:
    with registry() as held:
        held.add_avro(7, SCHEMA)
        yield held


def avro(up: bool | None = True) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(SCHEMA), {"on": str(uid("a")), "at": AT, "up": up})
    return buffer.getvalue()


def protobuf(value: int) -> bytes:
    from google.protobuf import message_factory

    rating = message_factory.GetMessageClass(
        pool_of([who_file(), rating_file()]).FindMessageTypeByName("acme.Envelope.Rating")
    )(on=str(uid("a")), thumb_value=value)
    rating.by.name = "ann"
    rating.at.FromDatetime(AT)
    return bytes(rating.SerializeToString())


def of_registry(server: Registry, form: str, fields: str) -> Book:
    return book(feedback_stream(fields, f'format = "{form}"\nregistry = true'), registry_client(server.url, ""))


def only(read: Book, body: bytes) -> Feedback:
    (record,) = read.decode(message(body, "t"))
    assert isinstance(record, Feedback)
    return record


def test_avro_is_read_with_the_schema_of_its_number_which_is_asked_for_once(server: Registry) -> None:
    read = of_registry(server, "avro", AVRO_FIELDS)
    first, second = only(read, framed(7, avro(True))), only(read, framed(7, avro(False)))
    assert (first.value, second.value, first.response_id, first.occurred_at) == (1, -1, uid("a"), AT)
    assert len(server.asked) == 1


def test_a_null_of_avro_is_a_missing_value(server: Registry) -> None:
    with pytest.raises(InvalidEvent, match="bad_value"):
        only(of_registry(server, "avro", AVRO_FIELDS), framed(7, avro(None)))


def test_avro_with_a_schema_file_needs_no_registry(tmp_path: Path) -> None:
    path = tmp_path / "rating.avsc"
    path.write_text(json.dumps(SCHEMA))
    read = book(feedback_stream(AVRO_FIELDS, f'format = "avro"\nschema = "{path}"'))
    assert only(read, avro()).occurred_at == AT
    with pytest.raises(InvalidEvent, match="not_avro"):
        only(read, avro()[:-3])
    with pytest.raises(InvalidEvent, match="bytes are left"):
        only(read, avro() + b"more")


@pytest.mark.parametrize("body", [b"{}", framed(7, b"\xff\xff\xff"), framed(7, b"")], ids=["bare", "broken", "cut"])
def test_bytes_that_are_no_avro_are_refused(server: Registry, body: bytes) -> None:
    with pytest.raises(InvalidEvent, match="not_avro"):
        only(of_registry(server, "avro", AVRO_FIELDS), body)


def test_a_schema_that_the_registry_lacks_is_a_refusal(server: Registry) -> None:
    for form, body in (("avro", framed(8, avro())), ("protobuf", framed(8, protobuf(1), b"\0"))):
        with pytest.raises(InvalidEvent, match="schema_unknown"):
            only(of_registry(server, form, AVRO_FIELDS), body)


def test_a_registry_that_is_away_or_broken_is_waited_for(server: Registry) -> None:
    server.status = 500
    with pytest.raises(Retryable, match="does not serve"):
        only(of_registry(server, "avro", AVRO_FIELDS), framed(7, avro()))
    server.url = "http://127.0.0.1:9"
    with pytest.raises(Retryable, match="does not answer"):
        only(of_registry(server, "avro", AVRO_FIELDS), framed(7, avro()))


def test_a_registry_that_refuses_us_is_a_mistake_of_the_settings(server: Registry) -> None:
    server.status = 401
    with pytest.raises(ConfigError, match="HONE_SCHEMA_REGISTRY_AUTH"):
        only(of_registry(server, "avro", AVRO_FIELDS), framed(7, avro()))


def test_protobuf_is_read_by_its_index_with_imports_from_the_registry(server: Registry) -> None:
    server.add_protobuf(3, who_file())
    server.subjects["who", 1] = 3
    server.add_protobuf(4, rating_file(), who=("who.proto", "who", 1))
    read = of_registry(server, "protobuf", PROTOBUF_FIELDS)
    nested = b"\x04\x00\x00"  # two indexes, zigzag: the first message, in it the first
    event = only(read, framed(4, protobuf(-1), nested))
    assert (event.value, event.user_id, event.occurred_at) == (-1, ids.user_id(KEY, "ann"), AT)
    assert only(read, framed(4, protobuf(0), nested)).value == 0, "a thumb taken back is not a missing one"
    assert len(server.asked) == 2


def test_protobuf_with_an_index_that_its_schema_lacks_is_refused(server: Registry) -> None:
    server.add_protobuf(3, who_file())
    with pytest.raises(InvalidEvent, match="not_protobuf"):
        only(of_registry(server, "protobuf", PROTOBUF_FIELDS), framed(3, protobuf(1), b"\x02\x08"))


def test_protobuf_with_a_descriptor_set_needs_no_registry(tmp_path: Path) -> None:
    path = tmp_path / "rating.pb"
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=[who_file(), rating_file()]).SerializeToString())
    more = f'format = "protobuf"\nschema = "{path}"\nmessage = "acme.Envelope.Rating"'
    read = book(feedback_stream(PROTOBUF_FIELDS, more))
    assert only(read, protobuf(1)).value == 1
    with pytest.raises(InvalidEvent, match="not_protobuf"):
        only(read, protobuf(1)[:-1])
    with pytest.raises(ConfigError, match=r"no message acme\.Nothing"):
        message_of_file(path, "acme.Nothing")
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=[rating_file()]).SerializeToString())
    with pytest.raises(ConfigError, match="include_imports"):
        message_of_file(path, "acme.Envelope.Rating")


def test_json_of_a_registry_loses_its_five_bytes(server: Registry) -> None:
    read: Any = of_registry(server, "json", 'value = "v"')
    body = json.dumps({"on": str(uid("a")), "at": AT.isoformat(), "v": 1}).encode()
    assert only(read, framed(7, body)).value == 1
    with pytest.raises(InvalidEvent, match="not_json"):
        only(read, body)


NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
SCORE = ('kind = { const = "outcome" }', 'name = { const = "csat" }', 'value = "score"', 'occurred_at = "at"')


def refusal(read: Book, body: Any) -> str:
    with pytest.raises(InvalidEvent) as caught:
        read.decode(message(body, "t"))
    return str(caught.value)


@pytest.mark.parametrize("number", NOT_FINITE)
def test_avro_with_a_number_that_is_none_is_refused(tmp_path: Path, number: float) -> None:
    fields = [{"name": "on", "type": "string"}, SCHEMA["fields"][1], {"name": "score", "type": "double"}]
    schema = {"type": "record", "name": "Score", "fields": fields}
    (tmp_path / "score.avsc").write_text(json.dumps(schema))
    more = f'format = "avro"\nschema = "{tmp_path / "score.avsc"}"'
    read, buffer = book(feedback_stream("\n".join(SCORE), more)), io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), {"on": str(uid("a")), "at": AT, "score": number})
    assert refusal(read, buffer.getvalue()) == f"bad_value: value is {number}, not a finite number"


@pytest.mark.parametrize("number", NOT_FINITE)
def test_protobuf_with_a_number_that_is_none_is_refused(tmp_path: Path, number: float) -> None:
    from google.protobuf import message_factory

    file = descriptor_pb2.FileDescriptorProto(name="score.proto", package="acme", syntax="proto3")
    score = file.message_type.add(name="Score")
    score.field.add(name="score", number=1, type=1, label=1)  # an optional double
    (tmp_path / "score.pb").write_bytes(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    made = message_factory.GetMessageClass(pool_of([file]).FindMessageTypeByName("acme.Score"))(score=number)
    more = f'format = "protobuf"\nschema = "{tmp_path / "score.pb"}"\nmessage = "acme.Score"'
    fields = (*SCORE[:3], 'response_id = { const = "a" }', 'occurred_at = { const = "2026-01-05T12:00:00Z" }')
    read = book(feedback_stream("\n".join(fields), more))
    assert refusal(read, made.SerializeToString()) == f"bad_value: value is {number}, not a finite number"


@pytest.mark.parametrize("word", ["NaN", "inf", "-Infinity", "1e400"])
def test_a_text_that_python_takes_for_a_number_is_refused_where_it_is_not_finite(word: str) -> None:
    body = {"on": str(uid("a")), "at": 1_767_614_400_000, "score": word}
    read = book(feedback_stream("\n".join(SCORE).replace('"at"', '{ path = "at", time = "ms" }')))
    assert refusal(read, body).startswith(("bad_value: value is", "wrong_shape"))


def test_an_answer_with_a_number_that_is_none_is_refused_wherever_it_stands() -> None:
    toml = """[streams.a]
topic = "t"
record = "response"
[streams.a.fields]
response_id = "id"
messages = { const = "Hi" }
completion = { const = "Hello" }
model_version = { const = "m" }
created_at = { path = "at", time = "ms" }
latency_ms = "took"
parameters = "sampling"
"""
    source = book(toml).by_topic["t"]
    document = {"id": "a", "at": 1_767_614_400_000, "took": 3.5, "sampling": {"stop": [1.0, {"t": 0.5}]}}
    (answer,) = [mapper.map(document, message(None, "t")) for mapper in source.mappers]
    assert answer.latency_ms == 3.5  # type: ignore[union-attr]
    for change in ({"took": float("inf")}, {"sampling": {"stop": [1.0, {"t": float("nan")}]}}):
        with pytest.raises(InvalidEvent, match=r"bad_value: (latency_ms is inf|parameters\.stop\.1\.t is nan)"):
            source.mappers[0].map(document | change, message(None, "t"))
