"""The replay mix: shares, no row twice, nothing held out, nobody too much, and a reason where there is nothing."""

from collections import Counter
from typing import Any

import pytest

from hone.errors import ConfigError
from tests.support.training import question, row
from training.method_tables import Replay
from training.mix import GENERAL, MIXED, OLDER, Ingredients, Pool, identity, mix
from training.spec import RunSpec, parse


def general(number: int) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question(1000 + number)}], "completion": f"General {number}."}


def mixed(rows: list[dict[str, Any]], **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    seed, replay = fields.pop("seed", 0), fields.pop("replay", Replay())
    return mix(Ingredients(rows=rows, **fields), replay, seed)


def kinds(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row.get(MIXED, "fresh") for row in rows)


def learnt(rows: list[dict[str, Any]]) -> frozenset[str]:
    return frozenset(identity(row) for row in rows)


def test_fresh_older_and_general_rows_have_their_shares() -> None:
    rows = [row(k) for k in range(100)]
    made, facts = mixed(rows, learnt=learnt(rows[30:]), general=Pool(rows=[general(k) for k in range(50)]))
    assert kinds(made) == {"fresh": 30, OLDER: 9, GENERAL: 4}
    assert (facts["fresh"], facts[OLDER]["num"], facts[OLDER]["of"]) == (30, 9, 70)
    assert (facts[GENERAL]["num"], facts[GENERAL]["of"], facts["left_out"]) == (4, 50, {})
    assert len(learnt(made)) == len(made), "no row comes twice"


def test_an_equal_seed_draws_the_same_rows_and_another_one_others() -> None:
    rows = [row(k) for k in range(100)]
    fields = {"learnt": learnt(rows[20:]), "general": Pool(rows=[general(k) for k in range(50)])}
    assert mixed(rows, **fields) == mixed(rows, **fields)
    assert learnt(mixed(rows, **fields)[0]) != learnt(mixed(rows, **fields, seed=1)[0])


def test_a_row_that_was_only_weighed_otherwise_is_the_same_feedback() -> None:
    rows = [row(k) for k in range(20)]
    before = [{**one, "weight": 0.5, "off_policy": "other_base"} for one in rows[10:]]
    assert kinds(mixed(rows, learnt=learnt(before))[0]) == {"fresh": 10, OLDER: 2}


def test_too_few_rows_are_all_taken_and_none_is_made_up() -> None:
    rows = [row(k) for k in range(50)]
    pools = {"older": Pool(rows=[row(200)]), "general": Pool(rows=[general(0), general(0)])}
    made, facts = mixed(rows, learnt=learnt([row(200)]), **pools)
    assert kinds(made) == {"fresh": 50, OLDER: 1, GENERAL: 1}
    assert facts[GENERAL]["of"] == 1, "the same row twice is one"


def test_without_any_pool_the_rows_stay_and_the_reasons_are_told() -> None:
    rows = [row(k) for k in range(5)]
    made, facts = mixed(rows, older=Pool(why="no earlier snapshot"), general=Pool(why="no import"))
    assert made == rows
    assert facts == {
        "fresh": 5,
        OLDER: {"num": 0, "of": 0, "share": 0.2, "datasets": [], "why": "no earlier snapshot"},
        GENERAL: {"num": 0, "of": 0, "share": 0.1, "datasets": [], "why": "no import"},
        "left_out": {},
    }


def test_where_the_base_has_learnt_from_every_row_all_are_trained_on() -> None:
    rows = [row(k) for k in range(5)]
    made, facts = mixed(rows, learnt=learnt(rows))
    assert made == rows
    assert "has learnt from every row" in facts[OLDER]["why"]


def test_a_share_of_all_takes_every_older_row_and_one_of_0_takes_none() -> None:
    rows = [row(k) for k in range(20)]
    fields = {"learnt": learnt(rows[10:])}
    assert kinds(mixed(rows, **fields, replay=Replay(older_share="all"))[0]) == {"fresh": 10, OLDER: 10}
    made, facts = mixed(rows, **fields, replay=Replay(older_share=0))
    assert kinds(made) == {"fresh": 10}
    assert facts[OLDER]["why"] == "its share is 0.0"


def test_nothing_near_a_held_out_prompt_and_nobody_with_held_out_rows_is_mixed_in() -> None:
    held_out = [{"prompt": [{"role": "user", "content": f"{question(1000)}!"}]}, row(7)]
    older = [{**row(300), "user_id": row(7)["user_id"]}, row(301)]
    pools = {"general": Pool(rows=[general(0), general(1)]), "older": Pool(rows=older)}
    made, facts = mixed([row(k) for k in range(20, 60)], held_out=held_out, **pools)
    assert facts["left_out"] == {"person": 1, "prompt": 1}
    assert kinds(made) == {"fresh": 40, OLDER: 1, GENERAL: 1}
    assert general(1) | {MIXED: GENERAL} in made


def test_more_older_rows_are_taken_where_one_person_would_make_up_too_much() -> None:
    fresh = [row(k, user_id="ann") for k in range(5)] + [row(k) for k in range(5, 20)]
    older = [row(k) for k in range(100, 200)]
    made, _ = mixed([*fresh, *older], learnt=learnt(older), max_user_share=0.1)
    assert kinds(made) == {"fresh": 20, OLDER: 30}, "5 of 50 rows are the tenth that one person may have"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replay": {"general_share": 0.5, "older_share": 0.5}}, "leave less than 20% for what is new"),
        ({"method": "grpo", "replay": {"general_share": 0.05}}, r"does not read \[replay\]"),
    ],
)
def test_a_mix_without_anything_new_or_for_methods_without_one_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(RunSpec, values, "here")
