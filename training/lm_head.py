"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

Shapes: N tokens, H hidden, V vocabulary. A log-probability depends on its own hidden state alone. So while the logits
of a chunk are there, its gradient with respect to the hidden state is computed too, and kept instead of them: N x H
numbers instead of N x V, and no second pass over the head (the idea of arXiv:2410.10989, for any loss that is made of
log-probabilities).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 1 << 24
"""Logits that exist at one time."""


def head_logps(hidden_NH: Tensor, targets_N: Tensor, head: nn.Module, max_logits: int = MAX_LOGITS) -> Tensor:
    """Return the log-probability (nats, fp32) of each target under its hidden state, shape (N,)."""
    weight_VH = head.weight
    assert isinstance(weight_VH, Tensor)
    chunk = max(1, max_logits // weight_VH.shape[0])
    if is_plain(head) and not weight_VH.requires_grad:
        found: Tensor = FrozenHead.apply(hidden_NH, weight_VH, targets_N, chunk)  # type: ignore[no-untyped-call]
        return found
    if len(hidden_NH) <= chunk:
        return logps_of(hidden_NH, targets_N, head)
    pieces = zip(torch.split(hidden_NH, chunk), torch.split(targets_N, chunk), strict=True)
    return torch.cat([checkpoint(logps_of, hidden, targets, head, use_reentrant=False) for hidden, targets in pieces])


def is_plain(head: nn.Module) -> bool:
    """Say whether the head is a matrix and nothing else."""
    return type(head) is nn.Linear and head.bias is None


def logps_of(hidden_NH: Tensor, targets_N: Tensor, head: nn.Module) -> Tensor:
    """Return the same through the head itself, all logits at once."""
    return -F.cross_entropy(head(hidden_NH).float(), targets_N, reduction="none")


class FrozenHead(torch.autograd.Function):
    """log softmax(W h)[t], whose derivative by h is W[t] - softmax(W h) W."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        """Return log-probabilities; keep the derivative where it will be asked for."""
        logps_N = torch.empty(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
        slopes_NH = weight_VH[targets_N] if ctx.needs_input_grad[0] else None
        for at in range(0, len(hidden_NH), chunk):
            part = slice(at, at + chunk)
            logits_NV = (hidden_NH[part] @ weight_VH.T).float()
            total_N = logits_NV.logsumexp(-1)
            logps_N[part] = logits_NV.gather(-1, targets_N[part, None])[:, 0] - total_N
            if slopes_NH is not None:
                probs_NV = logits_NV.sub_(total_N[:, None]).exp_().to(weight_VH.dtype)
                slopes_NH[part].addmm_(probs_NV, weight_VH, alpha=-1)
        ctx.save_for_backward(slopes_NH)
        return logps_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return each token's derivative times what the loss asks of its log-probability."""
        (slopes_NH,) = ctx.saved_tensors
        return slopes_NH * gradients[0][:, None].to(slopes_NH.dtype), None, None, None
