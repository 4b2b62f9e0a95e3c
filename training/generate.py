"""Writes answers in batches, as a server would: until the model's own end token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.pairs import ids_of
from training.policy import end_tokens
from training.progress import Progress
from training.sampling import Limits, is_suited, sample


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated answer."""

    text: str
    num_tokens: int
    "The end token included."
    ended: bool
    "The model ended it; otherwise it was cut off."


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are drawn; temperature 0 is greedy."""

    temperature: float
    max_new_tokens: int
    batch_size: int
    seed: int = 0


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[dict[str, str]]], decoding: Decoding, progress: Progress
) -> list[Answer]:
    """Return one answer to each prompt, in order; equal seeds give equal answers on the same machine.

    `batch_size` answers grow at a time. Models of an architecture that the fast sampler does not suit go through
    transformers' own.
    """
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    ids = ids_of(texts, tokenizer)
    if not ids:
        return []
    if not is_suited(model, ids[0]):
        return generate_plainly(model, tokenizer, ids, decoding, progress)
    limits = Limits(decoding.batch_size, decoding.max_new_tokens, decoding.temperature, decoding.seed)
    ends = frozenset(end_tokens(model))
    samples = sample(model, ids, limits, ends, lambda num_done: progress.step(num_done, len(ids)))
    written = tokenizer.batch_decode([one.ids for one in samples], skip_special_tokens=True)
    return [Answer(text, len(one.ids), one.ended) for text, one in zip(written, samples, strict=True)]


@torch.inference_mode()
def generate_plainly(
    model: Any, tokenizer: Any, ids: Sequence[Sequence[int]], decoding: Decoding, progress: Progress
) -> list[Answer]:
    """Return the answers by transformers' own generation, batches sorted by length."""
    order = sorted(range(len(ids)), key=lambda k: len(ids[k]))
    torch.manual_seed(decoding.seed)
    answers: dict[int, Answer] = {}
    for at in range(0, len(order), decoding.batch_size):
        chunk = order[at : at + decoding.batch_size]
        found = generate_batch(model, tokenizer, [ids[k] for k in chunk], decoding)
        answers |= zip(chunk, found, strict=True)
        progress.step(len(answers), len(order))
    return [answers[k] for k in range(len(order))]


def generate_batch(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Answer]:
    """Return the answers to prompts of like length, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask_BT = torch.zeros_like(ids_BT)
    for k, prompt in enumerate(prompts):
        ids_BT[k, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[k, longest - len(prompt) :] = 1
    sampling = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
    output_BT = model.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        **(sampling if decoding.temperature > 0 else {"do_sample": False}),
    )
    return [read_answer(ids, tokenizer) for ids in output_BT[:, longest:].tolist()]


def read_answer(ids: list[int], tokenizer: Any) -> Answer:
    """Return the answer up to its end token; what follows is padding."""
    ended = tokenizer.eos_token_id in ids
    num_tokens = ids.index(tokenizer.eos_token_id) + 1 if ended else len(ids)
    return Answer(tokenizer.decode(ids[:num_tokens], skip_special_tokens=True), num_tokens, ended)
