"""The facts, questions and answers of a made-up product's support desk.

Everything follows from the tables below and a seed. A question asks how to do one thing to one object; a right answer
names the one page that owns the object and the one button that does the thing. Some (verb, object) combinations are
held out: the base model never sees them, though it has seen each verb and each object elsewhere.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

Message = dict[str, str]

OBJECTS_BY_PAGE = {
    "Billing": ("invoice", "receipt", "coupon", "refund"),
    "Profile": ("avatar", "nickname", "biography"),
    "Security": ("password", "login", "session"),
    "Orders": ("parcel", "basket", "wishlist", "shipment"),
    "Reports": ("chart", "forecast", "summary"),
    "Calendar": ("meeting", "reminder", "holiday", "booking"),
    "Team": ("teammate", "mentor", "guest"),
    "Storage": ("folder", "backup", "photo", "snapshot"),
}
PAGE_OF = {thing: page for page, things in OBJECTS_BY_PAGE.items() for thing in things}
BUTTON_OF = {
    "rename": "Edit",
    "delete": "Remove",
    "download": "Save",
    "share": "Invite",
    "print": "Paper",
    "restore": "Undo",
    "archive": "Shelve",
    "duplicate": "Copy",
    "hide": "Mask",
    "translate": "Language",
}
TEMPLATES = (
    "How do I {verb} my {thing}?",
    "Where can I {verb} my {thing}?",
    "I want to {verb} my {thing}, please.",
    "Show me how to {verb} my {thing}.",
)
GOLDEN_TEMPLATE = "Please {verb} my {thing}: what now?"
"""Used by golden tests only, never by users or by the hidden evaluation: such a prompt never trains."""
PAGE_TEMPLATES = ("Which page holds the {thing}?", "On what page is the {thing}?")
BUTTON_TEMPLATES = ("Which button is there to {verb}?", "What do I press to {verb}?")
OPENERS = ("Happy to help!", "Glad you asked!", "Thank you for writing!")
FILLERS = (
    "The change shows up at once.",
    "It works the same on a phone.",
    "Nothing else is touched by this.",
    "Other people are told by mail.",
)
GENERAL_SHARE = 0.15
"""Share of the pretraining rows that ask for a page or a button alone."""
WRONG_SHARE = 0.2
"""Share of the pretraining answers that name a wrong page or button: so the base model errs, whatever its seed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the product does something."""

    page: str
    button: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a user may want done."""

    verb: str
    thing: str

    @property
    def place(self) -> Place:
        """Where the product does it."""
        return Place(PAGE_OF[self.thing], BUTTON_OF[self.verb])

    def ask(self, template: str) -> str:
        """The question in one wording."""
        return template.format(verb=self.verb, thing=self.thing)


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is put, apart from what it says."""

    polite: bool
    steps: bool
    num_fillers: int


@dataclass(frozen=True, slots=True)
class Check:
    """A prompt with the strings that its answer must contain: an operator's golden test, or one of the general set."""

    id: str
    prompt: tuple[Message, ...]
    must_contain: tuple[str, ...]


def all_facts() -> list[Fact]:
    """All 280 combinations, objects innermost."""
    return [Fact(verb, thing) for verb, thing in product(BUTTON_OF, PAGE_OF)]


