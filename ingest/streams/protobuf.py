"""Protobuf messages of types that are known at run time only: built from descriptors, read as plain documents."""

import base64
import binascii
import io
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import DecodeError

from hone.errors import ConfigError, InvalidEvent

FileProto = Any
"""A `google.protobuf.descriptor_pb2.FileDescriptorProto`."""


@cache
def well_known() -> dict[str, FileProto]:
    """Return the files that every schema may import without bringing them."""
    modules = (
        any_pb2,
        descriptor_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        struct_pb2,
        timestamp_pb2,
        wrappers_pb2,
    )
    parse = descriptor_pb2.FileDescriptorProto.FromString
    return {module.DESCRIPTOR.name: parse(module.DESCRIPTOR.serialized_pb) for module in modules}


def message_of_file(path: Path, name: str) -> Any:
    """Return what reads the message `name` of a descriptor set (`protoc --include_imports --descriptor_set_out`).

    Raises:
        ConfigError: the file cannot be read, or has no such message.
    """
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
        message = message_factory.GetMessageClass(pool_of(files).FindMessageTypeByName(name))
    except (OSError, DecodeError) as error:
        raise ConfigError(
            f"{path} is not a descriptor set ({error}): make one with protoc --descriptor_set_out"
        ) from None
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} has no message {name} ({error}): add --include_imports, or correct message"
        ) from None
    return lambda body: document_of(message, body)


class RegistryMessages:
    """Reads messages whose schemas a Schema Registry keeps; each schema is built once."""

    def __init__(self, client: Any) -> None:
        from confluent_kafka.schema_registry.serde import SchemaId

        self.client, self.schema_id = client, SchemaId
        self.messages: dict[tuple[Any, ...], Any] = {}

    def read(self, body: bytes) -> Any:
        """Return the document; errors of the registry pass through."""
        found = self.schema_id("PROTOBUF")
        rest = found.from_bytes(io.BytesIO(body)).read()
        key = (found.id, found.guid, *(found.message_indexes or [0]))
        if key not in self.messages:
            self.messages[key] = self.build(found)
        return document_of(self.messages[key], rest)

    def build(self, found: Any) -> Any:
        """Return the class of the message that the indexes name in the schema."""
        schema = (
            self.client.get_schema_by_guid(str(found.guid), fmt="serialized")
            if found.guid
            else self.client.get_schema(found.id, fmt="serialized")
        )
        file = file_proto("hone/writer.proto", schema.schema_str)
        files = [*self.referenced(schema), file]
        return message_factory.GetMessageClass(
            pool_of(files).FindMessageTypeByName(name_at(file, found.message_indexes))
        )

    def referenced(self, schema: Any) -> list[FileProto]:
        """Return the files that the schema imports from the registry."""
        files: list[FileProto] = []
        for reference in schema.references or []:
            if reference.name in well_known():
                continue
            other = self.client.get_version(reference.subject, reference.version, True, "serialized").schema
            files += [*self.referenced(other), file_proto(reference.name, other.schema_str)]
        return files


def file_proto(name: str, text: str) -> FileProto:
    """Return the descriptor that a registry serves in base64."""
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, DecodeError):
        raise InvalidEvent("schema_unknown", "the registry's schema is no Protobuf descriptor") from None
    file.name = name
    return file


def name_at(file: FileProto, indexes: Iterable[int] | None) -> str:
    """Return the full name of the message at a path of indexes."""
    holders, names = file.message_type, [file.package] if file.package else []
    for index in indexes or [0]:
        if not 0 <= index < len(holders):
            raise InvalidEvent("not_protobuf", f"message index {index}, the schema has {len(holders)} there")
        names.append(holders[index].name)
        holders = holders[index].nested_type
    return ".".join(names)


def pool_of(files: Iterable[FileProto]) -> Any:
    """Return a pool with the files and what they import. Raises TypeError where an import is missing."""
    pool, known = descriptor_pool.DescriptorPool(), {**well_known(), **{file.name: file for file in files}}
    added: set[str] = set()
    for name in known:
        add(pool, known, name, added)
    return pool


def add(pool: Any, known: Mapping[str, FileProto], name: str, added: set[str]) -> None:
    """Add a file after those that it imports."""
    if name in added or name not in known:
        return
    added.add(name)
    for imported in known[name].dependency:
        add(pool, known, imported, added)
    pool.Add(known[name])


def document_of(message: Any, body: bytes) -> Any:
    """Return a message as JSON would have it: names as in the schema, enums by name, times as ISO 8601.

    Fields without presence stand with their zero, so that a thumb of 0 is not a missing one.
    """
    try:
        return json_format.MessageToDict(
            message.FromString(body), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    except (DecodeError, json_format.Error, ValueError) as error:
        raise InvalidEvent("not_protobuf", str(error)) from None
