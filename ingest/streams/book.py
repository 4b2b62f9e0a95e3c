"""All mappings of one file, opened: which topics to read, and what is in each of their messages."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import Any

from hone.errors import ConfigError
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Response
from hone.settings import Settings
from hone.tokens import KeyRing, parse_keys
from ingest.batch import RawMessage, decode_native
from ingest.streams.config import Field, Stream, read_streams
from ingest.streams.formats import Read, read_json, reader, registry_client
from ingest.streams.mapping import Mapper, Secrets

logger = logging.getLogger(__name__)

NATIVE_TOPICS = (RESPONSES_TOPIC, FEEDBACK_TOPIC)


@dataclass(frozen=True)
class Source:
    """Messages that are read in one way: a topic's, or those of a stream's files."""

    read: Read
    mappers: tuple[Mapper, ...]

    def decode(self, message: RawMessage) -> list[Response | Feedback]:
        """Return what every stream that wants the message finds in it; an empty list passes over it.

        Raises:
            InvalidEvent: it cannot be read, or a stream that wants it cannot map it.
            Retryable: the Schema Registry is away.
        """
        if message.body is None:
            return []  # the tombstone of a compacted topic: something was deleted, nothing was said
        document = self.read(message.body)
        return [mapper.map(document, message) for mapper in self.mappers if mapper.wants(document)]


class Book:
    """The mappings by topic. Messages of hone's own topics take the short way."""

    def __init__(
        self, streams: Mapping[str, Stream], secrets: Secrets, registry: Any, path: Path | None = None
    ) -> None:
        self.path = path
        "The file of the mappings, where there is one."
        self.for_files = {name: Source(read_json, (Mapper(name, stream, secrets),)) for name, stream in streams.items()}
        """By name: lines and rows of files are JSON, whatever the topic's format."""
        self.by_topic: dict[str, Source] = {}
        for name, stream in streams.items():
            if stream.topic is not None:
                mappers, same = self.for_files[name].mappers, self.by_topic.get(stream.topic)
                read = same.read if same else reader(stream, registry)
                self.by_topic[stream.topic] = Source(read, (*(same.mappers if same else ()), *mappers))

    def file_source(self, name: str | None) -> Source:
        """Return what reads the lines of a file: the stream of that name, or the only one.

        Raises:
            ConfigError: there is none, or a name is needed.
        """
        if name is None and len(self.for_files) == 1:
            return next(iter(self.for_files.values()))
        if name not in self.for_files:
            names = ", ".join(self.for_files) or "none: give --mapping FILE, or set ingest.streams (docs/streams.md)"
            found = f"there is no stream {name}" if name else "several streams could read it: give one with --stream"
            raise ConfigError(f"{found}; the streams are {names}")
        return self.for_files[name]

    def require_topic(self, topic: str) -> None:
        """Raise ConfigError where nothing says how to read a topic."""
        if topic not in self.by_topic and topic not in NATIVE_TOPICS:
            raise ConfigError(
                f"no stream reads {topic}: map it in {self.path or 'a file'} (docs/streams.md), and give --mapping "
                f"{self.path or 'FILE'}"
            )

    def command(self, *words: str | Path) -> str:
        """Return a command of hone's that reads these mappings, as one types it."""
        return shlex.join(["hone", *map(str, words), *(["--mapping", str(self.path)] if self.path else [])])

    @property
    def topics(self) -> list[str]:
        """Return the foreign topics."""
        return sorted(self.by_topic)

    def decode(self, message: RawMessage) -> list[Response | Feedback] | tuple[Response | Feedback]:
        """Return the records in a message of any topic that ingest reads."""
        source = self.by_topic.get(message.partition.topic)
        return decode_native(message) if source is None else source.decode(message)


def open_book(settings: Settings, *, is_trial: bool = False) -> Book:
    """Return the mappings that `ingest.streams` names; empty where it names none.

    In a trial, which stores nothing, a key of pseudonyms that is not set is drawn, and a warning says so.

    Raises:
        ConfigError: the file is wrong, or a key, address, schema or package that it needs is missing.
    """
    path = settings.ingest.streams
    if path is None:
        return Book({}, Secrets(b"", None), None)
    streams = read_streams(path)
    for name, stream in streams.items():
        if stream.topic in NATIVE_TOPICS:
            raise ConfigError(f"{path}: stream {name}: {stream.topic} is hone's own and needs no mapping: remove it")
    check_same_format(streams)
    url, auth = settings.schema_registry_url, settings.schema_registry_auth.get_secret_value()
    return Book(streams, read_secrets(settings, streams, is_trial), registry_client(url, auth) if url else None, path)


def check_same_format(streams: Mapping[str, Stream]) -> None:
    """Refuse two streams of one topic that would read its bytes differently."""
    first: dict[str, tuple[str, Stream]] = {}
    for name, stream in streams.items():
        if stream.topic is None:
            continue
        other, known = first.setdefault(stream.topic, (name, stream))
        ways = [(s.format, s.registry, s.schema, s.message) for s in (known, stream)]
        if ways[0] != ways[1]:
            raise ConfigError(
                f"streams {other} and {name} read topic {stream.topic} in two formats: give both the same"
            )


def read_secrets(settings: Settings, streams: Mapping[str, Stream], is_trial: bool) -> Secrets:
    """Return the keys of ids. Raises ConfigError where one that the streams need is not set."""
    ring = None
    for name, stream in streams.items():
        if ring is None and any(isinstance(field, Field) and field.token for field in stream.fields.values()):
            ring = token_keys(settings, name)
    return Secrets(identity_key(settings, is_trial), ring)


def identity_key(settings: Settings, is_trial: bool) -> bytes:
    """Return the key of pseudonyms. Raises ConfigError where it is not set, unless nothing is to be stored."""
    text = settings.identity_key.get_secret_value()
    if is_trial and not text:
        logger.warning("HONE_IDENTITY_KEY is not set: this trial makes ids with a key that it throws away")
        return token_bytes(32)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < 16:
        raise ConfigError(
            "streams make pseudonyms with the gateway's HONE_IDENTITY_KEY (16 bytes or more in hex), and it is "
            f"{'no such key' if text else 'not set'}: run this in the folder of `hone up`, or set the gateway's. Where "
            "no gateway has one yet, export HONE_IDENTITY_KEY=$(openssl rand -hex 32) makes it, to be kept for good"
        )
    return key


def token_keys(settings: Settings, stream: str) -> KeyRing:
    """Return the keys of answers' ids. Raises ConfigError where they are not set."""
    text = settings.token_keys.get_secret_value()
    if not text:
        raise ConfigError(
            f"stream {stream} verifies ids of the gateway's answers (token = true), and HONE_TOKEN_KEYS is not set: "
            "run this in the folder of `hone up`, or set the gateway's"
        )
    return parse_keys(text)
