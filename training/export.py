"""Makes a servable model of a trained policy: adapter merged (or kept), safetensors, reloaded and tried."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from hone.errors import ProgramFailed
from hone.weights import AdapterBase, weights_digest
from training.checkpoint import publish
from training.pairs import ids_of
from training.policy import load_model

MERGE_TOLERANCE = 1e-3


def export_model(
    policy: Any, tokenizer: Any, target: Path, *, base: Path | None = None, max_shard_gb: float = 5.0
) -> tuple[Any, Any]:
    """Write the merged policy to `target`, which appears complete or not at all; return it as reloaded from there.

    All of it happens in main memory, where the policy is moved to: a GPU that it was trained on may not hold it twice.

    Args:
        base: the directory of the weights under the policy's adapter: the adapter alone is then written, beside what
            names them.
        max_shard_gb: weights beyond so many gigabytes lie in several files, beside an index of them.

    Raises:
        ProgramFailed: the reloaded model computes something else than the policy, or cannot answer.
    """
    policy, probe = policy.to("cpu"), probe_ids(tokenizer)
    with torch.inference_mode():
        expected = policy(input_ids=probe).logits
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    if base is not None:
        policy.save_pretrained(scratch)
        AdapterBase(weights_digest(base), base.absolute()).write(scratch)
    else:
        merged = policy.merge_and_unload() if hasattr(policy, "merge_and_unload") else policy
        merged.save_pretrained(scratch, max_shard_size=round(max_shard_gb * 1e9))
    tokenizer.save_pretrained(scratch)
    model, tokenizer = load_model(scratch, place="cpu")
    check_export(model, probe, expected)
    publish(scratch, target)
    return model, tokenizer


def probe_ids(tokenizer: Any) -> Any:
    """Return the ids of a short question, shape (1, T)."""
    chat = [{"role": "user", "content": "How do I rename my order?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return torch.tensor([ids_of([text], tokenizer)[0]])


@torch.inference_mode()
def check_export(model: Any, probe: Any, expected: Any) -> None:
    """Raise ProgramFailed unless the reloaded model computes what the policy computed, and can write an answer."""
    gap = (model(input_ids=probe).logits - expected).abs().max().item()
    if not gap < MERGE_TOLERANCE * max(1.0, expected.abs().max().item()):
        raise ProgramFailed(
            f"the exported model's logits differ from the trained policy's by {gap:.5f}: merging failed"
        )
    written = model.generate(input_ids=probe, attention_mask=torch.ones_like(probe), max_new_tokens=8, do_sample=False)
    if written.shape[1] <= probe.shape[1]:
        raise ProgramFailed("the exported model writes nothing: look at its generation configuration")
