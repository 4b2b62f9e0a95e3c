"""What the training benchmarks train on: made-up support questions of a chosen length, a model of the demo's size."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

from examples.support.base_model import ensure_base
from examples.support.chat_model import build_model, train_tokenizer
from examples.support.corpus import (
    TEMPLATES,
    as_prompt,
    base_style,
    pretraining_rows,
    train_facts,
    user_questions,
    write_answer,
)
from training.pairs import TokenPair, encode_pairs, ids_of
from training.policy import load_model

BASES = Path(__file__).resolve().parents[1] / "var" / "bases"


@dataclass(frozen=True)
class World:
    """One model and the pairs that it is trained on."""

    model: Any
    tokenizer: Any
    pairs: list[TokenPair]

    @property
    def mean_lengths(self) -> dict[str, float]:
        """Mean tokens of prompts and answers."""
        sides = {side: [len(getattr(pair, side)) for pair in self.pairs] for side in ("prompt", "chosen", "rejected")}
        return {side: round(sum(lengths) / len(lengths), 1) for side, lengths in sides.items()}


def small_world(num_pairs: int, prompt_tokens: int, seed: int, *, hidden: int = 128, layers: int = 3) -> World:
    """Return a random model of the demo's architecture, and pairs whose prompts have about `prompt_tokens` tokens."""
    tokenizer = train_tokenizer(message["content"] for chat in pretraining_rows(3000, seed) for message in chat)
    model = build_model(tokenizer, hidden=hidden, layers=layers, heads=4, seed=seed).eval()
    return World(model, tokenizer, make_pairs(tokenizer, num_pairs, prompt_tokens, seed))


def make_pairs(
    tokenizer: Any, num_pairs: int, prompt_tokens: int, seed: int, *, answer_tokens: int = 0
) -> list[TokenPair]:
    """Return pairs of answers in two styles; long prompts and answers begin with other answers."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_pairs):
        fact = rng.choice(train_facts())
        chosen, rejected = (
            context(tokenizer, answer_tokens, rng) + write_answer(fact.place, base_style(rng), rng) for _ in range(2)
        )
        prompt = as_prompt(context(tokenizer, prompt_tokens, rng) + fact.ask(rng.choice(TEMPLATES)))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return encode_pairs(rows, tokenizer, 1 << 20)[0]


def context(tokenizer: Any, num_tokens: int, rng: random.Random) -> str:
    """Return text of about `num_tokens` tokens less a question's ten; none for short prompts."""
    text = ""
    while len(tokenizer(text)["input_ids"]) < num_tokens - 20:
        text += write_answer(rng.choice(train_facts()).place, base_style(rng), rng) + " "
    return text


def talking_world(seed: int) -> tuple[Any, Any]:
    """Return the demo's base model, which ends its answers, and its tokenizer; pretrained first if it is not there."""
    return load_model(ensure_base(BASES, seed=seed))


def prompt_ids(tokenizer: Any, num_prompts: int, samples: int, seed: int) -> list[tuple[int, ...]]:
    """Return users' questions as token ids in the order they come, each as often as it is answered."""
    asked = random.Random(seed).choices(user_questions(), k=num_prompts)
    texts = [tokenizer.apply_chat_template(as_prompt(q), tokenize=False, add_generation_prompt=True) for q in asked]
    return [ids for ids in ids_of(texts, tokenizer) for _ in range(samples)]


@dataclass
class Clock:
    """CPU seconds of this process spent inside `with clock:`, one number each time."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure what happens inside."""
        started = process_time()
        yield
        self.seconds.append(process_time() - started)