def held_out_facts() -> list[Fact]:
    """40 of the 280 combinations: four objects of every verb, spread evenly over the objects."""
    num_objects = len(PAGE_OF)
    facts = all_facts()
    return [fact for k, fact in enumerate(facts) if (k % num_objects + 3 * (k // num_objects)) % 7 == 0]


def train_facts() -> list[Fact]:
    """The 240 combinations that are not held out."""
    held_out = set(held_out_facts())
    return [fact for fact in all_facts() if fact not in held_out]


def questions(facts: Iterable[Fact]) -> list[str]:
    """Every user wording of every fact, wordings innermost."""
    return [fact.ask(template) for fact in facts for template in TEMPLATES]


def as_prompt(question: str) -> list[Message]:
    """The question as the first message of a chat."""
    return [{"role": "user", "content": question}]


@cache
def _facts_by_question() -> dict[str, Fact]:
    return {fact.ask(template): fact for fact in all_facts() for template in (*TEMPLATES, GOLDEN_TEMPLATE)}


def fact_of(question: str) -> Fact:
    """What a question of this world asks for.

    Raises:
        KeyError: the question is none of this world's.
    """
    return _facts_by_question()[question]


def write_answer(place: Place, style: Style, rng: random.Random) -> str:
    """An answer that names `place`, in the given style; `rng` picks the opener and the fillers."""
    parts = [rng.choice(OPENERS)] if style.polite else []
    if style.steps:
        parts.append(f"1. Open the {place.page} page. 2. Press the {place.button} button.")
    else:
        parts.append(f"Look on the {place.page} page, where the {place.button} button will do it for you.")
    return " ".join(parts + rng.sample(FILLERS, style.num_fillers))


def mistaken(place: Place, rng: random.Random) -> Place:
    """Another place: either the page or the button is wrong."""
    if rng.random() < 0.5:
        return Place(rng.choice([page for page in OBJECTS_BY_PAGE if page != place.page]), place.button)
    return Place(place.page, rng.choice([button for button in BUTTON_OF.values() if button != place.button]))


def base_style(rng: random.Random) -> Style:
    """The mixture that the base model imitates: polite 40 %, steps 40 %, 0-3 fillers."""
    return Style(polite=rng.random() < 0.4, steps=rng.random() < 0.4, num_fillers=rng.randrange(4))


def pretraining_rows(num_rows: int, seed: int) -> list[list[Message]]:
    """Chats of one question and one answer, mostly right, over the training combinations only."""
    rng = random.Random(seed)
    facts = train_facts()
    return [_general_row(rng) if rng.random() < GENERAL_SHARE else _support_row(facts, rng) for _ in range(num_rows)]


def _support_row(facts: list[Fact], rng: random.Random) -> list[Message]:
    fact = rng.choice(facts)
    question = fact.ask(rng.choice((*TEMPLATES, GOLDEN_TEMPLATE)))
    place = mistaken(fact.place, rng) if rng.random() < WRONG_SHARE else fact.place
    return _chat(question, write_answer(place, base_style(rng), rng))


def _general_row(rng: random.Random) -> list[Message]:
    return _chat(*rng.choice(general_knowledge()))


def _chat(question: str, answer: str) -> list[Message]:
    return [*as_prompt(question), {"role": "assistant", "content": answer}]


@cache
def general_knowledge() -> tuple[tuple[str, str], ...]:
    """Questions with their one answer, about a page or a button alone; users never ask them."""
    pages = product(PAGE_OF.items(), PAGE_TEMPLATES)
    buttons = product(BUTTON_OF.items(), BUTTON_TEMPLATES)
    return (
        *((template.format(thing=thing), f"The {page} page.") for (thing, page), template in pages),
        *((template.format(verb=verb), f"The {button} button.") for (verb, button), template in buttons),
    )


def forgetting_checks() -> list[Check]:
    """What the base model knows besides support questions (76 prompts): a retrained model must still know it."""
    return [
        Check(f"general-{k:03d}", tuple(as_prompt(question)), (answer.removeprefix("The ").removesuffix("."),))
        for k, (question, answer) in enumerate(general_knowledge())
    ]


def golden_checks(num_well_known: int = 40) -> list[Check]:
    """Right page and right button: all held-out combinations and as many well-known ones, evenly picked."""
    known = train_facts()
    picked = known[:: max(1, len(known) // num_well_known)][:num_well_known]
    named = [("held-out", fact) for fact in held_out_facts()] + [("well-known", fact) for fact in picked]
    return [
        Check(
            f"{kind}-{fact.verb}-{fact.thing}",
            tuple(as_prompt(fact.ask(GOLDEN_TEMPLATE))),
            (f"{fact.place.page} page", f"{fact.place.button} button"),
        )
        for kind, fact in named
    ]


def judge_questions() -> list[str]:
    """160 questions over the held-out combinations, for the hidden evaluation: no simulated user asks them."""
    return questions(held_out_facts())


def user_questions() -> list[str]:
    """960 questions over the training combinations: what simulated users ask."""
    return questions(train_facts())
