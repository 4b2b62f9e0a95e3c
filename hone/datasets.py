"""Freezes what people said into an immutable dataset: what is left out and why, each row's split, each row's hash.

Pure: the same candidates, policy and history give the same bytes. Train, dev and test never share a person or a
near-duplicate prompt.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from uuid import UUID

from hone.canonical import canonical_json, sha256_hex
from hone.near_duplicates import group, text_key
from hone.off_policy import MAX_GENERATIONS, Action, Family, Reason
from hone.records import TRAINABLE_LICENSES, Message

SPLITS = ("train", "dev", "test")
SPLIT_SALT = "hone-split-1"
SCHEMA_VERSION = 1

Kind = Literal["pairs", "labels", "demonstrations", "prompts"]
"""What a row holds besides its prompt: chosen and rejected; completion and label; completion; nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezePolicy:
    """What decides a dataset besides its candidates; its hash stands in the manifest."""

    dev_share: float = 0.1
    test_share: float = 0.2
    max_user_pairs: int = 200
    max_user_share: float = 0.02
    "Largest share of the training rows, 0 to 1, that one person may make up."
    near_duplicate: float = 0.75
    "Jaccard similarity of character 5-grams from which two prompts count as one."
    off_policy: Action = "weight"
    "What becomes of rows to train on whose answers the base would not have given; held-out ones are marked only."
    off_policy_weight: float = 0.5
    "Factor of their weight."
    max_generations: int = MAX_GENERATIONS
    "Models before the base whose answers count as its own."

    @property
    def hash(self) -> str:
        """The SHA-256 of everything that the filters and splits depend on."""
        return sha256_hex(canonical_json({**asdict(self), "salt": SPLIT_SALT, "licenses": sorted(TRAINABLE_LICENSES)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row with its texts, before any filter. The kind says which texts: see `Kind`."""

    kind: Kind = "pairs"
    prompt: tuple[Message, ...]
    chosen: str = ""
    rejected: str = ""
    completion: str = ""
    label: bool | None = None
    "Of `completion`: good or bad."
    objective: str | None = None
    "What the preference is about (helpful, safe, …); a reward model of its own learns each."
    weight: float = 1.0
    source: str
    user_id: UUID | None = None
    turn_id: UUID | None = None
    chosen_id: UUID | None = None
    rejected_id: UUID | None = None
    response_id: UUID | None = None
    "The answer that `completion` is, or corrects."
    body_event_id: UUID | None = None
    "The event that holds the corrected text."
    origin: str | None = None
    "Id of the row in an imported file."
    event_ids: tuple[UUID, ...] = ()
    licenses: frozenset[str] = frozenset()
    eval_only: bool = False
    answered_by: frozenset[str] = frozenset()
    "Model versions that wrote the answers; a person's correction is nobody's."
    off_policy: Reason | None = None
    is_shadow: bool = False
    is_whole: bool = True
    "Every answer ended by itself. One that was cut off has no end token, and is never given one."

    @property
    def texts(self) -> dict[str, str]:
        """The answers that a trainer learns from, by their names in the row."""
        names: dict[Kind, tuple[str, ...]] = {
            "pairs": ("chosen", "rejected"),
            "labels": ("completion",),
            "demonstrations": ("completion",),
            "prompts": (),
        }
        return {name: getattr(self, name) for name in names[self.kind]}

    @property
    def says_something(self) -> bool:
        """Whether what is to be imitated is not empty, and a pair's two answers differ."""
        normal = [" ".join(text.split()) for text in self.texts.values()]
        return len(set(normal)) == len(normal) and (not normal or bool(normal[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRow:
    """One row of a dataset: canonical JSON, named by its hash, with the place it was given."""

    row_id: str
    split: str
    prompt_key: str
    body: str
    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A dataset before it is stored."""

    rows: tuple[FrozenRow, ...]
    manifest: dict[str, Any]

    @property
    def dataset_id(self) -> str:
        """The SHA-256 of the manifest."""
        return dataset_id_of(self.manifest)

    def count(self, split: str) -> int:
        """Return how many rows the split has."""
        return sum(row.split == split for row in self.rows)


FILTERS: tuple[tuple[str, Callable[[Candidate], bool]], ...] = (
    ("license", lambda c: c.licenses <= TRAINABLE_LICENSES),
    ("eval_only", lambda c: not c.eval_only),
    ("shadow", lambda c: not c.is_shadow),
    ("unsupported_prompt", lambda c: is_plain_chat(c.prompt)),
    ("truncated", lambda c: c.is_whole),
    ("identical", lambda c: c.says_something),
)
"""Name -> whether a candidate stays; applied in this order, after the erased people are left out."""


def freeze(
    candidates: Iterable[Candidate],
    policy: FreezePolicy,
    *,
    kind: Kind = "pairs",
    source: str = "feedback",
    watermark: int | None = None,
    erased: frozenset[UUID] = frozenset(),
    history: Mapping[str, str] | None = None,
    family: Family | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Frozen:
    """Return the dataset of the candidates: filtered, split, capped, in the order of their hashes.

    Args:
        erased: people whose rows are refused for ever.
        history: prompt key -> the split it had in an earlier dataset; it never changes sides.
        family: the base that will be trained, and whose child each model is; None: no row is marked off-policy.
        extra: further facts for the manifest.
    """
    counts: dict[str, dict[str, int]] = {}
    kept = filtered(list(candidates), erased, counts)
    rows = split_rows(kept, policy, history or {}, counts)
    rows = judge_answers(rows, policy, family, counts)
    rows, cap = cap_users(rows, policy, counts)
    rows.sort(key=lambda row: (SPLITS.index(row.split), row.row_id))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "source": source,
        "watermark": watermark,
        "policy": asdict(policy),
        "policy_hash": policy.hash,
        "split_salt": SPLIT_SALT,
        "filters": counts,
        "user_cap": cap,
        "off_policy": {
            "base": family.base if family else None,
            **tally(f"{row.candidate.off_policy}" for row in rows if row.candidate.off_policy),
        },
        "num_users": len({row.candidate.user_id for row in rows if row.candidate.user_id}),
        "licenses": tally(license for row in rows for license in row.candidate.licenses or {"none"}),
        "rows": [manifest_row(row) for row in rows],
        **(extra or {}),
    }
    return Frozen(rows=tuple(rows), manifest=manifest)


def dataset_id_of(manifest: Mapping[str, Any]) -> str:
    """Return the id that a manifest gives its dataset."""
    return sha256_hex(canonical_json(manifest))


def filtered(
    candidates: list[Candidate], erased: frozenset[UUID], counts: dict[str, dict[str, int]]
) -> list[Candidate]:
    """Return the candidates that pass every filter; `counts` gets what went in and came out of each."""

    def not_erased(candidate: Candidate) -> bool:
        return candidate.user_id not in erased

    for name, keep in (("erased", not_erased), *FILTERS):
        left = [candidate for candidate in candidates if keep(candidate)]
        counts[name] = {"in": len(candidates), "out": len(left)}
        candidates = left
    return candidates


def is_plain_chat(prompt: Sequence[Message]) -> bool:
    """Say whether a chat template can write the prompt: texts of system, user and assistant, the user's last."""
    roles = ("system", "user", "assistant")
    return bool(prompt) and prompt[-1].role == "user" and all(m.role in roles and m.content for m in prompt)


def prompt_text(prompt: Sequence[Message]) -> str:
    """Return what the people said in the prompt: the text whose near-duplicates share a split."""
    return "\n".join(m.content or "" for m in prompt if m.role == "user")


def split_rows(
    candidates: list[Candidate],
    policy: FreezePolicy,
    history: Mapping[str, str],
    counts: dict[str, dict[str, int]],
) -> list[FrozenRow]:
    """Place every candidate; leave out those whose person and prompt belong to different splits.

    A person's split is a hash of the person. A group of near-duplicate prompts has the split that it had before, else
    that of one of the people who asked it, chosen by hash: a prompt that one person asked costs no row.
    """
    texts = [prompt_text(candidate.prompt) for candidate in candidates]
    groups = group(texts, threshold=policy.near_duplicate)
    keys = [text_key(text) for text in texts]
    placed = group_splits(candidates, keys, groups, policy, history)
    rows = [
        frozen_row(candidate, placed[number], key)
        for candidate, key, number in zip(candidates, keys, groups, strict=True)
        if history.get(key, placed[number]) == placed[number]
        and (candidate.user_id is None or user_split(candidate.user_id, policy) == placed[number])
    ]
    unique = list({row.row_id: row for row in rows}.values())
    counts["split_conflict"] = {"in": len(candidates), "out": len(rows)}
    counts["duplicate_row"] = {"in": len(rows), "out": len(unique)}
    return unique


def group_splits(
    candidates: list[Candidate], keys: list[str], groups: list[int], policy: FreezePolicy, history: Mapping[str, str]
) -> dict[int, str]:
    """Return the split of each group of prompts; of an earlier split the most held-out one wins."""
    owners: dict[int, tuple[str, str]] = {}
    before: dict[int, set[str]] = {}
    for candidate, key, number in zip(candidates, keys, groups, strict=True):
        split = user_split(candidate.user_id, policy) if candidate.user_id else split_of(key, policy)
        owner = (sha256_hex(f"{key}|{candidate.user_id}"), split)
        owners[number] = min(owners.get(number, owner), owner)
        if key in history:
            before.setdefault(number, set()).add(history[key])
    return {number: max(before.get(number, {split}), key=SPLITS.index) for number, (_, split) in owners.items()}


def judge_answers(
    rows: list[FrozenRow], policy: FreezePolicy, family: Family | None, counts: dict[str, dict[str, int]]
) -> list[FrozenRow]:
    """Return the rows with those marked whose answers the base would not have given; the policy weighs or drops them.

    Held-out rows are marked only: they say what people prefer, whoever answered.
    """
    versions = {row.candidate.answered_by for row in rows}
    reasons = {these: family.reason(these, policy.max_generations) if family else None for these in versions}
    kept = []
    for row in rows:
        reason = reasons[row.candidate.answered_by]
        if reason is None:
            kept.append(row)
        elif row.split != "train" or policy.off_policy != "exclude":
            is_weighed = row.split == "train" and policy.off_policy == "weight"
            weight = row.candidate.weight * (policy.off_policy_weight if is_weighed else 1.0)
            marked = replace(row.candidate, off_policy=reason, weight=weight)
            kept.append(frozen_row(marked, row.split, row.prompt_key))
    counts["off_policy"] = {"in": len(rows), "out": len(kept)}
    return kept


def user_split(user_id: UUID, policy: FreezePolicy) -> str:
    """Return the split in which this person is, for ever."""
    return split_of(str(user_id), policy)


def split_of(key: str, policy: FreezePolicy) -> str:
    """Return the split that a hash of `key` gives."""
    draw = int(sha256_hex(f"{SPLIT_SALT}|{key}")[:16], 16) / 16**16
    if draw < policy.test_share:
        return "test"
    return "dev" if draw < policy.test_share + policy.dev_share else "train"


def frozen_row(candidate: Candidate, split: str, prompt_key: str) -> FrozenRow:
    """Return the row of a candidate."""
    body = canonical_json(row_body(candidate))
    return FrozenRow(row_id=sha256_hex(body), split=split, prompt_key=prompt_key, body=body, candidate=candidate)


def row_body(candidate: Candidate) -> dict[str, Any]:
    """Return what a trainer reads, and where it came from."""
    ids = ("chosen_id", "rejected_id") if candidate.kind == "pairs" else ("response_id",)
    body = {
        "prompt": [{"role": m.role, "content": m.content} for m in candidate.prompt],
        **candidate.texts,
        "weight": candidate.weight,
        "source": candidate.source,
        **{name: text_or_none(getattr(candidate, name)) for name in ("user_id", "turn_id", *ids)},
        "origin": candidate.origin,
    }
    optional = {"label": candidate.label, "objective": candidate.objective, "off_policy": candidate.off_policy}
    return body | {key: value for key, value in optional.items() if value is not None}


def manifest_row(row: FrozenRow) -> dict[str, Any]:
    """Return what is needed to make the row again from the stored responses and events, or from the imported file."""
    candidate = row.candidate
    ids = ("user_id", "turn_id", "chosen_id", "rejected_id", "response_id", "body_event_id")
    facts = {
        "row_id": row.row_id,
        "split": row.split,
        "prompt_key": row.prompt_key,
        "source": candidate.source,
        "weight": candidate.weight,
        "label": candidate.label,
        "off_policy": candidate.off_policy,
        **{name: text_or_none(getattr(candidate, name)) for name in ids},
        "origin": candidate.origin,
    }
    return {key: value for key, value in facts.items() if value is not None}


def cap_users(
    rows: list[FrozenRow], policy: FreezePolicy, counts: dict[str, dict[str, int]]
) -> tuple[list[FrozenRow], int]:
    """Return the rows with at most `cap` of each person, and the cap; which ones stay is decided by their hash.

    The cap is the largest number, up to `max_user_pairs`, with which nobody makes up more than `max_user_share` of the
    training rows. With too few people no number does, and no row of a person is left.
    """
    sizes = list(tally(str(r.candidate.user_id) for r in rows if r.split == "train" and r.candidate.user_id).values())
    num_free = sum(row.split == "train" and row.candidate.user_id is None for row in rows)
    cap = user_cap(sizes, num_free, policy) if sizes else policy.max_user_pairs
    seen: dict[UUID, int] = {}
    kept = []
    for row in sorted(rows, key=lambda row: row.row_id):
        user = row.candidate.user_id
        if user is not None:
            seen[user] = seen.get(user, 0) + 1
        if user is None or seen[user] <= cap:
            kept.append(row)
    counts["user_cap"] = {"in": len(rows), "out": len(kept)}
    return kept, cap


def user_cap(sizes: list[int], num_free: int, policy: FreezePolicy) -> int:
    """Return the largest cap c <= max_user_pairs with c <= share * (free rows + sum of min(size, c)), or 0.

    The right side is concave in c and at least 0 at c = 0, so the caps that hold are an interval from 0.
    """
    biggest = min(policy.max_user_pairs, max(sizes))
    for cap in range(biggest, 0, -1):
        fullest = min(cap, max(sizes))
        if fullest <= policy.max_user_share * (num_free + sum(min(size, cap) for size in sizes)):
            return cap
    return 0


def tally(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value occurs, sorted by value."""
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items()))


def text_or_none(value: UUID | None) -> str | None:
    """Return the canonical text of an id."""
    return None if value is None else str(value)
