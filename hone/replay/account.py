"""The account of a replay: what was sent against what is stored, once the pipeline has had its time."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from hone.records import TRAINABLE_LICENSES
from hone.replay.person import Script
from hone.replay.play import Sent
from hone.store.replayed import (
    LicenseCount,
    count_dirty,
    count_licenses,
    count_pairs_of,
    find_answers,
    find_events,
    find_refused,
)

POLL_S = 0.3

Transaction = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Found:
    """Where sent things are now."""

    stored: frozenset[UUID] = frozenset()
    refused: frozenset[UUID] = frozenset()
    "Dead letters."
    turns: frozenset[UUID] = frozenset()

    def missing(self, ids: set[UUID]) -> set[UUID]:
        """Return those that are nowhere."""
        return ids - self.stored - self.refused


@dataclass(frozen=True, kw_only=True)
class Account:
    """Everything that was sent is stored or a dead letter, or the account says what is missing."""

    num_scripts: int
    num_before: int
    "Conversations that an earlier run had stored whole."
    num_played: int
    num_answers: int
    num_answers_stored: int
    num_answers_refused: int
    events_sent: Counter[str]
    events_stored: Counter[str]
    events_refused: Counter[str]
    broken_off: Counter[str]
    "What the gateway refused, by reason."
    turns_waiting: int
    "Marks that the pair worker has not taken yet."
    pairs: dict[str, int]
    licenses: list[dict[str, Any]]
    "Conversations and answers by licence, as stored; none of those that are not trainable enters a dataset."
    wrong_licenses: list[str] = field(default_factory=list)
    seconds: float

    @property
    def differences(self) -> list[str]:
        """Return what does not add up, in words; nothing when all is accounted for."""
        said = []
        lost = self.num_answers - self.num_answers_stored - self.num_answers_refused
        if lost:
            said.append(f"{lost} of {self.num_answers} answers are not in Postgres")
        for kind, number in sorted(self.events_sent.items()):
            missing = number - self.events_stored[kind] - self.events_refused[kind]
            if missing:
                said.append(f"{missing} of {number} {kind} events are not in Postgres")
        said += [f"{number} conversations broke off: {reason}" for reason, number in self.broken_off.items()]
        if self.turns_waiting:
            said.append(f"{self.turns_waiting} turns still wait for the pair worker")
        return said + self.wrong_licenses

    def as_json(self) -> dict[str, Any]:
        """Return the account as plain values."""
        return {**self.__dict__, "differences": self.differences, "accounted_for": not self.differences}


def stored_before(session: Session, scripts: Sequence[Script]) -> set[str]:
    """Return the names of the scripts whose every event an earlier run has brought in."""
    ids = {act.event_id for script in scripts for act in script.acts}
    known = set(find_events(session, ids))
    known |= find_refused(session, ids - known)
    return {script.name for script in scripts if all(act.event_id in known for act in script.acts)}


def settle(transaction: Transaction, sent: Sent, deadline_s: float, on_wait: Callable[[int], None]) -> Found:
    """Wait until all that was sent is stored or refused and its turns are derived, or the deadline; return what is."""
    wanted, until, missing_before = sent.events | sent.answers, time.monotonic() + deadline_s, -1
    while True:
        is_last = time.monotonic() >= until
        with transaction() as session:
            found = look(session, sent)
            missing = found.missing(wanted)
            if missing and (len(missing) == missing_before or is_last):  # nothing moves: were they refused?
                found = replace(found, refused=frozenset(find_refused(session, missing)))
            waiting = len(found.missing(wanted)) or count_dirty(session, found.turns)
        on_wait(waiting)
        if not waiting or is_last:
            return found
        missing_before = len(missing)
        time.sleep(POLL_S)


def look(session: Session, sent: Sent) -> Found:
    """Return what is stored."""
    events, answers = find_events(session, sent.events), find_answers(session, sent.answers)
    turns = frozenset(turn for turn in (*events.values(), *answers.values()) if turn is not None)
    return Found(frozenset(events) | frozenset(answers), turns=turns)


def license_rows(counts: Iterable[LicenseCount]) -> list[dict[str, Any]]:
    """Return the counts for people, with whether such rows may be trained on."""
    return [
        {
            "license": count.license or "(your own)",
            "eval_only": count.eval_only,
            "trainable": (count.license is None or count.license in TRAINABLE_LICENSES) and not count.eval_only,
            "conversations": count.turns,
            "answers": count.answers,
        }
        for count in counts
    ]


def compare_licenses(counts: Iterable[LicenseCount], scripts: Iterable[Script]) -> list[str]:
    """Return the licences whose number of conversations differs from the file's."""
    stored = Counter({(count.license, count.eval_only): count.turns for count in counts})
    wanted = Counter((script.recording.license, script.recording.eval_only) for script in scripts)
    return [
        f"licence {license or '(your own)'}, eval_only {eval_only}: {wanted[license, eval_only]} conversations in the "
        f"file, {stored[license, eval_only]} stored"
        for license, eval_only in sorted(stored.keys() | wanted.keys(), key=str)
        if stored[license, eval_only] != wanted[license, eval_only]
    ]


def make_account(
    session: Session, scripts: Sequence[Script], before: set[str], sent: Sent, found: Found, seconds: float
) -> Account:
    """Return the account of a run; pairs and licences are of all scripts, those of earlier runs too."""
    acts = {act.event_id: act.kind.value for script in scripts for act in script.acts}
    turns = {turn for turn in find_events(session, acts).values() if turn} | found.turns
    licenses = count_licenses(session, turns)
    return Account(
        num_scripts=len(scripts),
        num_before=len(before),
        num_played=sent.num_played,
        num_answers=len(sent.answers),
        num_answers_stored=len(sent.answers & found.stored),
        num_answers_refused=len(sent.answers & found.refused),
        events_sent=Counter(acts[event] for event in sent.events),
        events_stored=Counter(acts[event] for event in sent.events & found.stored),
        events_refused=Counter(acts[event] for event in sent.events & found.refused),
        broken_off=sent.refused,
        turns_waiting=count_dirty(session, turns),
        pairs=count_pairs_of(session, turns),
        licenses=license_rows(licenses),
        wrong_licenses=[] if sent.refused else compare_licenses(licenses, scripts),
        seconds=seconds,
    )
