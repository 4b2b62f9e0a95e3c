"""What simulated users do with answers, and how it is put for the feedback route."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from examples.support.corpus import Style, fact_of, mistaken, write_answer
from examples.support.drive import feedback_body, fresh_users
from examples.support.taste import GUIDED, TERSE, is_correct, is_polite, score
from examples.support.users import MEAN_NOISE, Action, make_users, react, reasons, rewrite, thumb

USER = replace(make_users(1, GUIDED, seed=0)[0], noise=0.0, thumbs_share=1.0)
FACT = fact_of(USER.questions[0])
GOOD = write_answer(FACT.place, Style(True, True, 0), random.Random(0))
PLAIN = write_answer(FACT.place, Style(False, False, 1), random.Random(0))
WRONG = write_answer(mistaken(FACT.place, random.Random(0)), Style(True, True, 0), random.Random(0))


def kinds(actions: list[Action]) -> list[str]:
    return [action.kind for action in actions]


def test_a_crowd_of_120_shares_no_question():
    asked = [question for user in make_users(120, GUIDED, seed=0) for question in user.questions]
    assert len(asked) == len(set(asked)) == 960


def test_noise_differs_between_users_and_averages_as_stated():
    noise = [user.noise for user in make_users(2000, GUIDED, seed=0)]
    assert sum(noise) / len(noise) == pytest.approx(MEAN_NOISE, abs=0.01)
    assert min(noise) < 0.08
    assert max(noise) > 0.35


def test_crowds_are_equal_for_equal_seeds_only():
    assert make_users(20, GUIDED, seed=1) == make_users(20, GUIDED, seed=1)
    assert make_users(20, GUIDED, seed=1) != make_users(20, GUIDED, seed=2)


def test_fresh_users_never_repeat_an_id():
    crowd = fresh_users(GUIDED, 0, "visitor")
    ids = [next(crowd).id for _ in range(1200)]
    assert len(set(ids)) == 1200


def test_a_content_user_gives_a_thumb_up():
    assert react(USER, FACT, [GOOD], random.Random(0))[0] == Action("thumbs", 0, 1.0)


def test_a_discontented_user_edits_asks_again_or_gives_a_thumb_down():
    rng = random.Random(0)
    seen = Counter(kind for _ in range(400) for kind in kinds(react(USER, FACT, [WRONG], rng)))
    assert seen["edit"] == pytest.approx(400 * USER.edit_share, rel=0.3)
    assert seen["regenerate"] == pytest.approx(400 * (1 - USER.edit_share) * USER.regenerate_share, rel=0.2)
    assert seen["thumbs"] > 250
    assert seen["choice"] == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(WRONG, "wrong"), (PLAIN, "style"), (PLAIN + PLAIN, "too long")],
)
def test_a_thumb_down_says_why(answer: str, reason: str):
    assert reasons(USER, FACT, answer) == (reason,)


def test_an_edit_is_what_the_user_wanted():
    text = rewrite(USER, FACT, random.Random(0))
    assert is_correct(FACT, text)
    assert score(GUIDED, FACT, text) > GUIDED.contented_at
    assert not is_polite(rewrite(replace(USER, taste=TERSE), FACT, random.Random(0)))


def test_of_two_answers_the_better_one_is_preferred():
    rng = random.Random(0)
    for answers in ([PLAIN, GOOD], [GOOD, PLAIN]):
        better = answers.index(GOOD)
        for action in (react(USER, FACT, answers, rng)[0] for _ in range(50)):
            if action.kind == "choice":
                assert (action.answer, action.value) == (better, (1 - better,))
            else:
                assert (action.kind, action.answer, action.value) == ("thumbs", 1, 1.0 if better == 1 else -1.0)


def test_between_equal_answers_no_preference_is_stated():
    assert set(kinds(react(USER, FACT, [GOOD, GOOD], random.Random(1)))) <= {"outcome"}


def test_judgements_flip_as_often_as_the_users_noise():
    rng, noisy = random.Random(0), replace(USER, noise=0.25)
    ups = [thumb(noisy, FACT, [WRONG], rng)[0].value == 1.0 for _ in range(2000)]
    assert sum(ups) / len(ups) == pytest.approx(0.25, abs=0.03)


def test_a_choice_names_the_rejected_answers_by_id():
    body = feedback_body(
        Action("choice", 1, (0,)), ["first", "second"], event_id="e", occurred_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert body["response_id"] == "second"
    assert body["value"] == {"rejected": ["first"]}
    assert body["occurred_at"] == "2026-01-01T00:00:00+00:00"


def test_a_thumb_carries_value_and_reasons():
    action = Action("thumbs", 0, -1.0, ("wrong",))
    body = feedback_body(action, ["first"], event_id="e", occurred_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert (body["kind"], body["value"], body["reasons"], body["event_id"]) == ("thumbs", -1.0, ["wrong"], "e")
