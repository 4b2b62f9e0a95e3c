"""Send dead letters back, as they are or repaired: to their topic, or as hone's records where that is not ours."""

import difflib
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, HoneError, InvalidEvent
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Response
from hone.store.dead_letters import get_dead_letter, mark_replayed
from hone.store.offsets import Partition
from hone.store.tables import DeadLetterRow
from ingest.backfill import stream_of
from ingest.batch import RawMessage
from ingest.decode import decode
from ingest.publish import Outgoing, Publisher
from ingest.streams.book import NATIVE_TOPICS, Book
from ingest.streams.formats import read_json


def replay(
    sessions: sessionmaker[Session],
    publisher: Publisher,
    dead_letter_id: int,
    *,
    book: Book,
    fixed: Path | None,
    dry_run: bool,
    now: datetime,
    show: Callable[[str], None],
) -> None:
    """Print the difference, then send the message to its old topic and note it; with `dry_run` only print.

    A message of another shape is mapped again, by the present mapping, and its records go to hone's topics: nothing is
    ever written to a topic that is not ours. Sending twice makes one row: the event keeps its id.

    Raises:
        NotEnoughData: there is no such dead letter.
        HoneError: ingest would refuse the message again.
        Retryable: the broker did not take it; nothing is noted.
    """
    with sessions() as session:
        letter = get_dead_letter(session, dead_letter_id)
    body = read_fixed(fixed) if fixed else letter.body
    show(describe(letter, body))
    messages = outgoing(book, letter, body, is_fixed=fixed is not None)
    if dry_run:
        show("dry run: nothing was sent")
        return
    publisher.send(messages)
    with sessions.begin() as session:
        mark_replayed(session, dead_letter_id, now)
    show(f"sent to {', '.join(sorted({message.topic for message in messages}))}")


def read_fixed(path: Path) -> bytes:
    """Return the repaired message, compact, so that the diff shows what was repaired and nothing else."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): give the file with the repaired message") from None
    return body.strip()


def outgoing(book: Book, letter: DeadLetterRow, body: bytes | None, *, is_fixed: bool) -> list[Outgoing]:
    """Return what to send. Refuses what would come back."""
    headers = {"replay_of": str(letter.dead_letter_id)}
    source = book.by_topic.get(letter.topic)
    try:
        if source is None:
            require_native(letter, book)
            decode(letter.topic, body)
            return [Outgoing(letter.topic, letter.key, body, headers)]
        # Kafka's own time of the message is not kept: that of its refusal is the nearest.
        at_ms = int(letter.created_at.timestamp() * 1000)
        message = RawMessage(Partition(letter.topic, letter.partition), letter.offset, letter.key, body, at_ms)
        records = replace(source, read=read_json).decode(message) if is_fixed else source.decode(message)
    except InvalidEvent as error:
        number = str(letter.dead_letter_id)
        again = ("dead-letters", "replay", number)
        mapping = f"; or correct the mapping, then `{book.command(*again)}`" if source else ""
        raise HoneError(
            f"dead letter {number} would become one again ({error}): `hone dead-letters show {number} --body > FILE`, "
            f"repair FILE, then `{book.command(*again, '--fixed', 'FILE')}`{mapping}"
        ) from None
    return [native(record, headers) for record in records]


def require_native(letter: DeadLetterRow, book: Book) -> None:
    """Refuse a message that no mapping reads any more. Raises ConfigError."""
    if letter.topic.startswith("file:"):
        name, stream = letter.topic.removeprefix("file:"), stream_of(letter.incarnation)
        mapping = ["--stream", stream, *([] if book.path else ["--mapping", "FILE"])] if stream else []
        again = (
            f"correct the mapping, then `{book.command('backfill', name, *mapping, '--again')}`; or " if stream else ""
        )
        dismiss = shlex.join(
            ["hone", "dead-letters", "dismiss", "--topic", letter.topic, "--reason", "corrected", "--yes"]
        )
        raise ConfigError(
            f"dead letter {letter.dead_letter_id} is of a file and cannot be sent back: {again}correct the file, then "
            f"`{book.command('backfill', name, *mapping)}` and `{dismiss}`"
        )
    if letter.topic not in NATIVE_TOPICS:
        raise ConfigError(
            f"no stream reads {letter.topic}: map it in {book.path or 'a file'} (docs/streams.md), and give --mapping "
            f"{book.path or 'FILE'}"
        )


def native(record: Response | Feedback, headers: dict[str, str]) -> Outgoing:
    """Return a record as a message of hone's own topic."""
    topic = RESPONSES_TOPIC if isinstance(record, Response) else FEEDBACK_TOPIC
    key = (record.conversation_id or record.user_id).bytes
    return Outgoing(topic, key, msgspec.json.encode(record), headers)


def describe(letter: DeadLetterRow, body: bytes | None) -> str:
    """Return the letter's address and reason, and a unified diff from its body to `body`."""
    head = f"{letter.topic}/{letter.partition}@{letter.offset}: {letter.reason}: {letter.detail}"
    lines = difflib.unified_diff(pretty(letter.body), pretty(body), "dead letter", "replay", lineterm="")
    return "\n".join([head, *lines])


def pretty(body: bytes | None) -> list[str]:
    """Return JSON indented, other bytes as Python shows them, one line for each line."""
    try:
        return msgspec.json.format(body or b"", indent=2).decode().splitlines()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [repr(line) for line in (body or b"").splitlines()]
