"""The replay mix: beside what is new, rows that the base has learnt from before, and general instructions. Pure.

A model that learns from one application's newest feedback alone forgets what it could; a small fixed set of general
instructions and some older rows hold it (arXiv:2508.04676). No torch here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hone.canonical import canonical_json, sha256_hex
from hone.datasets import prompt_text
from hone.near_duplicates import overlapping
from hone.records import Message
from training.method_tables import Replay
from training.pairs import Row

MIXED = "mixed"
"""The key under which a row says why it is there, besides being new."""
OLDER, GENERAL = "older", "general"
JUDGEMENTS = ("weight", "off_policy", MIXED)
"""What may differ between two snapshots' rows of the same feedback."""
ALL_LEARNT = "the base has learnt from every row before: all of them count as new"

Rows = Mapping[str, Row]
"""Identity -> row, in the order of the dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Rows that may be mixed in and the datasets that they come from; where there are none, why."""

    rows: Sequence[Row] = ()
    datasets: tuple[str, ...] = ()
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """All that a mix is made of."""

    rows: Sequence[Row]
    "What the run's dataset has for training."
    learnt: frozenset[str] = frozenset()
    "Identities of the rows that the base, or a model that it came from, was trained on."
    older: Pool = Pool()
    "Those of imported snapshots; rows of feedback are among `rows` as long as they stand."
    general: Pool = Pool()
    held_out: Sequence[Row] = ()
    "What is never trained on: dev and test rows, and the operator's checks."
    max_user_share: float = 1.0
    "Largest share of the training rows that one person may make up."


def identity(row: Row) -> str:
    """Return what is equal for the same feedback in two snapshots: a hash of all but how it was weighed."""
    return sha256_hex(canonical_json({key: value for key, value in row.items() if key not in JUDGEMENTS}))


def mix(found: Ingredients, replay: Replay, seed: int) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows to train on, and what is told of them; fresh, older and general rows have the spec's shares.

    No row comes twice. Where there are fewer than asked for, all are taken and nothing is made up. Imported rows near a
    held-out prompt, or of a person with held-out rows, are left out. More older rows are taken where one person would
    else make up too much.
    """
    keyed = [(identity(row), row) for row in found.rows]
    known = dict(keyed)
    fresh, again = parted(known, found.learnt)
    is_all_learnt = not again and not found.learnt.isdisjoint(known)
    left_out: Counter[str] = Counter()
    others = [(OLDER, found.older, known), (GENERAL, found.general, {**known, **by_identity(found.older.rows)})]
    allowed = {name: apart(without(pool.rows, taken), found.held_out, left_out) for name, pool, taken in others}
    older, general = {**again, **allowed[OLDER]}, allowed[GENERAL]
    want_older, want_general = numbers(len(fresh), len(older), len(general), replay)
    order = ranked(older, seed, OLDER)
    want_older = enough(fresh, [older[key] for key in order], want_older, want_general, found.max_user_share)
    taken, taken_general = set(order[:want_older]), ranked(general, seed, GENERAL)[:want_general]
    rows = [row if key in fresh else {**row, MIXED: OLDER} for key, row in keyed if key in fresh or key in taken]
    rows += [{**row, MIXED: OLDER} for key, row in allowed[OLDER].items() if key in taken]
    rows += [{**general[key], MIXED: GENERAL} for key in taken_general]
    facts = {
        "fresh": len(fresh),
        OLDER: told(want_older, older, found.older, replay.older_share, ALL_LEARNT if is_all_learnt else None),
        GENERAL: told(want_general, general, found.general, replay.general_share),
        "left_out": dict(sorted(left_out.items())),
    }
    return rows, facts


def parted(known: Rows, learnt: frozenset[str]) -> tuple[Rows, Rows]:
    """Return the rows that the base has not learnt from, and those that it has; all count as new where none is."""
    fresh = {key: row for key, row in known.items() if key not in learnt}
    return (fresh, {key: row for key, row in known.items() if key in learnt}) if fresh else (known, {})


def by_identity(rows: Sequence[Row]) -> Rows:
    """Return the rows by what they are."""
    return {identity(row): row for row in rows}


def without(rows: Sequence[Row], taken: Rows) -> Rows:
    """Return the rows that are not there yet."""
    return {key: row for key, row in by_identity(rows).items() if key not in taken}


def apart(rows: Rows, held_out: Sequence[Row], left_out: Counter[str]) -> Rows:
    """Return the rows that share no person and no near-duplicate prompt with held-out ones; `left_out` counts them."""
    if not rows:
        return {}
    people = {row["user_id"] for row in held_out if row.get("user_id")}
    theirs = {key for key, row in rows.items() if row.get("user_id") in people}
    near = overlapping([text_of(row) for row in rows.values()], [text_of(row) for row in held_out])
    alike = {key for key, is_near in zip(rows, near, strict=True) if is_near} - theirs
    left_out.update({name: len(keys) for name, keys in (("person", theirs), ("prompt", alike)) if keys})
    return {key: row for key, row in rows.items() if key not in theirs | alike}


def text_of(row: Row) -> str:
    """Return what near-duplicates are found by."""
    return prompt_text([Message(role=message["role"], content=message["content"]) for message in row["prompt"]])


def numbers(fresh: int, older: int, general: int, replay: Replay) -> tuple[int, int]:
    """Return how many older and general rows make up their shares of fresh and mixed ones together."""
    share = replay.general_share if general else 0.0
    if replay.older_share == "all":
        return older, min(general, round((fresh + older) * share / (1 - share)))
    older_share = replay.older_share if older else 0.0
    total = fresh / (1 - older_share - share)
    return min(older, round(total * older_share)), min(general, round(total * share))


def ranked(rows: Rows, seed: int, name: str) -> list[str]:
    """Return the keys in an order drawn from the seed, the same whatever else there is."""
    return sorted(rows, key=lambda key: sha256_hex(f"{seed}|{name}|{key}"))


def enough(fresh: Rows, older: Sequence[Row], number: int, general: int, max_share: float) -> int:
    """Return how many of the older rows, `number` or more, leave nobody more than `max_share` of all rows."""
    people = Counter(row["user_id"] for row in (*fresh.values(), *older[:number]) if row.get("user_id"))
    while number < len(older) and max(people.values(), default=0) > max_share * (len(fresh) + number + general):
        if person := older[number].get("user_id"):
            people[person] += 1
        number += 1
    return number


def told(number: int, pool: Rows, source: Pool, share: float | str, why: str | None = None) -> dict[str, Any]:
    """Return what is said of one kind of mixed rows; without any, why."""
    facts: dict[str, Any] = {"num": number, "of": len(pool), "share": share, "datasets": list(source.datasets)}
    if number:
        return facts
    nothing = "none is left beside held-out rows" if source.rows else "there is none"
    return facts | {"why": why or source.why or (f"its share is {share}" if pool else nothing)}
