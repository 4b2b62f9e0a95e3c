"""Answers for many prompts at once: left padding, a shared cache, each row with its own sampling.

Batches are continuous: a row joins after any token of the others and leaves with its last one.

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
from transformers.cache_utils import DynamicLayer

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
    running = Running(model, pad=pad, ends=ends, emit=emit)
    running.admit(rows)
    while running.rows:
        running.step()


class Running:
    """A batch that rows join and leave between any two tokens: its cache is padded on the left, so all ends align."""

    def __init__(self, model: Any, *, pad: int, ends: frozenset[int], emit: Emit) -> None:
        self.model, self.pad, self.ends, self.emit = model, pad, ends, emit
        self.rows: list[Row] = []
        self._cache: Any = None
        self._tokens_B1 = self._mask_BT = torch.empty(0, 0)
        self._sampler: Sampler | None = None

    def takes_more(self) -> bool:
        """Say whether rows may join now. Windowed caches cannot be merged: there, a batch runs to its end first."""
        return not self.rows or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def width(self) -> int:
        """Return how many tokens the cache holds for each row, padding included."""
        return int(self._mask_BT.shape[1])

    @torch.inference_mode()
    def admit(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and draw their first tokens; then they are part of the batch."""
        if not rows:
            return
        ids_BT, mask_BT = left_pad([row.prompt_ids for row in rows], self.pad, self.model.device)
        cache = DynamicCache(config=self.model.config)
        tokens_B = self._forward(ids_BT, mask_BT, cache, Sampler(rows, self.model.device))
        kept, index = self._accept(list(rows), tokens_B)
        if not kept:
            return
        if len(kept) < len(rows):
            cache.batch_select_indices(index)
        tokens_B1, mask_BT = tokens_B[index, None], mask_BT[index]
        if self.rows:
            width = max(mask_BT.shape[1], self._mask_BT.shape[1])
            merge(self._cache, cache, width)
            tokens_B1 = torch.cat([self._tokens_B1, tokens_B1])
            mask_BT = torch.cat([widen(self._mask_BT, width, 1), widen(mask_BT, width, 1)])
            cache = self._cache
        self._cache, self._tokens_B1, self._mask_BT = cache, tokens_B1, mask_BT
        self._become([*self.rows, *kept])

    @torch.inference_mode()
    def step(self) -> None:
        """Draw one token for each row; rows that end here, or were cancelled, leave."""
        assert self._sampler is not None
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(self.rows), 1)], dim=1)
        tokens_B = self._forward(self._tokens_B1, self._mask_BT, self._cache, self._sampler)
        kept, index = self._accept(self.rows, tokens_B)
        if kept and len(kept) < len(self.rows):
            self._mask_BT, tokens_B = self._mask_BT[index], tokens_B[index]
            self._cache.batch_select_indices(index)
            self._trim()
        self._tokens_B1 = tokens_B[:, None]
        if len(kept) < len(self.rows):
            self._become(kept)

    def _forward(self, ids_BT: Tensor, mask_BT: Tensor, cache: Any, sampler: "Sampler") -> Tensor:
        """Return the next token of each row; the cache then holds the tokens that were read."""
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        output = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return sampler.draw(output.logits[:, -1].float())

    def _accept(self, rows: list[Row], tokens_B: Tensor) -> tuple[list[Row], Tensor]:
        """Give each row its token; return the rows that go on, and their places."""
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            row.accept(token, self.ends)
        self.emit(rows)
        places = [i for i, row in enumerate(rows) if not (row.finish_reason or row.cancelled)]
        return [rows[i] for i in places], torch.tensor(places, dtype=torch.long, device=tokens_B.device)

    def _become(self, rows: list[Row]) -> None:
        self.rows = rows
        self._sampler = Sampler(rows, self.model.device) if rows else None
        if not rows:
            self._cache = None

    def _trim(self) -> None:
        """Drop the columns in which every row is padding, once they are a quarter of all."""
        if not all(type(layer) is DynamicLayer for layer in self._cache.layers):
            return
        unused = int(self._mask_BT.shape[1] - self._mask_BT.sum(1).max())
        if unused * 4 < self._mask_BT.shape[1]:
            return
        self._mask_BT = self._mask_BT[:, unused:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]


def merge(cache: Any, fresh: Any, width: int) -> None:
    """Append the rows of `fresh` to `cache`, both padded on the left to `width` tokens."""
    for layer, new in zip(cache.layers, fresh.layers, strict=True):
        layer.keys = torch.cat([widen(layer.keys, width, 2), widen(new.keys, width, 2)])
        layer.values = torch.cat([widen(layer.values, width, 2), widen(new.values, width, 2)])


def widen(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Return the tensor with zeros before it along `dim`, up to `width`."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


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
