"""`python -m benchmarks.merging --json`: what twenty merges, one after the other, do to a model's weights and answers.

Each round makes a LoRA adapter whose change of every matrix has a given size, merges it by peft as an export does,
writes the model, and reads it again. Beside it the exact sum of base and all changes is kept in 64 bits. What differs
is rounding alone: it is measured in the weights and as the KL divergence of the next token's distribution. The adapters
are random, since rounding does not ask what a change means.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.result import Target, report, say

MERGES = 20
LOOKS = (1, 5, 10, 20)
CHANGE = 0.01
"""Size of one round's change of a matrix, relative to it (Frobenius norms)."""
RANK = 16
SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}
MAX_KL_FP32, MAX_KL_SHARE_BF16 = 1e-6, 0.25


def main() -> int:
    """Measure both precisions; return 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="accepted; the last line is always one JSON object")
    parser.parse_args()
    torch.set_num_threads(1)
    figures = {name: drift(dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    last = {name: found[str(MERGES)] for name, found in figures.items()}
    targets = {
        "fp32_kl_after_20": Target(last["fp32"]["kl_nats"], "<=", MAX_KL_FP32),
        "bf16_kl_after_20_over_what_was_learnt": Target(last["bf16"]["kl_over_learnt"], "<=", MAX_KL_SHARE_BF16),
    }
    return report(figures, targets, [0])


@torch.no_grad()
def drift(dtype: torch.dtype, looks: tuple[int, ...] = LOOKS) -> dict[str, dict[str, float]]:
    """Return, after some of the merges, how far the merged model is from the exact sum."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, num_key_value_heads=4, **SHAPE)).to(dtype)
    exact = {name: weight.double().clone() for name, weight in model.named_parameters()}
    first = {name: weight.clone() for name, weight in exact.items()}
    ids = torch.randint(0, 2048, (16, 64), generator=torch.Generator().manual_seed(1))
    found = {}
    for merge in range(1, max(looks) + 1):
        model = merged_once(model, exact, seed=merge)
        if merge in looks:
            found[str(merge)] = compare(model, exact, first, ids)
            say(f"{dtype} after {merge} merges: {found[str(merge)]}")
    return found


def merged_once(model: Any, exact: dict[str, torch.Tensor], seed: int) -> Any:
    """Return the model with one more adapter merged, written and read again; `exact` takes the change in 64 bits."""
    torch.manual_seed(seed)
    dtype = model.dtype
    policy = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    )
    for name, module in policy.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
            second.normal_()
            weight = module.base_layer.weight
            size = module.scaling["default"] * (second.double() @ first.double()).norm()
            second.mul_(CHANGE * float(weight.double().norm() / size))
            key = f"{name.removeprefix('base_model.model.')}.weight"
            exact[key] += module.scaling["default"] * (second.double() @ first.double())
    with tempfile.TemporaryDirectory() as folder:
        policy.merge_and_unload().save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(Path(folder), dtype=dtype)


def compare(model: Any, exact: dict[str, torch.Tensor], first: dict[str, torch.Tensor], ids: Any) -> dict[str, float]:
    """Return the merged model's distance from the exact one, and how far the exact one is from the base."""
    weights = dict(model.named_parameters())
    gaps = [float((weights[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact]
    truth = logits_of(model, exact, ids)
    drifted = logits_of(model, {name: weight.double() for name, weight in weights.items()}, ids)
    learnt = divergence(truth, logits_of(model, first, ids))
    kl = divergence(truth, drifted)
    return {"weights": max(gaps), "kl_nats": kl, "learnt_kl_nats": learnt, "kl_over_learnt": kl / learnt}


def logits_of(model: Any, weights: dict[str, torch.Tensor], ids: Any) -> Any:
    """Return the next tokens' log-probabilities of these weights, computed in 64 bits, shape (B, T, V)."""
    judge = LlamaForCausalLM(model.config).double()
    judge.load_state_dict(weights, strict=False)
    return judge.eval()(input_ids=ids).logits.log_softmax(-1)


def divergence(truth: Any, other: Any) -> float:
    """Return the mean KL divergence in nats a token."""
    return float((truth.exp() * (truth - other)).sum(-1).mean())


if __name__ == "__main__":
    raise SystemExit(main())
