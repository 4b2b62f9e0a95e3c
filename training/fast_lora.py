"""LoRA layers with half as many operations: the same mathematics as peft's (arXiv:2106.09685), written as one.

peft computes base, A, B, a multiplication and a sum, and keeps what each of them needs. Here A's result is the only
thing kept besides the input, B is added in place, and adapters in fp32 do not lift a bf16 model's activations to fp32.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn


class AdaptedLinear(torch.autograd.Function):
    """y = x W' + bias + s (x A') B' for a frozen W; gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, *adapter: Any) -> Tensor:
        """Return y; `adapter` is A (R, I), B (O, R) and the scale s."""
        down_RI, up_OR, scale = adapter
        x_NI = x.reshape(-1, x.shape[-1])
        inner_NR = x_NI @ down_RI.T.to(x.dtype)
        y_NO = F.linear(x_NI, weight_OI, bias_O).addmm_(inner_NR, up_OR.T.to(x.dtype), alpha=scale)
        ctx.save_for_backward(x_NI, inner_NR, weight_OI, down_RI, up_OR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Return the gradients of x, A and B."""
        x_NI, inner_NR, weight_OI, down_RI, up_OR = ctx.saved_tensors
        dy_NO = gradients[0].reshape(-1, gradients[0].shape[-1])
        dinner_NR = (dy_NO @ up_OR.to(dy_NO.dtype)).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ weight_OI).addmm_(dinner_NR, down_RI.to(dy_NO.dtype)).view(ctx.shape)
        ddown_RI = (dinner_NR.T @ x_NI).to(down_RI.dtype)
        dup_OR = (dy_NO.T @ inner_NR).mul_(ctx.scale).to(up_OR.dtype)
        return dx, None, None, ddown_RI, dup_OR, None


@contextmanager
def fast_lora(model: nn.Module) -> Iterator[None]:
    """Let the model's plain LoRA layers compute as one operation inside; layers of other kinds stay peft's.

    The adapter must not be switched off inside.
    """
    with replaced({layer: partial(adapted, layer) for layer in plain_layers(model)}):
        yield


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Let plain LoRA layers use one matrix inside, base and adapter added up: for inference, at twice their memory.

    The weights themselves are left alone: adding and subtracting would not give them back to the last bit.
    """
    with replaced(
        {layer: partial(F.linear, weight=merged(layer), bias=bias_of(layer)) for layer in plain_layers(model)}
    ):
        yield


@contextmanager
def replaced(forwards: dict[Any, Any]) -> Iterator[None]:
    """Give layers another forward function inside, and afterwards back what they had."""
    before = {layer: vars(layer).get("forward") for layer in forwards}
    for layer, forward in forwards.items():
        layer.forward = forward
    try:
        yield
    finally:
        for layer, forward in before.items():
            del layer.forward
            if forward is not None:
                layer.forward = forward


def plain_layers(model: nn.Module) -> list[Any]:
    """Return the layers that are LoRA and nothing else."""
    return [module for module in model.modules() if is_plain(module)]


@torch.no_grad()
def merged(layer: Any) -> Tensor:
    """Return base and adapter as one matrix."""
    base = layer.get_base_layer()
    down, up, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    return torch.addmm(base.weight, up.to(base.weight), down.to(base.weight), alpha=scale)


def bias_of(layer: Any) -> Tensor | None:
    """Return the base's bias."""
    found: Tensor | None = layer.get_base_layer().bias
    return found


def is_plain(module: Any) -> bool:
    """Say whether a module is LoRA and nothing else: one adapter, no dropout, no variant, a frozen matrix below."""
    if type(module) is not lora.Linear or list(module.lora_A) != ["default"] or module.lora_variant:
        return False
    base = module.get_base_layer()
    is_frozen = type(base) is nn.Linear and not base.weight.requires_grad and not module.fan_in_fan_out
    has_bias = module.lora_B["default"].bias is not None
    return is_frozen and not has_bias and isinstance(module.lora_dropout["default"], nn.Identity)


def adapted(layer: Any, x: Tensor) -> Tensor:
    """Return what the layer returns for x, shape (..., O)."""
    base = layer.get_base_layer()
    down, up, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    found: Tensor = AdaptedLinear.apply(x, base.weight, base.bias, down, up, scale)  # type: ignore[no-untyped-call]
    return found
