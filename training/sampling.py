"""Fast sampling of token ids: half of PPO's time, and most of an evaluation's.

A fixed number of slots is kept full: an answer that ends makes room for the next at once. Prompts are read in batches
of like length, and once each, however many answers they get. An adapter is added to its matrices for the time being.

Shapes: S slots, U distinct prompts, T tokens, V vocabulary, H hidden.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from training.fast_lora import merged_lora
from training.policy import Ids, attends_to_all, decoder_of
from training.slot_cache import SlotCache

SHRINK_BELOW = 0.75
"""When nothing waits any more and fewer slots than this share are live, the others are dropped."""
PARITY_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Limits:
    """How many answers grow at a time, how long they may get, and how tokens are drawn."""

    num_slots: int
    max_new_tokens: int
    "The end token included."
    temperature: float = 1.0
    "0 takes the likeliest token."
    seed: int = 0


@dataclass(slots=True)
class Sample:
    """One answer as token ids."""

    ids: list[int] = field(default_factory=list)
    "The end token included, if there is one."
    ended: bool = False
    "The model ended it; otherwise it was cut off."


@dataclass(frozen=True, slots=True)
class Read:
    """A batch of prompts that the model has read."""

    cache: DynamicCache
    logits_UV: Tensor
    "Of the token that comes next."


@dataclass(frozen=True, slots=True)
class Waiting:
    """An answer that has not begun."""

    number: int
    read: Read
    row: int
    prompt_length: int


@dataclass(frozen=True, slots=True)
class Growing:
    """An answer in a slot."""

    sample: Sample
    prompt_length: int


@torch.inference_mode()
def is_suited(model: Any, prompt: Ids) -> bool:
    """Say whether `sample` is right for a model: plain causal attention, and logits that are the head's own."""
    if not attends_to_all(model):
        return False
    whole_V = model(input_ids=torch.tensor([prompt], device=model.device)).logits[0, -1].float()
    ours_V = read_prompts(decoder_of(model), model.get_output_embeddings(), [prompt]).logits_UV[0]
    return torch.allclose(whole_V, ours_V, atol=PARITY_TOLERANCE, rtol=PARITY_TOLERANCE)


def read_prompts(decoder: Any, head: Any, prompts: Sequence[Ids]) -> Read:
    """Return cache and next logits of prompts, padded on the right, where causal attention never looks."""
    device = next(decoder.parameters()).device
    lengths_U = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids_UT = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    cache = DynamicCache()
    output = decoder(input_ids=ids_UT.to(device), past_key_values=cache, use_cache=True)
    last_UH = output.last_hidden_state[torch.arange(len(prompts), device=device), lengths_U - 1]
    return Read(cache, head(last_UH).float())


@torch.inference_mode()
def sample(
    model: Any,
    prompts: Sequence[Ids],
    limits: Limits,
    ends: frozenset[int],
    on_done: Callable[[int], None] = lambda num_done: None,
) -> list[Sample]:
    """Return one answer to each prompt, in order. Equal arguments give equal answers on the same machine.

    Args:
        model: one that `is_suited`; with an adapter or without.
        prompts: token ids, none empty; equal ones are read once.
        ends: the tokens that end an answer.
        on_done: called with the number of finished answers, whenever some are.
    """
    with merged_lora(model):
        return Sampler(model, prompts, limits, ends).run(on_done) if prompts else []


