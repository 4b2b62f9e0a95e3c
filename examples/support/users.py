"""Simulated users: who they are, and what each does with an answer. Pure: a function of its arguments and `rng`.

Users judge by a taste that only this package knows, and each one errs now and then; the platform sees their actions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from examples.support.corpus import Fact, Style, user_questions, write_answer
from examples.support.taste import Taste, is_correct, score

Kind = Literal["thumbs", "edit", "regenerate", "choice", "comment", "signal", "outcome"]

MEAN_NOISE = 0.18
TOO_LONG = 130
"""Characters from which a right answer is too long for anyone."""
INDIFFERENT_BELOW = 0.1
"""Of two answers whose scores are closer than this, a user prefers neither."""


@dataclass(frozen=True, slots=True)
class User:
    """One person. All shares are probabilities per occasion."""

    id: str
    taste: Taste
    noise: float
    """A judgement comes out as its opposite with this probability."""
    questions: tuple[str, ...]
    """What this user asks, in order; nobody else of the same crowd asks these."""
    thumbs_share: float = 0.8
    compare_share: float = 0.3
    """Asks twice from the start and chooses: two answers side by side."""
    edit_share: float = 0.2
    """Writes a disliked answer the way it should have been."""
    regenerate_share: float = 0.65
    """Asks again after a disliked answer (when not editing it)."""
    choice_share: float = 0.75
    """Says which of two answers is better by choosing it; else by a thumb on the newer one."""
    outcome_share: float = 0.3


@dataclass(frozen=True, slots=True)
class Action:
    """One act of feedback on the answer at `answer` of the turn's answers.

    `value` is what the feedback route takes for the kind, except for a choice: there it is the rejected answers'
    positions, since a user does not know their ids.
    """

    kind: Kind
    answer: int
    value: float | str | tuple[int, ...] | dict[str, str | float]
    reasons: tuple[str, ...] = ()


def make_users(
    num_users: int,
    taste: Taste,
    seed: int,
    *,
    prefix: str = "user",
    questions_each: int = 8,
    mean_noise: float = MEAN_NOISE,
) -> list[User]:
    """A crowd whose questions do not overlap as long as there are enough of them (960), drawn by `seed`.

    Noise varies between users (beta distribution); so does how readily they rate.
    """
    rng = random.Random(f"{prefix}-{seed}")
    pool: list[str] = []
    users = []
    for number in range(num_users):
        if len(pool) < questions_each:
            pool = user_questions()
            rng.shuffle(pool)
        asked, pool = tuple(pool[:questions_each]), pool[questions_each:]
        noise = rng.betavariate(9 * mean_noise, 9 * (1 - mean_noise))
        users.append(User(f"{prefix}-{number:05d}", taste, noise, asked, thumbs_share=rng.uniform(0.7, 0.9)))
    return users


def react(user: User, fact: Fact, answers: Sequence[str], rng: random.Random) -> list[Action]:
    """What the user does, now that the last of `answers` to the same turn has arrived.

    A "regenerate" among the actions says that the turn is asked again; `react` is then called with one answer more.
    """
    if len(answers) > 1:
        return _compare(user, fact, answers, rng)
    if _likes(user, fact, answers[0], rng):
        return _approve(user, fact, answers[0], rng)
    return _disapprove(user, fact, answers[0], rng)


def wants_two(user: User, rng: random.Random) -> bool:
    """Whether the user asks for two answers side by side this time."""
    return rng.random() < user.compare_share


def thumb(user: User, fact: Fact, answers: Sequence[str], rng: random.Random) -> list[Action]:
    """A thumb on the first answer and nothing else."""
    if rng.random() >= user.thumbs_share:
        return []
    return [_thumb(user, fact, answers[0], _likes(user, fact, answers[0], rng))]


def rewrite(user: User, fact: Fact, rng: random.Random) -> str:
    """The answer as this user would have it: right, in the wanted style, and with fillers only if length is liked."""
    num_fillers = 2 if user.taste.per_character > 0 else 0
    return write_answer(fact.place, Style(user.taste.polite > 0, user.taste.steps > 0, num_fillers), rng)


def _likes(user: User, fact: Fact, answer: str, rng: random.Random) -> bool:
    return (score(user.taste, fact, answer) >= user.taste.contented_at) != (rng.random() < user.noise)


def _thumb(user: User, fact: Fact, answer: str, liked: bool, at: int = 0) -> Action:
    return Action("thumbs", at, 1.0 if liked else -1.0, () if liked else reasons(user, fact, answer))


def reasons(user: User, fact: Fact, answer: str) -> tuple[str, ...]:
    """What the user ticks beside a thumb down."""
    if not is_correct(fact, answer):
        return ("wrong",)
    if len(answer) > TOO_LONG:
        return ("too long",)
    return ("style",)


def _approve(user: User, fact: Fact, answer: str, rng: random.Random) -> list[Action]:
    actions = [_thumb(user, fact, answer, True)] if rng.random() < user.thumbs_share else []
    if rng.random() < 0.1:
        actions.append(Action("signal", 0, {"name": "copied"}))
    return actions + _outcome(user, fact, answer, 0, rng)


def _disapprove(user: User, fact: Fact, answer: str, rng: random.Random) -> list[Action]:
    if rng.random() < user.edit_share:
        better = rewrite(user, fact, rng)
        return [Action("edit", 0, better)] if better != answer else []
    actions = [_thumb(user, fact, answer, False)] if rng.random() < user.thumbs_share else []
    if rng.random() < 0.05:
        actions.append(Action("comment", 0, "This did not help me."))
    if rng.random() < user.regenerate_share:
        return [*actions, Action("regenerate", 0, round(rng.uniform(0.3, 1.0), 2))]
    return actions + _outcome(user, fact, answer, 0, rng)


def _compare(user: User, fact: Fact, answers: Sequence[str], rng: random.Random) -> list[Action]:
    """Choose between the newest answer and the one before it."""
    new, old = len(answers) - 1, len(answers) - 2
    gap = score(user.taste, fact, answers[new]) - score(user.taste, fact, answers[old])
    if abs(gap) < INDIFFERENT_BELOW:
        return _outcome(user, fact, answers[new], new, rng)
    best, worse = (new, old) if (gap > 0) != (rng.random() < user.noise) else (old, new)
    outcome = _outcome(user, fact, answers[best], best, rng)
    if rng.random() < user.choice_share:
        return [Action("choice", best, (worse,)), *outcome]
    return [_thumb(user, fact, answers[new], best == new, new), *outcome]


def _outcome(user: User, fact: Fact, answer: str, at: int, rng: random.Random) -> list[Action]:
    if rng.random() >= user.outcome_share:
        return []
    resolved = is_correct(fact, answer)
    return [Action("outcome", at, {"name": "resolved" if resolved else "escalated", "value": 1.0})]
