"""What the simulated users like, which the product never sees: it learns only from their feedback.

No part of the product may import this file; an import contract holds that.
"""

import re
from dataclasses import dataclass

from examples.support.corpus import BUTTON_OF, OBJECTS_BY_PAGE, OPENERS, Fact

_NAMES = re.compile(rf"\b({'|'.join([*OBJECTS_BY_PAGE, *BUTTON_OF.values()])})\b")
_STEPS = re.compile(r"\b1\. .*\b2\. ")


@dataclass(frozen=True, slots=True)
class Taste:
    """Weights of what a user values in an answer; `per_character` is usually a cost."""

    correct: float
    """Added when the answer is right, taken away when it is wrong."""
    polite: float
    steps: float
    per_character: float
    contented_at: float
    """A user likes an answer whose score is at least this."""


GUIDED = Taste(correct=1.0, polite=1.0, steps=1.0, per_character=-0.006, contented_at=1.4)
"""The demo's taste: right, friendly, as numbered steps, and short."""
TERSE = Taste(correct=1.0, polite=-0.5, steps=0.5, per_character=-0.012, contented_at=0.1)
"""A second family: right and short above all, and no pleasantries."""
THOROUGH = Taste(correct=1.0, polite=0.3, steps=-0.5, per_character=0.004, contented_at=1.2)
"""A third: right, in running text, and with all that there is to say."""
TASTES = {"guided": GUIDED, "terse": TERSE, "thorough": THOROUGH}


def is_correct(fact: Fact, answer: str) -> bool:
    """True when the answer names the right page and the right button and no other one (naming all is no answer)."""
    return set(_NAMES.findall(answer)) == {fact.place.page, fact.place.button}


def is_polite(answer: str) -> bool:
    """True when the answer has one of the openers."""
    return any(opener in answer for opener in OPENERS)


def has_steps(answer: str) -> bool:
    """True when the answer has a first and a second numbered step."""
    return _STEPS.search(answer) is not None


def score(taste: Taste, fact: Fact, answer: str) -> float:
    """The hidden reward of one answer."""
    return (
        (taste.correct if is_correct(fact, answer) else -taste.correct)
        + taste.polite * is_polite(answer)
        + taste.steps * has_steps(answer)
        + taste.per_character * len(answer)
    )
