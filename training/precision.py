"""What a GPU needs and a CPU does without: bf16, recomputed activations, attention that skips hidden blocks."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from training.spec import RunSpec


def prepare(model: Any, spec: RunSpec, *, shared: bool) -> None:
    """Make the model compute as the spec says, in place; without dropout, since policy and reference must agree.

    Args:
        shared: rows will hold both answers of a pair, so that attention must take a mask of ours.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    if spec.adapter == "lora":  # a base in 4 bits was loaded so
        model.to(base_dtype(spec))
    if spec.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    if shared and model.device.type == "cuda" and model._supports_flex_attn:
        model.set_attn_implementation("flex_attention")


def computing(model: Any, spec: RunSpec) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: all weights that are trained stay in fp32, and compute in bf16 if asked."""
    if spec.precision == "bf16" and spec.adapter == "full":
        return torch.autocast(model.device.type, torch.bfloat16)
    return nullcontext()


def base_dtype(spec: RunSpec) -> torch.dtype:
    """Return what the weights of a base are held in: trained ones in fp32, frozen ones in the run's precision."""
    return torch.bfloat16 if spec.precision == "bf16" and spec.adapter != "full" else torch.float32


def is_rounded(spec: RunSpec) -> bool:
    """Say whether the base is trained over in fewer bits than it is served in."""
    return spec.adapter == "qlora" or base_dtype(spec) != torch.float32


def restore(model: Any) -> Any:
    """Return the trained model in evaluation mode; what is trained is in fp32, a frozen base as it was loaded."""
    model.eval()
    if model.is_activation_checkpointing:
        model.activation_checkpointing_disable()
    return model