class Sampler:
    """The state of one call of `sample`."""

    def __init__(self, model: Any, prompts: Sequence[Ids], limits: Limits, ends: frozenset[int]) -> None:
        """Begin with empty slots."""
        self._decoder, self._head, self._device = decoder_of(model), model.get_output_embeddings(), model.device
        self._limits, self._ends = limits, ends
        self._generator = torch.Generator(self._device).manual_seed(limits.seed)
        self._samples = [Sample() for _ in prompts]
        self._num_places = max(map(len, prompts), default=0) + limits.max_new_tokens
        numbers = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), tuple(prompts[number])))
        self._unread = deque(
            (prompt, list(same)) for prompt, same in groupby(numbers, lambda number: tuple(prompts[number]))
        )
        self._waiting: deque[Waiting] = deque()
        self._slots: list[Growing | None] = [None] * min(limits.num_slots, len(prompts))
        self._tokens_S = torch.zeros(len(self._slots), dtype=torch.long, device=self._device)
        self._cache: SlotCache | None = None
        self._num_done = 0

    def run(self, on_done: Callable[[int], None]) -> list[Sample]:
        """Let all answers grow to their ends."""
        while self._refill():
            self._shrink()
            num_done = self._num_done
            self._step()
            if self._num_done > num_done:
                on_done(self._num_done)
        return self._samples

    def _refill(self) -> bool:
        """Begin answers in free slots as long as some wait; say whether any slot is live."""
        while True:
            free = [slot for slot, growing in enumerate(self._slots) if growing is None]
            if not free or not self._has_waiting():
                return len(free) < len(self._slots)
            read = self._waiting[0].read
            begun: list[Waiting] = []
            while self._waiting and self._waiting[0].read is read and len(begun) < len(free):
                begun.append(self._waiting.popleft())
            self._begin(read, begun, free[: len(begun)])

    def _has_waiting(self) -> bool:
        """Say whether an answer waits, after reading prompts if there are unread ones."""
        if not self._waiting and self._unread:
            batch = [self._unread.popleft() for _ in range(min(len(self._slots), len(self._unread)))]
            read = read_prompts(self._decoder, self._head, [prompt for prompt, _ in batch])
            self._waiting.extend(
                Waiting(number, read, row, len(prompt))
                for row, (prompt, numbers) in enumerate(batch)
                for number in numbers
            )
        return bool(self._waiting)

    def _begin(self, read: Read, begun: Sequence[Waiting], slots: Sequence[int]) -> None:
        """Put answers to prompts of one batch into slots, each with its first token."""
        if self._cache is None:
            self._cache = SlotCache(read.cache, len(self._slots), self._num_places)
        rows = [waiting.row for waiting in begun]
        self._cache.fill(slots, read.cache, rows, [waiting.prompt_length for waiting in begun])
        tokens = self._draw(read.logits_UV[rows])
        self._tokens_S[torch.tensor(slots, device=self._device)] = tokens
        for slot, waiting in zip(slots, begun, strict=True):
            self._slots[slot] = Growing(self._samples[waiting.number], waiting.prompt_length)
        self._accept(zip(slots, tokens.tolist(), strict=True))

    def _step(self) -> None:
        """Let every live answer take a token."""
        assert self._cache is not None
        width = max(growing.prompt_length + len(growing.sample.ids) for growing in self._slots if growing)
        positions_S1, seen = self._cache.advance(width)
        hidden_S1H = self._decoder(
            input_ids=self._tokens_S[:, None],
            position_ids=positions_S1,
            attention_mask=seen,
            past_key_values=self._cache.cache,
            use_cache=True,
        ).last_hidden_state
        self._tokens_S = self._draw(self._head(hidden_S1H[:, -1]).float())
        self._accept(enumerate(self._tokens_S.tolist()))

    def _accept(self, tokens: Any) -> None:
        """Append (slot, token) pairs to the answers; free the slots of those that are done."""
        for slot, token in tokens:
            growing = self._slots[slot]
            if growing is None:
                continue
            growing.sample.ids.append(token)
            growing.sample.ended = token in self._ends
            if growing.sample.ended or len(growing.sample.ids) == self._limits.max_new_tokens:
                self._slots[slot] = None
                self._num_done += 1

    def _shrink(self) -> None:
        """Drop free slots once there are many of them, which happens when nothing waits any more."""
        live = [slot for slot, growing in enumerate(self._slots) if growing]
        if len(live) < SHRINK_BELOW * len(self._slots):
            assert self._cache is not None
            self._cache.keep(live)
            self._tokens_S = self._tokens_S[live]
            self._slots = [self._slots[slot] for slot in live]

    def _draw(self, logits_SV: Tensor) -> Tensor:
        """Return a token for each slot, shape (S,), by inversion of the cumulative probabilities."""
        if self._limits.temperature == 0:
            return logits_SV.argmax(-1)
        total_SV = torch.softmax(logits_SV / self._limits.temperature, -1).cumsum_(-1)
        uniform_S1 = torch.rand(len(logits_SV), 1, generator=self._generator, device=self._device)
        drawn_S1 = torch.searchsorted(total_SV, uniform_S1 * total_SV[:, -1:], right=True)
        return drawn_S1[:, 0].clamp(max=logits_SV.shape[-1] - 1)
