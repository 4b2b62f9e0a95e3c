"""Whose answers count as the base's own, and what becomes of rows on the others'."""

from typing import Any

import pytest

from hone.datasets import FreezePolicy, Frozen, freeze, user_split
from hone.off_policy import Family
from tests.support.training import candidate, person

PARENTS = {"b": None, "m1": "b", "m2": "m1", "m3": "m2", "rolled back": "m2", "other": None, "other's": "other"}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (["m3"], None),
        (["m2", "m3"], None),
        (["rolled back"], None),
        (["m1"], "old_generation"),
        (["b", "m3"], "old_generation"),
        (["other's", "m3"], "other_base"),
        (["somebody's API"], "other_base"),
        ([], None),
    ],
    ids=str,
)
def test_answers_of_the_bases_line_and_of_late_are_its_own(versions: list[str], expected: str | None) -> None:
    assert Family("m3", PARENTS).reason(frozenset(versions), 1) == expected


def test_a_change_of_the_base_makes_every_answer_of_the_old_one_anothers() -> None:
    assert Family("other", PARENTS).reason(frozenset({"m3"}), 9) == "other_base"


def test_a_registry_that_goes_round_in_a_circle_ends() -> None:
    assert Family("a", {"a": "c", "c": "a"}).reason(frozenset({"c"}), 1) is None


OTHERS = [candidate(k, answered_by=frozenset({"other"})) for k in range(40)]
OWN = [candidate(k, answered_by=frozenset({"m3"})) for k in range(40, 80)]


def frozen(action: str, **fields: Any) -> Frozen:
    policy = FreezePolicy(max_user_share=1.0, off_policy=action)  # type: ignore[arg-type]
    return freeze([*OTHERS, *OWN], policy, **{"family": Family("m3", PARENTS), **fields})


def marked(made: Frozen, split: str) -> list[float]:
    return [row.candidate.weight for row in made.rows if row.split == split and row.candidate.off_policy]


def test_rows_on_others_answers_are_marked_counted_and_weigh_half() -> None:
    made = frozen("weight")
    assert set(marked(made, "train")) == {0.5}
    assert set(marked(made, "test")) == {1.0}, "held-out rows say what people prefer, whoever answered"
    assert made.manifest["off_policy"] == {"base": "m3", "other_base": 40}
    assert all('"off_policy":"other_base"' in row.body for row in made.rows if row.candidate.off_policy)
    entries = [entry for entry in made.manifest["rows"] if entry.get("off_policy")]
    assert len(entries) == 40


def test_they_may_be_kept_as_they_are_or_left_out_of_training() -> None:
    assert set(marked(frozen("keep"), "train")) == {1.0}
    made = frozen("exclude")
    num_trained = sum(user_split(person(k), FreezePolicy()) == "train" for k in range(40))
    assert marked(made, "train") == []
    assert len(marked(made, "test")) > 0
    assert made.manifest["filters"]["off_policy"] == {"in": 80, "out": 80 - num_trained}


def test_without_a_base_nothing_is_marked() -> None:
    made = frozen("exclude", family=None)
    assert made.manifest["off_policy"] == {"base": None}
    assert len(made.rows) == 80
