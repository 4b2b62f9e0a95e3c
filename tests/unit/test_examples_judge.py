"""The hidden comparison of two models: intervals over prompts, ties half, and no effect of repeated answers."""

import random

import numpy as np
import pytest

from examples.support.corpus import Style, fact_of, judge_questions, mistaken, write_answer
from examples.support.judge import clustered_means, compare
from examples.support.taste import GUIDED

QUESTIONS = judge_questions()


def answers(style: Style, wrong_share: float, seed: int) -> list[str]:
    rng = random.Random(seed)
    facts = [fact_of(question) for question in QUESTIONS]
    places = [mistaken(fact.place, rng) if rng.random() < wrong_share else fact.place for fact in facts]
    return [write_answer(place, style, rng) for place in places]


def test_a_better_model_wins_and_its_interval_is_above_a_half():
    plain, guided = answers(Style(False, False, 2), 0.2, 0), answers(Style(True, True, 0), 0.2, 1)
    result = compare(QUESTIONS, plain, guided, GUIDED)
    assert result.win_rate.low > 0.5
    assert result.reward_b.low > result.reward_a.high
    assert result.correct_a.estimate == pytest.approx(0.8, abs=0.1)
    assert (result.num_prompts, result.num_answers) == (160, 160)


def test_equal_answers_tie_at_one_half():
    same = answers(Style(True, False, 1), 0.0, 0)
    result = compare(QUESTIONS, same, same, GUIDED)
    assert result.win_rate.estimate == result.win_rate.low == result.win_rate.high == 0.5


def test_swapping_the_models_mirrors_the_win_rate():
    a, b = answers(Style(False, True, 1), 0.1, 0), answers(Style(True, False, 1), 0.1, 1)
    there, back = compare(QUESTIONS, a, b, GUIDED), compare(QUESTIONS, b, a, GUIDED)
    assert there.win_rate.estimate == pytest.approx(1 - back.win_rate.estimate)


def test_repeating_every_answer_does_not_narrow_the_interval():
    a, b = answers(Style(False, True, 1), 0.3, 0), answers(Style(True, False, 1), 0.3, 1)
    once, thrice = compare(QUESTIONS, a, b, GUIDED), compare(QUESTIONS * 3, a * 3, b * 3, GUIDED)
    assert thrice.win_rate.high - thrice.win_rate.low == pytest.approx(once.win_rate.high - once.win_rate.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    clusters = [str(k // 3) for k in range(300)]
    covered = 0
    for trial in range(200):
        values = np.repeat(rng.normal(0, 1, 100), 3) + rng.normal(0, 0.5, 300)
        interval = clustered_means(values[None], clusters, trial)[0]
        covered += interval.low <= 0 <= interval.high
    assert 0.9 <= covered / 200 <= 0.99
