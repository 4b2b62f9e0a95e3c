"""What enters a dataset, in which split, and what one person can do to it."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.canonical import sha256_hex
from hone.datasets import SPLITS, Candidate, FreezePolicy, Frozen, freeze, prompt_text, user_cap, user_split
from hone.near_duplicates import group
from hone.records import Message
from tests.support.training import candidate, person, question

OPEN = FreezePolicy(max_user_share=1.0)


def frozen(candidates: list[Candidate], policy: FreezePolicy = OPEN, **fields: Any) -> Frozen:
    return freeze(candidates, policy, **fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("license", {"licenses": frozenset({"CC-BY-NC-4.0"})}, id="a licence that forbids it"),
        pytest.param("license", {"licenses": frozenset({"MIT", "unclear"})}, id="one unclear licence of two"),
        pytest.param("eval_only", {"eval_only": True}, id="kept for evaluation"),
        pytest.param("shadow", {"is_shadow": True}, id="nobody saw it"),
        pytest.param("truncated", {"is_whole": False}, id="cut off, so without an end token"),
        pytest.param("identical", {"chosen": "Same  text", "rejected": "Same text"}, id="the same text twice"),
        pytest.param("identical", {"chosen": " "}, id="an empty answer"),
        pytest.param("unsupported_prompt", {"prompt": (Message(role="tool", content="x"),)}, id="a tool's message"),
        pytest.param("unsupported_prompt", {"prompt": (Message(role="user"),)}, id="a message without text"),
    ],
)
def test_what_must_not_be_trained_on_is_left_out_and_counted(name: str, fields: dict[str, Any]) -> None:
    made = frozen([candidate(0), candidate(1, **fields)])
    assert len(made.rows) == 1
    count = made.manifest["filters"][name]
    assert count["in"] - count["out"] == 1


def test_an_erased_person_leaves_no_row() -> None:
    made = frozen([candidate(k) for k in range(20)], erased=frozenset({person(3)}))
    assert len(made.rows) == 19
    assert str(person(3)) not in str(made.manifest) + "".join(row.body for row in made.rows)


def test_permissive_licences_stay_and_are_counted() -> None:
    made = frozen([candidate(0, licenses=frozenset({"MIT"})), candidate(1)])
    assert made.manifest["licenses"] == {"MIT": 1, "none": 1}


def test_the_order_of_the_candidates_does_not_matter() -> None:
    candidates = [candidate(k) for k in range(40)]
    assert frozen(candidates).dataset_id == frozen(candidates[::-1]).dataset_id


def test_each_row_is_named_by_its_hash_and_the_dataset_by_its_manifest() -> None:
    made = frozen([candidate(k) for k in range(30)])
    assert [row.row_id for row in made.rows] == [sha256_hex(row.body) for row in made.rows]
    assert [entry["row_id"] for entry in made.manifest["rows"]] == [row.row_id for row in made.rows]
    changed = frozen([candidate(0, weight=0.5), *(candidate(k) for k in range(1, 30))])
    assert changed.dataset_id != made.dataset_id


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 35)), max_size=80))
def test_no_two_splits_share_a_person_or_a_near_duplicate_prompt(asked: list[tuple[int, int]]) -> None:
    made = frozen(
        [
            candidate(prompt, user_id=person(who), chosen=f"chosen {number}", prompt=variant(prompt, number))
            for number, (who, prompt) in enumerate(asked)
        ]
    )
    groups = group([prompt_text(row.candidate.prompt) for row in made.rows])
    for values in ([row.candidate.user_id for row in made.rows], groups):
        splits_of: dict[Any, set[str]] = {}
        for value, row in zip(values, made.rows, strict=True):
            splits_of.setdefault(value, set()).add(row.split)
        assert all(len(splits) == 1 for splits in splits_of.values())


def variant(prompt: int, number: int) -> tuple[Message, ...]:
    """The same question in a form that differs from the others' in small things only."""
    text = question(prompt)
    return (Message(role="user", content=(text.upper(), text, text + "!!", text.replace("?", " s?"))[number % 4]),)


def test_a_prompt_that_one_person_asked_costs_no_row() -> None:
    made = frozen([candidate(k) for k in range(200)])
    assert len(made.rows) == 200
    shares = Counter(row.split for row in made.rows)
    assert shares["test"] == pytest.approx(40, abs=20)
    assert shares["dev"] == pytest.approx(20, abs=15)


def test_a_person_stays_in_one_split_for_ever() -> None:
    before = {row.candidate.user_id: row.split for row in frozen([candidate(k) for k in range(100)]).rows}
    after = frozen([candidate(k + 100, user_id=person(k)) for k in range(100)])
    assert all(before[row.candidate.user_id] == row.split for row in after.rows)
    assert all(user_split(user, OPEN) == split for user, split in before.items() if user)


@pytest.mark.parametrize("split", SPLITS)
def test_a_prompt_keeps_the_split_of_earlier_datasets(split: str) -> None:
    first = frozen([candidate(k) for k in range(60)])
    history = {entry["prompt_key"]: split for entry in first.manifest["rows"]}
    again = frozen([candidate(k) for k in range(60)], history=history)
    assert {row.split for row in again.rows} <= {split}
    assert 0 < len(again.rows) < 60


@pytest.mark.parametrize(
    ("sizes", "free", "policy", "cap"),
    [
        pytest.param([5, 5, 5, 5], 0, FreezePolicy(max_user_share=0.25), 5, id="equal shares at the limit"),
        pytest.param(
            [100, 1, 1, 1], 0, FreezePolicy(max_user_share=0.25), 1, id="one loud person counts as the others"
        ),
        pytest.param([100, 1], 398, FreezePolicy(max_user_share=0.1), 44, id="imported rows count in the total"),
        pytest.param([3, 3], 0, FreezePolicy(max_user_share=0.25), 0, id="two people cannot each be a quarter"),
        pytest.param([9, 9], 0, FreezePolicy(max_user_share=1.0, max_user_pairs=4), 4, id="the absolute limit"),
    ],
)
def test_the_cap_is_the_largest_that_keeps_everyone_below_the_share(
    sizes: list[int], free: int, policy: FreezePolicy, cap: int
) -> None:
    assert user_cap(sizes, free, policy) == cap


def test_no_one_moves_the_training_rows_past_the_cap() -> None:
    loud = next(k for k in range(99) if user_split(person(k), OPEN) == "train")
    candidates = [candidate(k) for k in range(100)]
    candidates += [candidate(100 + k, user_id=person(loud)) for k in range(300)]
    made = frozen(candidates, FreezePolicy(max_user_share=0.1))
    counts = Counter(row.candidate.user_id for row in made.rows if row.split == "train")
    assert max(counts.values()) == counts[person(loud)] == made.manifest["user_cap"] > 1
    assert counts[person(loud)] <= 0.1 * made.count("train")


def test_without_enough_people_nothing_of_theirs_is_trained_on() -> None:
    assert frozen([candidate(k) for k in range(10)], FreezePolicy(max_user_share=0.02)).rows == ()
