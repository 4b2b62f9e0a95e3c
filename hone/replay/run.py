"""One replay from file to account. Running it twice stores nothing twice: what is stored already is not sent again."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hone.errors import ConfigError
from hone.replay.account import Account, Transaction, make_account, settle, stored_before
from hone.replay.person import Act, Ask, Script, write_script
from hone.replay.play import Sent, Target, play
from hone.replay.recording import choose, read_recordings
from hone.replay.upstream import serve_recordings
from hone.settings import Settings


@dataclass(frozen=True)
class Request:
    """What to replay, and how fast."""

    file: Path
    limit: int | None = None
    rate: float | None = None
    "Conversations begun a second; None: as fast as the gateway answers."
    seed: int = 0
    in_flight: int = 16
    deadline_s: float = 60.0
    "How long after the last act everything may take to be in Postgres."
    host: str = "127.0.0.1"
    "Address of this machine at which the gateway reaches the recorded answers."


class Watcher(Protocol):
    """Who shows how far it is."""

    def begin(self, num_scripts: int, num_before: int) -> None:
        """So many conversations in all, of which so many are stored already."""

    def played(self, sent: Sent) -> None:
        """One more conversation has ended."""

    def waiting(self, num_waiting: int) -> None:
        """So many events and answers, or turns after that, are still on their way."""


def read_scripts(request: Request) -> list[Script]:
    """Return what the people of the file will do; raises what `read_recordings` does."""
    chosen = choose(read_recordings(request.file), request.limit, request.seed)
    return [write_script(recording, request.seed) for recording in chosen]


def replay(settings: Settings, request: Request, transaction: Transaction, watcher: Watcher) -> Account:
    """Send what is not stored yet, wait for it, and return the account; `transaction` opens the gateway's database.

    Raises:
        ConfigError: the file cannot be read, or the gateway refuses our key. InvalidEvent: the file is malformed.
        Retryable: the gateway or the database does not answer.
    """
    key = settings.admin_key.get_secret_value()
    if not key:
        raise ConfigError("admin_key is not set: set HONE_ADMIN_KEY to the key that the gateway knows")
    scripts, started = read_scripts(request), time.monotonic()
    with transaction() as session:
        before = stored_before(session, scripts)
    watcher.begin(len(scripts), len(before))
    left = [script for script in scripts if script.name not in before]
    sent = send(settings.gateway_url, key, left, request, watcher) if left else Sent()
    found = settle(transaction, sent, request.deadline_s, watcher.waiting)
    with transaction() as session:
        return make_account(session, scripts, before, sent, found, time.monotonic() - started)


def send(gateway: str, key: str, scripts: Sequence[Script], request: Request, watcher: Watcher) -> Sent:
    """Play the scripts, with the recorded answers served from here."""
    recordings = {script.recording.id: script.recording for script in scripts}
    with serve_recordings(recordings, request.host) as upstream:
        target = Target(gateway, key, upstream)
        return play(target, scripts, in_flight=request.in_flight, rate=request.rate, on_progress=watcher.played)


def describe_scripts(scripts: Sequence[Script]) -> dict[str, Any]:
    """Return what a replay of the scripts would send; no text of the file is in it."""
    kinds = Counter(act.kind.value for script in scripts for act in script.acts)
    licenses = Counter((script.recording.license, script.recording.eval_only) for script in scripts)
    return {
        "conversations": len(scripts),
        "answers": sum(script.num_asks for script in scripts),
        "events": dict(sorted(kinds.items())),
        "licenses": [
            {"license": license or "(your own)", "eval_only": eval_only, "conversations": number}
            for (license, eval_only), number in sorted(licenses.items(), key=str)
        ],
        "first": [
            {"row": script.recording.id, "steps": [describe(step) for step in script.steps]} for script in scripts[:3]
        ],
    }


def describe(step: Ask | Act) -> str:
    """Return a step in words."""
    if isinstance(step, Ask):
        return f"ask (answer {step.answer} of the file)"
    if step.over is not None:
        return f"{step.kind} of answer {step.on + 1} over {step.over + 1}"
    return f"{step.kind} {step.value:g}"
