"""What the person of a recorded conversation does: a pure function of the row and the seed.

One answer is shown. Who likes it gives a thumb up, and sometimes asks again out of curiosity; who would prefer the
other one asks again, and chooses. What they prefer follows the file's judges, and is wrong with probability NOISE.
"""

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hone.records import FeedbackKind
from hone.replay.recording import Recording

NOISE = 0.18
"""Share of judgements that come out as their opposite; people rate about as unreliably."""
THUMBS_DOWN_SHARE = 0.7
CURIOUS_SHARE = 0.5
CHOICE_SHARE = 0.6
NAMESPACE = UUID("5e0c1f52-6c2e-5b1a-9f0b-0f6a6d3c9e11")


@dataclass(frozen=True, slots=True)
class Ask:
    """The turn is asked; `answer` is the position in the row's responses that the upstream gives."""

    answer: int


@dataclass(frozen=True, slots=True)
class Act:
    """One act of feedback on the answer of the ask at `on`; `over` is the ask whose answer lost a choice."""

    kind: FeedbackKind
    event_id: UUID
    on: int
    value: float | None = None
    over: int | None = None

    def body(self, answer_ids: list[str]) -> dict[str, Any]:
        """Return what `POST /v1/feedback` takes; `answer_ids` are those of the asks so far."""
        value: Any = self.value if self.over is None else {"rejected": [answer_ids[self.over]]}
        return {
            "event_id": str(self.event_id),
            "kind": self.kind.value,
            "response_id": answer_ids[self.on],
            "value": value,
        }


@dataclass(frozen=True, slots=True)
class Script:
    """What one person does, in order. The same row and seed give the same person, conversation and events."""

    recording: Recording
    name: str
    "Of the conversation and its user."
    steps: tuple[Ask | Act, ...]

    @property
    def acts(self) -> tuple[Act, ...]:
        """Return the feedback alone; there is at least one."""
        return tuple(step for step in self.steps if isinstance(step, Act))

    @property
    def num_asks(self) -> int:
        """Return how many answers are asked for."""
        return len(self.steps) - len(self.acts)


def write_script(recording: Recording, seed: int) -> Script:
    """Return what the person of this row does. The row must have a comparable preference."""
    rng = random.Random(f"{seed}-{recording.id}")
    preference = rng.choice(recording.comparable())
    first, second, p_second = preference.a, preference.b, preference.p_b_better
    if rng.random() < 0.5:
        first, second, p_second = second, first, 1 - p_second
    prefers_second = (rng.random() < p_second) != (rng.random() < NOISE)
    behave = dislike if prefers_second else like
    if p_second == 0.5:
        behave = shrug
    name = f"replay-{uuid.uuid5(NAMESPACE, f'{seed}|{recording.id}').hex}"
    steps = tuple(numbered(behave(first, second, rng), name))
    return Script(recording, name, steps)


Step = tuple[FeedbackKind, int, float | None, int | None]
"""An act without its id: kind, on, value, over."""
THUMBS, REGENERATE, CHOICE = FeedbackKind.THUMBS, FeedbackKind.REGENERATE, FeedbackKind.CHOICE


def like(first: int, second: int, rng: random.Random) -> Iterator[Ask | Step]:
    """Thumb up; half of the people ask again all the same, and keep the first."""
    yield Ask(first)
    yield (THUMBS, 0, 1.0, None)
    if rng.random() < CURIOUS_SHARE:
        yield (REGENERATE, 0, 1.0, None)
        yield Ask(second)
        yield (CHOICE, 0, None, 1)


def dislike(first: int, second: int, rng: random.Random) -> Iterator[Ask | Step]:
    """Mostly a thumb down, then the other answer, which is chosen or gets a thumb up."""
    yield Ask(first)
    if rng.random() < THUMBS_DOWN_SHARE:
        yield (THUMBS, 0, -1.0, None)
    yield (REGENERATE, 0, round(rng.uniform(0.3, 1.0), 2), None)
    yield Ask(second)
    yield (CHOICE, 1, None, 0) if rng.random() < CHOICE_SHARE else (THUMBS, 1, 1.0, None)


def shrug(first: int, second: int, rng: random.Random) -> Iterator[Ask | Step]:
    """Judges found a tie: one thumb, either way, and no comparison that would mean nothing."""
    yield Ask(first)
    yield (THUMBS, 0, rng.choice((-1.0, 1.0)), None)


def numbered(steps: Iterator[Ask | Step], name: str) -> Iterator[Ask | Act]:
    """Give each act its event id, which is the same in every run."""
    for number, step in enumerate(steps):
        if isinstance(step, Ask):
            yield step
        else:
            kind, on, value, over = step
            yield Act(kind, uuid.uuid5(NAMESPACE, f"{name}|{number}"), on, value, over)
