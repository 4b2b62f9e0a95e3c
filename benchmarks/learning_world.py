"""One round of the simulated world without its network: users ask, judge, correct; the product's rules make pairs.

Users and their hidden taste are the demo's; pairs come from `ingest.pairing`, the same code that runs behind Kafka.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from examples.support.corpus import Fact, as_prompt, fact_of
from examples.support.taste import score
from examples.support.users import INDIFFERENT_BELOW, Action, User, react, wants_two
from hone.records import Track
from hone.settings import Pairs
from hone.store.pairs import Answer, Label, Signal
from ingest.pairing import derive

SPACE = UUID("9a6d1b53-52f3-4d0a-8a53-0b2f10a2f1c4")
START = datetime(2026, 1, 1, tzinfo=UTC)
ANSWERS_A_TURN = 2
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """An answer of the model, and whether it ended by itself."""

    text: str
    ended: bool


@dataclass
class Feedback:
    """What a round of users left behind."""

    rows: list[Row] = field(default_factory=list)
    "Preference pairs, as a dataset holds them."
    labels: list[Row] = field(default_factory=list)
    "Thumbs, as rows of prompt, completion, label and weight."
    oracle_rows: list[Row] = field(default_factory=list)
    "The same questions' two answers, labelled by the hidden reward without any noise."
    events: Counter[str] = field(default_factory=Counter)

    @property
    def num_events(self) -> int:
        """Acts of feedback."""
        return self.events.total()


@dataclass
class Turn:
    """One question, the answers that were shown, and what the user did about them."""

    user: User
    question: str
    answers: list[Answer] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)

    def show(self, written: Written) -> None:
        """Show one more answer."""
        number = len(self.answers)
        name = f"{self.user.id} {self.question}"
        self.answers.append(
            Answer(
                response_id=uuid5(SPACE, f"{name} {number}"),
                turn_id=uuid5(SPACE, name),
                user_id=uuid5(SPACE, self.user.id),
                completion=written.text,
                track=Track.STABLE,
                completed=True,
                idempotency_key=uuid5(SPACE, f"{name} request {number}"),
                created_at=START + timedelta(seconds=number),
            )
        )

    def take(self, action: Action) -> None:
        """Note one act of feedback as the last word in its slot."""
        answer = self.answers[action.answer]
        name = action.value.get("name") if isinstance(action.value, dict) else None
        chosen_over = action.value if isinstance(action.value, tuple) else ()
        self.signals.append(
            Signal(
                subject_id=answer.response_id,
                slot=f"signal:{name}" if action.kind == "signal" else action.kind,
                user_id=answer.user_id,
                value=action.value if isinstance(action.value, float) else None,
                text=action.value if isinstance(action.value, str) else None,
                rejected=[self.answers[k].response_id for k in chosen_over],
                reasons=action.reasons,
                occurred_at=answer.created_at + timedelta(seconds=10),
                event_id=uuid5(SPACE, f"{answer.response_id} {action.kind} {len(self.signals)}"),
                signed=True,
            )
        )


def collect(users: Sequence[User], answers: dict[tuple[str, str], Sequence[Written]], seed: int) -> Feedback:
    """Return what the users do with answers that are given for each (user, question): two of them, in order."""
    found = Feedback()
    policy = Pairs()
    for user in users:
        for question in user.questions:
            given = answers[user.id, question]
            turn = take_turn(user, question, given, random.Random(f"{seed}-{user.id}-{question}"), found.events)
            whole = {answer.response_id for answer, text in zip(turn.answers, given, strict=False) if text.ended}
            found.rows += rows_of(turn, whole, policy)
            found.labels += labels_of(turn, derive(turn.answers, turn.signals, policy)[1])
            found.oracle_rows += oracle_rows(user, question, given)
    return found


def take_turn(user: User, question: str, given: Sequence[Written], rng: random.Random, events: Counter[str]) -> Turn:
    """Return one turn: the demo's users act on the answers one by one, or on two side by side."""
    turn, fact = Turn(user, question), fact_of(question)
    asks_again = wants_two(user, rng)
    while len(turn.answers) < 1 + asks_again:
        turn.show(given[len(turn.answers)])
        if asks_again and len(turn.answers) == 1:
            continue
        for action in react(user, fact, [answer.completion for answer in turn.answers], rng):
            turn.take(action)
            events[action.kind] += 1
            asks_again = asks_again or action.kind == "regenerate"
    return turn


def rows_of(turn: Turn, whole: set[UUID], policy: Pairs) -> Iterator[Row]:
    """Yield the turn's pairs of answers that ended by themselves, as rows of a dataset."""
    texts = {answer.response_id: answer.completion for answer in turn.answers}
    edits = {signal.event_id: signal.text for signal in turn.signals}
    for pair in derive(turn.answers, turn.signals, policy)[0]:
        if {pair.chosen_id, pair.rejected_id} <= whole:
            yield {
                "prompt": as_prompt(turn.question),
                "chosen": edits[pair.body_event_id] if pair.body_event_id else texts[pair.chosen_id],
                "rejected": texts[pair.rejected_id],
                "weight": pair.weight,
                "source": pair.source,
                "user_id": turn.user.id,
            }


def labels_of(turn: Turn, labels: Sequence[Label]) -> list[Row]:
    """Return the turn's thumbs as rows of a dataset."""
    texts = {answer.response_id: answer.completion for answer in turn.answers}
    return [
        {
            "prompt": as_prompt(turn.question),
            "completion": texts[label.response_id],
            "label": label.label,
            "weight": label.weight,
            "user_id": turn.user.id,
        }
        for label in labels
    ]


def oracle_rows(user: User, question: str, given: Sequence[Written]) -> list[Row]:
    """Return the two answers as a pair in the hidden reward's order, unless nobody would tell them apart."""
    scores = [hidden(user, fact_of(question), written) for written in given]
    best, worst = (0, 1) if scores[0] > scores[1] else (1, 0)
    if scores[best] - scores[worst] < INDIFFERENT_BELOW or not all(written.ended for written in given):
        return []
    texts = {"chosen": given[best].text, "rejected": given[worst].text}
    return [{"prompt": as_prompt(question), **texts, "weight": 1.0, "source": "oracle", "user_id": user.id}]


def hidden(user: User, fact: Fact, written: Written) -> float:
    """Return the hidden reward of an answer."""
    return score(user.taste, fact, written.text)
