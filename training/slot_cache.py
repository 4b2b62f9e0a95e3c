"""Keys and values of answers that grow at their own pace: every row of a preallocated cache has its own length.

Shapes: S slots, K key/value heads, T places, D head size, U prompts, P tokens of the longest prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, each of shape (S, K, T, D)."""

    is_sliding = False

    def __init__(self, like: Tensor, num_slots: int, num_places: int) -> None:
        """Make room; `like` is a tensor of keys (U, K, P, D)."""
        super().__init__()
        shape = (num_slots, like.shape[1], num_places, like.shape[3])
        # Zeros, since what is hidden is multiplied by 0, and what an empty tensor holds may be no number.
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.is_initialized = True
        self.rows_S = torch.arange(num_slots, device=like.device)
        self.places_S = torch.zeros_like(self.rows_S)
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is room already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token of each slot at its place; return the places that are in use by any slot."""
        assert self.keys is not None and self.values is not None
        self.keys[self.rows_S, :, self.places_S] = key_states[:, :, 0]
        self.values[self.rows_S, :, self.places_S] = value_states[:, :, 0]
        return self.keys[:, :, : self.width], self.values[:, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next step sees, and where they begin."""
        return self.width, 0

    def get_seq_length(self) -> int:
        """Return the tokens of the longest slot."""
        return self.width

    def get_max_length(self) -> int:
        """Return the room of a slot."""
        assert self.keys is not None
        return self.keys.shape[2]


class SlotCache:
    """The cache of all layers, and how far each slot has come."""

    def __init__(self, prompts: DynamicCache, num_slots: int, num_places: int) -> None:
        """Make room for `num_slots` answers of at most `num_places` tokens, prompt included."""
        self._layers = [SlotLayer(layer.keys, num_slots, num_places) for layer in prompts.layers]
        self.lengths_S = torch.zeros(num_slots, dtype=torch.long, device=self._layers[0].rows_S.device)
        self._num_places = num_places
        self.cache = Cache(layers=list(self._layers))

    def fill(self, slots: Sequence[int], prompts: DynamicCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Begin answers in `slots` with the keys and values of prompts in `rows`, `lengths` tokens each."""
        device = self.lengths_S.device
        slot, row = torch.tensor(slots, device=device), torch.tensor(rows, device=device)
        width = max(lengths)
        for layer, source in zip(self._layers, prompts.layers, strict=True):
            assert layer.keys is not None and layer.values is not None
            layer.keys[slot, :, :width] = source.keys[row, :, :width]
            layer.values[slot, :, :width] = source.values[row, :, :width]
        self.lengths_S[slot] = torch.tensor(lengths, device=device)

    def advance(self, width: int) -> tuple[Tensor, Tensor]:
        """Make one place more in each slot; return its position (S, 1) and who is seen from it (S, 1, 1, `width`).

        Args:
            width: tokens of the longest slot, the new one included. (The caller knows it without asking the device.)
        """
        for layer in self._layers:
            layer.width, layer.places_S = width, self.lengths_S
        positions_S1 = self.lengths_S[:, None]
        seen = torch.arange(width, device=positions_S1.device) <= positions_S1
        # Answers that are done go on in their slots, without a reader, until another takes the place.
        self.lengths_S = (self.lengths_S + 1).clamp_(max=self._num_places - 1)
        return positions_S1, seen[:, None, None]

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which are numbered anew in this order."""
        index = torch.tensor(slots, device=self.lengths_S.device)
        self.lengths_S = self.lengths_S[index]
        for layer in self._layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys[index], layer.values[index]
            layer.rows_S = layer.rows_S[: len(slots)]
