"""Bytes to documents: JSON, Avro and Protobuf, with schemas from a file or a Schema Registry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hone.errors import ConfigError, InvalidEvent, Retryable
from ingest.decode import MAX_BODY_BYTES
from ingest.streams.config import Stream

Read = Callable[[bytes], Any]
MAGIC = 0
JSON_HEADER_BYTES = 5
EXTRA = "Avro, Protobuf and the Schema Registry need packages: pip install 'hone[ingest]'"


def reader(stream: Stream, registry: Any) -> Read:
    """Return what reads the stream's bytes; `registry` is confluent-kafka's client, or None.

    The result raises InvalidEvent (empty, too_large, not_json, not_avro, not_protobuf, schema_unknown) for bytes that
    can never be read, and Retryable while the registry is away.

    Raises:
        ConfigError: a schema cannot be read, or packages or the registry's address are missing.
    """
    if stream.registry and registry is None:
        raise ConfigError("a stream has registry = true: set HONE_SCHEMA_REGISTRY_URL")
    try:
        read = READERS[stream.format, stream.registry](stream, registry)
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: {EXTRA}") from None

    def bounded(body: bytes) -> Any:
        if not body:
            raise InvalidEvent("empty", "the message has no body")
        if len(body) > MAX_BODY_BYTES:
            raise InvalidEvent("too_large", f"{len(body)} bytes, at most {MAX_BODY_BYTES} are read")
        return read(body)

    return bounded


def read_json(body: bytes) -> Any:
    """Return the JSON in the bytes."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent("not_json", str(error)) from None


def read_json_of_registry(body: bytes) -> Any:
    """Return JSON behind the five bytes that name its schema."""
    if body[0] != MAGIC or len(body) <= JSON_HEADER_BYTES:
        raise InvalidEvent("not_json", f"begins with byte {body[0]}, not with the number of a schema")
    return read_json(body[JSON_HEADER_BYTES:])


def avro_of_file(stream: Stream) -> Read:
    """Return a reader of bare Avro records."""
    import io

    import fastavro

    try:
        schema = fastavro.parse_schema(msgspec.json.decode(Path(stream.schema or "").read_bytes()))
    except (OSError, ValueError, msgspec.DecodeError, fastavro.schema.SchemaParseException) as error:
        raise ConfigError(f"{stream.schema} is not an Avro schema ({error}): correct the stream's schema") from None

    def read(body: bytes) -> Any:
        buffer = io.BytesIO(body)
        try:
            document = fastavro.schemaless_reader(buffer, schema, None)
        except Exception as error:
            raise not_avro(error) from None
        if buffer.tell() != len(body):
            raise InvalidEvent("not_avro", f"{len(body) - buffer.tell()} bytes are left after the record")
        return document

    return read


def avro_of_registry(client: Any) -> Read:
    """Return a reader of Avro whose schemas are in the registry."""
    from confluent_kafka.schema_registry.avro import AvroDeserializer

    deserialize = AvroDeserializer(client)

    def read(body: bytes) -> Any:
        try:
            return deserialize(body, None)
        except Exception as error:
            raise_registry_fault(error)
            raise not_avro(error) from None

    return read


def not_avro(error: Exception) -> InvalidEvent:
    """Return the refusal. fastavro raises whatever the bytes lead it into, so any error of it means the bytes."""
    return InvalidEvent("not_avro", f"{type(error).__name__}: {error}")


def raise_registry_fault(error: Exception) -> None:
    """Raise what an error of the registry means, if it is one: an unknown schema, or a registry that is away."""
    from confluent_kafka.schema_registry.error import SchemaRegistryError
    from httpx2 import HTTPError

    if isinstance(error, SchemaRegistryError):
        if error.http_status_code == 404:
            raise InvalidEvent("schema_unknown", f"the registry has no such schema: {error.error_message}")
        if error.http_status_code in (401, 403):
            raise ConfigError(f"the Schema Registry refuses us ({error}): check HONE_SCHEMA_REGISTRY_AUTH")
        raise Retryable(f"the Schema Registry does not serve ({error})")
    if isinstance(error, HTTPError | OSError):
        raise Retryable(f"the Schema Registry does not answer ({error!r}): check HONE_SCHEMA_REGISTRY_URL")


def protobuf_of_file(stream: Stream) -> Read:
    """Return a reader of one message type of a descriptor set."""
    from ingest.streams.protobuf import message_of_file

    read: Read = message_of_file(Path(stream.schema or ""), stream.message or "")
    return read


def protobuf_of_registry(client: Any) -> Read:
    """Return a reader of Protobuf whose schemas are in the registry."""
    from ingest.streams.protobuf import RegistryMessages

    messages = RegistryMessages(client)

    def read(body: bytes) -> Any:
        try:
            return messages.read(body)
        except InvalidEvent:
            raise
        except Exception as error:
            raise_registry_fault(error)
            raise InvalidEvent("not_protobuf", f"{type(error).__name__}: {error}") from None

    return read


READERS: dict[tuple[str, bool], Callable[[Stream, Any], Read]] = {
    ("json", False): lambda *_: read_json,
    ("json", True): lambda *_: read_json_of_registry,
    ("avro", False): lambda stream, _: avro_of_file(stream),
    ("avro", True): lambda _, client: avro_of_registry(client),
    ("protobuf", False): lambda stream, _: protobuf_of_file(stream),
    ("protobuf", True): lambda _, client: protobuf_of_registry(client),
}


def registry_client(url: str, auth: str) -> Any:
    """Return confluent-kafka's client of a Schema Registry; it keeps every schema that it has seen.

    Raises:
        ConfigError: its packages are missing.
    """
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: {EXTRA}") from None
    # Short, since the consumer waits meanwhile; what stays away is asked again by the batch that is read again.
    config: dict[str, Any] = {"url": url, "timeout": 5, "max.retries": 1, "retries.wait.ms": 200}
    return SchemaRegistryClient(config | ({"basic.auth.user.info": auth} if auth else {}))
