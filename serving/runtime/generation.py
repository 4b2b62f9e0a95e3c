"""Answers for a batch of prompts at once: left padding, a shared cache, each row with its own sampling.

A row's random numbers come from its own seed, so that its answer does not depend on its neighbours
(but for the rounding that another batch shape brings).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

Emit = Callable[[Sequence["Row"]], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(eq=False)
class Row:
    """One answer while it grows."""

    prompt_ids: list[int]
    sampling: Sampling
    decode: Callable[[list[int]], str]
    streams: bool = False
    cancelled: bool = False
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    _sent: int = 0
    _prefix: int = 0
    _read: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.sampling.seed)

    def accept(self, token: int, ends: frozenset[int]) -> None:
        """Take the next token; then `text` holds what is known, and `finish_reason` is set if this was the last."""
        if token in ends:
            self.finish_reason = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) >= self.sampling.max_tokens:
                self.finish_reason = "length"
        if self.streams or self.sampling.stop:
            self._grow()
        elif self.finish_reason:
            self.text = self.decode(self.ids)

    def _grow(self) -> None:
        """Append the text of new tokens, but never half a character; end at the first stop string."""
        before = self.decode(self.ids[self._prefix : self._read])
        after = self.decode(self.ids[self._prefix :])
        if self.finish_reason or (len(after) > len(before) and not after.endswith("\ufffd")):
            self.text += after[len(before) :]
            self._prefix, self._read = self._read, len(self.ids)
        cut = min((at for stop in self.sampling.stop if (at := self.text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.text, self.finish_reason = self.text[:cut], "stop"

    def take(self) -> str:
        """Return the text not taken yet; holds back the end of it while a stop string may begin there."""
        end = len(self.text)
        if not self.finish_reason:
            end -= max((overlap(self.text, stop) for stop in self.sampling.stop), default=0)
        end = max(end, self._sent)
        delta, self._sent = self.text[self._sent : end], end
        return delta


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)


@torch.inference_mode()
def generate(model: Any, rows: Sequence[Row], *, pad: int, ends: frozenset[int], emit: Emit) -> None:
    """Run all rows to their end. After each step `emit` gets the rows that took a token; cancelled rows are dropped."""
    ids_BT, mask_BT = left_pad([row.prompt_ids for row in rows], pad, model.device)
    cache = DynamicCache(config=model.config)
    live, sampler = list(rows), Sampler(rows, model.device)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    while True:
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens_B = sampler.draw(output.logits[:, -1].float())
        for row, token in zip(live, tokens_B.tolist(), strict=True):
            row.accept(token, ends)
        emit(live)
        kept = [i for i, row in enumerate(live) if not (row.finish_reason or row.cancelled)]
        if not kept:
            return
        if len(kept) < len(live):
            live, index = [live[i] for i in kept], torch.tensor(kept, device=model.device)
            cache.batch_select_indices(index)
            tokens_B, mask_BT, sampler = tokens_B[index], mask_BT[index], Sampler(live, model.device)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(live), 1)], dim=1)
        ids_BT, positions_BT = tokens_B[:, None], mask_BT.sum(1, keepdim=True) - 1


def left_pad(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask (1 = a real token), both shape (prompts, longest), aligned at their right end."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class Sampler:
    """Draws one token a row from logits of shape (rows, vocabulary)."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows, self.device = rows, device
        temperature = torch.tensor([row.sampling.temperature for row in rows], device=device)
        self.greedy_B = temperature == 0
        self.temperature_B1 = temperature.clamp(min=1e-4)[:, None]
        self.top_p_B1 = torch.tensor([row.sampling.top_p for row in rows], device=device)[:, None]
        self.all_greedy, self.cuts = bool(self.greedy_B.all()), bool((self.top_p_B1 < 1).any())

    def draw(self, logits_BV: Tensor) -> Tensor:
        """Return the tokens, shape (rows,)."""
        likeliest_B = logits_BV.argmax(-1)
        if self.all_greedy:
            return likeliest_B
        probs_BV = torch.softmax(logits_BV / self.temperature_B1, -1)
        drawn_B = self._nucleus(probs_BV) if self.cuts else self._invert(probs_BV)
        return torch.where(self.greedy_B, likeliest_B, drawn_B)

    def _nucleus(self, probs_BV: Tensor) -> Tensor:
        """Draw among the fewest likeliest tokens that hold `top_p` of the mass (the likeliest always stays)."""
        sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= self.top_p_B1
        outside_BV[:, 0] = False
        return order_BV.gather(-1, self._invert(sorted_BV.masked_fill(outside_BV, 0.0))[:, None])[:, 0]

    def _invert(self, weights_BV: Tensor) -> Tensor:
        """Draw by the inverse of the cumulative weights, one uniform number of each row's own generator."""
        total_BV = weights_BV.cumsum(-1)
        uniform_B1 = torch.tensor([row.random.random() for row in self.rows], device=self.device)[:, None]
        found_B1 = torch.searchsorted(total_BV, uniform_B1 * total_BV[:, -1:], right=True)
        return found_B1[:, 0].clamp(max=weights_BV.shape[-1] - 1)
