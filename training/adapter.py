"""What of a model is trained: a fresh LoRA adapter, or all of it."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from training.method_tables import Lora
from training.spec import RunSpec


def trainable(model: Any, spec: RunSpec) -> Any:
    """Return the model ready to train: all weights for `adapter = "full"`, else a fresh adapter over frozen ones.

    The adapter's random half is drawn from the spec's seed.
    """
    torch.manual_seed(spec.seed)
    if spec.adapter == "full":
        return model.requires_grad_(True)
    return get_peft_model(model, lora_config(spec.lora))


def lora_config(lora: Lora, *, task: str = "CAUSAL_LM", heads: tuple[str, ...] = ()) -> LoraConfig:
    """Return the adapter in peft's words; `heads` are modules that are trained whole and saved with it."""
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        modules_to_save=list(heads) or None,
    )


def peft_config(spec: RunSpec, **fields: Any) -> LoraConfig | None:
    """Return what TRL's trainers want: the adapter's configuration, or None to train all weights."""
    return None if spec.adapter == "full" else lora_config(spec.lora, **fields)
