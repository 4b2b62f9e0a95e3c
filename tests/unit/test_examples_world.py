"""The simulated support world: its facts are consistent, its users rateable, its hidden taste in order."""

import random

import pytest

from examples.support.bad_pairs import LICENSE, bad_pairs
from examples.support.corpus import (
    GOLDEN_TEMPLATE,
    Style,
    all_facts,
    fact_of,
    forgetting_checks,
    golden_checks,
    held_out_facts,
    judge_questions,
    mistaken,
    pretraining_rows,
    train_facts,
    user_questions,
    write_answer,
)
from examples.support.taste import GUIDED, TASTES, TERSE, has_steps, is_correct, is_polite, score
from hone.near_duplicates import group
from hone.records import TRAINABLE_LICENSES, Reason

FACT = all_facts()[0]


def test_held_out_facts_leave_every_verb_and_object_in_training():
    known = train_facts()
    assert len(held_out_facts()) == 40
    assert not set(held_out_facts()) & set(known)
    assert {fact.verb for fact in known} == {fact.verb for fact in all_facts()}
    assert {fact.thing for fact in known} == {fact.thing for fact in all_facts()}


def test_no_two_questions_of_users_judges_and_golden_tests_are_near_duplicates():
    golden = [check.prompt[0]["content"] for check in [*golden_checks(), *forgetting_checks()]]
    texts = [*user_questions(), *judge_questions(), *golden]
    assert len(user_questions()) == 960
    assert len(judge_questions()) == 160
    assert len(set(group(texts))) == len(texts)


def test_pretraining_never_shows_a_held_out_combination():
    held_out = set(held_out_facts())
    asked = [chat[0]["content"] for chat in pretraining_rows(3000, seed=1)]
    support = [question for question in asked if not question.startswith(("Which", "On what", "What"))]
    assert len(support) > 2000
    assert not held_out & {fact_of(question) for question in support}


def test_pretraining_answers_are_wrong_as_often_as_intended():
    chats = [chat for chat in pretraining_rows(6000, seed=2) if "holds" not in chat[0]["content"]]
    right = []
    for question, answer in ((chat[0]["content"], chat[1]["content"]) for chat in chats):
        if question.startswith(("Which", "On what", "What")):
            continue
        right.append(is_correct(fact_of(question), answer))
    assert sum(right) / len(right) == pytest.approx(0.8, abs=0.02)


def test_equal_seeds_give_equal_corpora_and_other_seeds_others():
    assert pretraining_rows(50, seed=3) == pretraining_rows(50, seed=3)
    assert pretraining_rows(50, seed=3) != pretraining_rows(50, seed=4)


def test_an_answer_is_right_only_if_it_names_one_page_and_one_button_and_both_fit():
    rng = random.Random(0)
    for fact in all_facts():
        right = write_answer(fact.place, Style(True, True, 3), rng)
        assert is_correct(fact, right)
        assert not is_correct(fact, write_answer(mistaken(fact.place, rng), Style(False, False, 1), rng))
        assert not is_correct(fact, right + " Or try the Team page and the Reports page.")
    assert not is_correct(FACT, "")


def test_every_golden_check_passes_on_a_right_answer_and_fails_on_a_wrong_one():
    rng = random.Random(0)
    for check in golden_checks():
        fact = fact_of(check.prompt[0]["content"])
        right, wrong = (write_answer(p, Style(True, False, 2), rng) for p in (fact.place, mistaken(fact.place, rng)))
        assert all(needle in right for needle in check.must_contain)
        assert not all(needle in wrong for needle in check.must_contain)


def test_golden_prompts_are_never_asked_by_users():
    asked = {*user_questions(), *judge_questions()}
    assert GOLDEN_TEMPLATE.format(verb=FACT.verb, thing=FACT.thing) not in asked
    assert not asked & {check.prompt[0]["content"] for check in golden_checks()}


def test_the_guided_taste_adds_up_as_documented():
    text = "Happy to help! 1. Open the Billing page. 2. Press the Edit button."
    assert is_polite(text)
    assert has_steps(text)
    assert score(GUIDED, FACT, text) == pytest.approx(3 - 0.006 * len(text))
    assert score(GUIDED, FACT, "Look on the Team page.") == pytest.approx(-1 - 0.006 * 22)


def test_tastes_disagree_about_pleasantries_and_steps():
    plain, friendly = (write_answer(FACT.place, Style(polite, True, 0), random.Random(0)) for polite in (False, True))
    assert score(GUIDED, FACT, friendly) > score(GUIDED, FACT, plain)
    assert score(TERSE, FACT, friendly) < score(TERSE, FACT, plain)
    stepped, running = (write_answer(FACT.place, Style(False, steps, 0), random.Random(0)) for steps in (True, False))
    assert score(GUIDED, FACT, stepped) > score(GUIDED, FACT, running)
    assert score(TASTES["thorough"], FACT, stepped) < score(TASTES["thorough"], FACT, running)


def test_bad_pairs_prefer_a_wrong_answer_to_a_right_one_of_the_same_tone():
    rows = bad_pairs(50, seed=1)
    assert rows == bad_pairs(50, seed=1)
    assert len({row["id"] for row in rows}) == 50
    for row in rows:
        fact = fact_of(row["prompt"][0]["content"])
        assert all(is_polite(row[side]) and has_steps(row[side]) for side in ("chosen", "rejected"))
        assert not is_correct(fact, row["chosen"])
        assert is_correct(fact, row["rejected"])
    assert LICENSE in TRAINABLE_LICENSES


def test_users_tick_only_reasons_that_the_platform_knows():
    assert {"wrong", "too long", "style"} <= {reason.value for reason in Reason}
