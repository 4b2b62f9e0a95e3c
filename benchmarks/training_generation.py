"""Tokens a CPU second of our sampler and of transformers' `generate`, on the same prompts with the same batch size."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import process_time
from typing import Any

import torch

from benchmarks.result import say
from benchmarks.training_world import prompt_ids, talking_world
from training.adapter import trainable
from training.policy import end_tokens
from training.sampling import Limits, sample
from training.spec import RunSpec

MAX_NEW_TOKENS = 160


def measure(num_prompts: int, samples: int, batch_size: int, repeats: int, seed: int) -> dict[str, float]:
    """Return tokens a CPU second of both, with and without an adapter on the model, and their ratios (medians)."""
    model, tokenizer = talking_world(seed)
    ids = prompt_ids(tokenizer, num_prompts, samples, seed)
    policy = trainable(talking_world(seed)[0], RunSpec(seed=seed))
    ways: dict[str, Callable[[], Sequence[Sequence[int]]]] = {}
    for name, who in (("", model), ("_adapter", policy)):
        ways[f"plain{name}"] = partial(plainly, who, tokenizer, ids, batch_size)
        ways[f"ours{name}"] = partial(ours, who, ids, batch_size, seed)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    lengths: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats):
        for name, way in ways.items():
            started = process_time()
            answers = way()
            num_tokens = sum(map(len, answers))
            rates[name].append(num_tokens / (process_time() - started))
            lengths[name].append(num_tokens / len(answers))
            say(f"  {number + 1}/{repeats} {name}: {rates[name][-1]:.0f} tokens a CPU second")
    found = {f"{name}_tokens_per_cpu_s": median(values) for name, values in rates.items()}
    found |= {f"{name}_tokens_per_answer": median(values) for name, values in lengths.items()}
    for name in ("", "_adapter"):
        found[f"vs_plain{name}"] = median(rates[f"ours{name}"]) / median(rates[f"plain{name}"])
    return found


def ours(model: Any, ids: Sequence[tuple[int, ...]], batch_size: int, seed: int) -> list[list[int]]:
    """Return sampled answers by our sampler."""
    limits = Limits(batch_size, MAX_NEW_TOKENS, seed=seed)
    return [one.ids for one in sample(model, ids, limits, frozenset(end_tokens(model)))]


@torch.inference_mode()
def plainly(model: Any, tokenizer: Any, ids: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Return sampled answers by `generate` with its dynamic cache, batches in the order of the prompts."""
    answers = []
    for at in range(0, len(ids), batch_size):
        chunk = ids[at : at + batch_size]
        longest = max(map(len, chunk))
        ids_BT = torch.tensor([[tokenizer.pad_token_id] * (longest - len(one)) + list(one) for one in chunk])
        mask_BT = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in chunk])
        written_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers += [until_end(row, tokenizer.eos_token_id) for row in written_BT[:, longest:].tolist()]
    return answers


def until_end(ids: list[int], end: int) -> list[int]:
    """Return an answer without its padding."""
    return ids[: ids.index(end) + 1] if end in ids else ids
