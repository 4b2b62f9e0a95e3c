"""The file that says how foreign messages become records: read, checked, and every mistake named with its place."""

import tomllib
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import UNSET, UnsetType

from hone.errors import ConfigError
from hone.records import Feedback, Response

RecordName = Literal["feedback", "response"]
Format = Literal["json", "avro", "protobuf"]
TimeFormat = Literal["iso", "s", "ms", "us", "ns"]
RECORDS: dict[str, type[Response] | type[Feedback]] = {"feedback": Feedback, "response": Response}

NEEDED: dict[str, tuple[str, ...]] = {
    "feedback": ("kind",),
    "response": ("response_id", "messages", "completion", "model_version"),
}
"""What a mapping must say; everything else has a default or may be missing."""

NOT_MAPPED = {"feedback": {"schema_version", "turn_id"}, "response": {"schema_version"}}


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the value of one field comes from, and how it is read."""

    path: str | tuple[str, ...] | None = None
    "Names joined by dots, or a list of names; a number is a place in a list."
    const: Any = UNSET
    kafka: Literal["key", "timestamp"] | None = None
    "Of the message itself, not of its body."
    map: dict[str, Any] | None = None
    'From the value, as text, to what it means; "*" stands for every other value.'
    default: Any = UNSET
    "Stands for a value that is missing or null."
    time: TimeFormat = "iso"
    zone: str | None = None
    "Zone of times that name none."
    token: bool = False
    "The value is the id of an answer of our gateway: verified, it tells answer, conversation, turn and user."

    @property
    def place(self) -> str:
        """Return where it looks, for people."""
        if self.kafka:
            return f"the message's {self.kafka}"
        return self.path if isinstance(self.path, str) else ".".join(self.path or ("const",))


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the messages of one topic become records of one sort."""

    record: RecordName
    fields: dict[str, Field | str]
    topic: str | None = None
    "None: for files only."
    format: Format = "json"
    registry: bool = False
    "Messages begin with the number of their schema in a Schema Registry."
    schema: str | None = None
    "File of an Avro schema or a descriptor set of Protobuf, where messages name no schema; beside this file."
    message: str | None = None
    "Full name of the Protobuf message in the descriptor set."
    only: dict[str, tuple[str, ...]] = {}
    "Messages are read only where the text at each path is one of these; others are passed over."


class StreamsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    streams: dict[str, Stream]


def read_streams(path: Path) -> dict[str, Stream]:
    """Return the streams by name; paths of schemas are made relative to the file.

    Raises:
        ConfigError: the file is missing, no TOML, or says something that cannot be; names stream and key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        streams = msgspec.convert(document, StreamsFile).streams
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): fix ingest.streams or create the file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}): correct that line") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; docs/streams.md lists the keys") from None
    for name, stream in streams.items():
        for problem in problems_of(stream):
            raise ConfigError(f"{path}: stream {name}: {problem}")
    return {name: settled(stream, path.parent) for name, stream in streams.items()}


def settled(stream: Stream, folder: Path) -> Stream:
    """Return the stream with short forms written out."""
    fields: dict[str, Field | str] = {
        name: Field(path=field) if isinstance(field, str) else field for name, field in stream.fields.items()
    }
    schema = str(folder / stream.schema) if stream.schema else None
    return msgspec.structs.replace(stream, fields=fields, schema=schema)


def problems_of(stream: Stream) -> list[str]:
    """Return what is wrong with a stream, in sentences with their remedy."""
    known = set(RECORDS[stream.record].__struct_fields__) - NOT_MAPPED[stream.record]
    found = [
        f"{name} is not a field of a {stream.record}: choose among {', '.join(sorted(known))}"
        for name in stream.fields
        if name not in known
    ]
    has_token = any(isinstance(field, Field) and field.token for field in stream.fields.values())
    found += [f"fields.{name} is missing" for name in NEEDED[stream.record] if name not in stream.fields]
    for name, field in stream.fields.items():
        found += [f"fields.{name}: {problem}" for problem in field_problems(name, field)]
    if has_token and stream.record == "response":
        found.append("token = true is for feedback: a response brings its own ids")
    return found + format_problems(stream)


def field_problems(name: str, field: Field | str) -> list[str]:
    """Return what is wrong with one field."""
    if isinstance(field, str):
        return [] if field else ["the path is empty"]
    sources = [field.path is not None, field.const is not UNSET, field.kafka is not None]
    found = [] if sum(sources) == 1 else ["give exactly one of path, const and kafka"]
    if field.token and name != "response_id":
        found.append("token = true is for response_id; rejected is then read in the same way")
    if field.zone is not None:
        try:
            ZoneInfo(field.zone)
        except (ZoneInfoNotFoundError, ValueError):
            found.append(f"zone {field.zone!r} is not known: write it like Europe/Berlin or UTC")
    return found


def format_problems(stream: Stream) -> list[str]:
    """Return what is wrong with how bytes are read."""
    if stream.format == "json":
        return [] if stream.schema is None else ["schema is for avro and protobuf"]
    found = []
    if stream.registry == (stream.schema is not None):
        found.append(f"{stream.format} needs either registry = true or a schema file")
    if stream.format == "protobuf" and stream.schema is not None and not stream.message:
        found.append("message is missing: the full name of the Protobuf message in the schema")
    return found


def unset(value: Any) -> bool:
    """Say whether a key was left out (which null is not)."""
    return isinstance(value, UnsetType)


assert set(get_args(RecordName)) == set(RECORDS)
