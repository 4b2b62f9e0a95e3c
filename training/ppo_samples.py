"""Prompts in turn, answers drawn from the policy, and what is taken from the reward of a bad end."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hone.errors import ConfigError, NotEnoughData
from training.fit import Task
from training.method_tables import Samples
from training.pairs import ids_of
from training.policy import check_parity, end_tokens
from training.reward_set import Chat
from training.sampling import Limits, is_suited, sample
from training.spec import RunSpec

SEEDS_APART = 1_000_003
"""Runs of neighbouring seeds share no step's random numbers."""
MAX_WATCHED = 64
"""Held-out prompts that are answered at each checkpoint."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt and the answer that the policy drew, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    "The end token included, if it ended."
    ended: bool


def usable_prompts(task: Task) -> tuple[list[Chat], dict[str, int]]:
    """Return the distinct prompts of the rows that leave room for an answer, and how many were dropped.

    Raises:
        NotEnoughData: none is left.
    """
    distinct = list({str(row["prompt"]): row["prompt"] for row in task.rows}.values())
    room = task.spec.max_length - task.spec.samples.max_new_tokens
    lengths = [len(ids) for ids in prompt_ids(distinct, task.tokenizer)]
    kept = [chat for chat, length in zip(distinct, lengths, strict=True) if length <= room]
    if not kept:
        raise NotEnoughData(
            f"none of {len(distinct)} prompts leaves room for {task.spec.samples.max_new_tokens} tokens within "
            f"max_length {task.spec.max_length}: raise it, or lower samples.max_new_tokens"
        )
    return kept, {"too_long": len(distinct) - len(kept)}


def watched_prompts(task: Task) -> list[Chat]:
    """Return the held-out prompts that decide when to stop, none without `stop.patience`; of many the first ones."""
    if task.spec.stop.patience is None or not task.dev:
        return []
    return usable_prompts(replace(task, rows=task.dev))[0][:MAX_WATCHED]


def num_turns(num_prompts: int, spec: RunSpec) -> int:
    """Return how many batches `epochs` passes over the prompts are."""
    return max(1, math.ceil(spec.epochs * num_prompts * spec.samples.per_prompt / spec.batch_size))


def turn(prompts: Sequence[Chat], step: int, spec: RunSpec) -> list[Chat]:
    """Return the prompts of a step, each `per_prompt` times; all come once, in random order, before one comes again."""
    size = spec.batch_size // spec.samples.per_prompt
    chosen = []
    for place in range(step * size, (step + 1) * size):
        epoch, position = divmod(place, len(prompts))
        order = random.Random(f"{spec.seed} {epoch}").sample(range(len(prompts)), len(prompts))
        chosen.append(prompts[order[position]])
    return [chat for chat in chosen for _ in range(spec.samples.per_prompt)]


def seed_of(spec: RunSpec, step: int) -> int:
    """Return the seed of a step's random numbers."""
    return spec.seed * SEEDS_APART + step


def draw(policy: Any, tokenizer: Any, chats: Sequence[Chat], samples: Samples, seed: int) -> list[Drawn]:
    """Return one answer to each chat, in order, from the whole distribution at the given temperature."""
    prompts = prompt_ids(chats, tokenizer)
    limits = Limits(len(prompts), samples.max_new_tokens, samples.temperature, seed)
    found = sample(policy, prompts, limits, frozenset(end_tokens(policy)))
    return [Drawn(prompt, tuple(one.ids), one.ended) for prompt, one in zip(prompts, found, strict=True)]


def check_suited(model: Any, prompt: tuple[int, ...], pad: int) -> None:
    """Raise ConfigError where our log-probabilities or our sampler are not the model's own."""
    check_parity(model, (prompt, prompt), pad)
    if not is_suited(model, prompt):
        raise ConfigError('the native engine cannot sample from this architecture: use method = "rloo"')


def prompt_ids(chats: Sequence[Chat], tokenizer: Any) -> list[tuple[int, ...]]:
    """Return the token ids of prompts, up to where the answer begins."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return ids_of(texts, tokenizer)


def penalties(drawn: Sequence[Drawn], spec: RunSpec) -> Tensor:
    """Return what is taken from each answer's score: for having been cut off, and for its length; shape (B,)."""
    ppo = spec.ppo
    return torch.tensor(
        [
            (0.0 if one.ended else ppo.missing_end_penalty)
            + ppo.length_penalty * max(0, len(one.answer) - ppo.free_tokens)
            for one in drawn
        ]
    )
