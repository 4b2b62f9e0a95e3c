"""Send dead letters back to their topic, as they are or repaired."""

import difflib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, HoneError, InvalidEvent
from hone.store.dead_letters import get_dead_letter, mark_replayed
from hone.store.tables import DeadLetterRow
from ingest.decode import decode
from ingest.publish import Outgoing, Publisher


def replay(
    sessions: sessionmaker[Session],
    publisher: Publisher,
    dead_letter_id: int,
    *,
    fixed: Path | None,
    dry_run: bool,
    now: datetime,
    show: Callable[[str], None],
) -> None:
    """Print the difference, then send the message to its old topic and note it; with `dry_run` only print.

    Sending twice makes one row: the event keeps its id.

    Raises:
        NotEnoughData: there is no such dead letter.
        HoneError: ingest would refuse the message again.
        Retryable: the broker did not take it; nothing is noted.
    """
    with sessions() as session:
        letter = get_dead_letter(session, dead_letter_id)
    body = read_fixed(fixed) if fixed else letter.body
    show(describe(letter, body))
    require_valid(letter, body)
    if dry_run:
        show("dry run: nothing was sent")
        return
    publisher.send([Outgoing(letter.topic, letter.key, body, {"replay_of": str(dead_letter_id)})])
    with sessions.begin() as session:
        mark_replayed(session, dead_letter_id, now)
    show(f"sent to {letter.topic}")


def read_fixed(path: Path) -> bytes:
    """Return the repaired message, compact, so that the diff shows what was repaired and nothing else."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): give the file with the repaired message") from None
    return body.strip()


def require_valid(letter: DeadLetterRow, body: bytes | None) -> None:
    """Refuse to send what would come back."""
    try:
        decode(letter.topic, body)
    except InvalidEvent as error:
        raise HoneError(
            f"dead letter {letter.dead_letter_id} would become one again ({error}): repair it and give --fixed FILE"
        ) from None


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
