"""One row for both answers of a pair: the prompt is computed once (prefix sharing, arXiv:2410.20305).

A row is prompt, chosen, rejected (if there is one), padding. The rejected answer does not see the chosen one and its
positions go on from the prompt's, so that every token has the hidden state that it would have in a sequence of its own.

Shapes: B pairs, T tokens of the longest row, N answer tokens of the whole batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.pairs import TokenPair

Allowed = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(pair, head, query's place, key's place) -> may the query see the key? In FlexAttention's order."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of pairs as the model takes it, and where its answer tokens are predicted."""

    ids_BT: Tensor
    positions_BT: Tensor
    chosen_at_B: Tensor
    "Place of the first token of the chosen answer."
    rejected_at_B: Tensor
    source_N: Tensor
    "Place, in the flattened batch, of the hidden state that predicts the token."
    target_N: Tensor
    "The token."
    answer_N: Tensor
    "The answer it belongs to: 0 to B - 1 the chosen ones, B to 2 B - 1 the rejected ones."

    def to(self, device: torch.device | str) -> "Rows":
        """Return the same on a device."""
        return Rows(*(getattr(self, name).to(device) for name in self.__slots__))


def lay_out(pairs: Sequence[TokenPair], pad: int, multiple: int = 1) -> Rows:
    """Return the pairs as rows, on the CPU, as long as a multiple of `multiple`."""
    num_pairs = len(pairs)
    longest = max(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)
    width = -(-longest // multiple) * multiple
    ids_BT, positions_BT = torch.full((num_pairs, width), pad), torch.zeros(num_pairs, width, dtype=torch.long)
    sources: list[Tensor] = []
    for row, pair in enumerate(pairs):
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        end = prompt + chosen
        ids_BT[row, : end + rejected] = torch.tensor([*pair.prompt, *pair.chosen, *pair.rejected])
        positions_BT[row, :end] = torch.arange(end)
        positions_BT[row, end : end + rejected] = torch.arange(prompt, prompt + rejected)
        before = torch.arange(prompt - 1, end + rejected - 1)
        before[chosen : chosen + 1] = prompt - 1  # The prompt's last token predicts the first one of either answer.
        sources.append(before + row * width)
    lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
    answers = torch.arange(2 * num_pairs).view(2, num_pairs).T.flatten()
    chosen_at_B = torch.tensor([len(pair.prompt) for pair in pairs])
    return Rows(
        ids_BT,
        positions_BT,
        chosen_at_B,
        chosen_at_B + lengths[:, 0],
        torch.cat(sources),
        torch.tensor([token for pair in pairs for token in (*pair.chosen, *pair.rejected)]),
        answers.repeat_interleave(lengths.flatten()),
    )


def visibility(chosen_at_B: Tensor, rejected_at_B: Tensor) -> Allowed:
    """Return who sees whom: what is before, but for the chosen answer as seen from behind it."""

    def allowed(pair: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        behind = query >= rejected_at_B[pair]
        is_chosen = (key >= chosen_at_B[pair]) & (key < rejected_at_B[pair])
        return (key <= query) & ~(behind & is_chosen)

    return allowed


def dense_mask(rows: Rows) -> Tensor:
    """Return who sees whom as booleans, shape (B, 1, T, T): what scaled dot-product attention takes on a CPU."""
    num_pairs, width = rows.ids_BT.shape
    place = torch.arange(width, device=rows.ids_BT.device)
    pair = torch.arange(num_pairs, device=rows.ids_BT.device)[:, None, None, None]
    allowed = visibility(rows.chosen_at_B, rows.rejected_at_B)
    return allowed(pair, torch.zeros_like(pair), place[:, None], place)


def block_mask(rows: Rows) -> Any:
    """Return who sees whom as FlexAttention's `BlockMask`, which skips whole blocks of hidden keys on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask

    num_pairs, width = rows.ids_BT.shape
    allowed = visibility(rows.chosen_at_B, rows.rejected_at_B)
    return create_block_mask(allowed, num_pairs, None, width, width, device=str(rows.ids_BT.device))


def attention_mask(rows: Rows, implementation: str) -> Any:
    """Return the mask that an attention implementation of transformers takes."""
    return block_mask(rows) if implementation == "flex_attention" else dense_mask(rows)
