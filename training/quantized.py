"""QLoRA (arXiv:2305.14314): a base in 4 bits that stays frozen, and a fresh LoRA adapter over it.

What is served is the adapter on the base as it was before: it is merged into the unrounded weights, not into the 4-bit
ones (and not into the bf16 ones under which LoRA trains on GPUs). The two compute a little different things; by how
much is measured and kept with the run.

bitsandbytes comes with the extra `qlora`; it is imported by no other run.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hone.errors import ConfigError, ProgramFailed
from training.distributed import device
from training.fit import Task
from training.pairs import ids_of
from training.precision import base_dtype, is_rounded
from training.preflight import load_weights
from training.spec import RunSpec

KIND = "nf4"
NUM_PROBES = 16
"""Rows whose text the two models are compared on."""
PROBE_TOKENS = 128
"""Of each, from its beginning."""


def load_quantized(directory: str | Path, spec: RunSpec, kind: Any = AutoModelForCausalLM, **fields: Any) -> Any:
    """Return the model with its layers in 4 bits (NF4, scales quantised once more), head and embeddings as they are.

    Args:
        kind: transformers' class that loads it; `fields` go to it.

    Raises:
        ConfigError: the model cannot be loaded, or a layer is not in 4 bits.
    """
    dtype = base_dtype(spec)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=KIND, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    try:
        model = kind.from_pretrained(
            directory,
            local_files_only=True,
            dtype=dtype,
            quantization_config=config,
            device_map={"": device()},
            **fields,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory} cannot be loaded in 4 bits: {error}") from None
    check_quantized(model)
    return model.eval()


def check_quantized(model: Any) -> None:
    """Make sure that every matrix of the layers is in 4 bits as asked, and nothing else is.

    Raises:
        ConfigError: one is not; names it.
    """
    from bitsandbytes.nn import Linear4bit

    head = {"lm_head", "score"}
    matrices: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    for name, part in matrices.items():
        is_packed = isinstance(part, Linear4bit)
        if is_packed == (name.rpartition(".")[2] in head or part is model.get_output_embeddings()):
            raise ConfigError(
                f"{name} is {'in' if is_packed else 'not in'} 4 bits: this architecture needs adapter = lora"
            )
        if not is_packed:
            continue
        state = part.weight.quant_state
        if state is None or state.quant_type != KIND or not state.nested:
            raise ConfigError(f"{name} is in 4 bits, but not as {KIND} with quantised scales: look at bitsandbytes")
        # On CPUs with AVX512-BF16 a pass without gradients would repack the weights for a kernel that has none.
        part.support_avx512bf16_for_cpu = False
    if not any(isinstance(part, Linear4bit) for part in matrices.values()):
        raise ConfigError('no layer is in 4 bits: this architecture needs adapter = "lora"')


def onto(base: Any, policy: Any) -> Any:
    """Return the unquantised base with a copy of the policy's adapter on it, and its heads that were trained whole.

    Raises:
        ProgramFailed: the adapter does not fit.
    """
    served = get_peft_model(base, copy.deepcopy(policy.peft_config["default"]))
    adapter = get_peft_model_state_dict(policy, save_embedding_layers=False)
    found = set_peft_model_state_dict(served, {name: weight.float().cpu() for name, weight in adapter.items()})
    missing = [name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or found.unexpected_keys:
        raise ProgramFailed(f"the adapter does not fit the unquantised base: {missing or found.unexpected_keys}")
    return served.eval()


def to_serve(policy: Any, task: Task) -> tuple[Any, dict[str, float]]:
    """Return the policy as it will be served, adapter not merged yet, and what it differs by from what was trained.

    Raises:
        ProgramFailed: the adapter does not fit the base.
    """
    if not is_rounded(task.spec):
        return policy, {}
    served = onto(load_weights(policy.get_base_model().name_or_path), policy)
    found = rounding_cost(policy, served, probes(task))
    policy.to("cpu")  # the GPU is needed for the judging
    return served, found


def probes(task: Task) -> list[tuple[int, ...]]:
    """Return the token ids of some rows: held-out ones where there are any, each with an answer if it has one.

    So many that a CPU reads them in a minute, however large the model is.
    """
    chats = []
    for row in (task.dev or task.rows)[:NUM_PROBES]:
        answer = row.get("chosen", row.get("completion"))
        chats.append([*row["prompt"], *([{"role": "assistant", "content": answer}] if answer else [])])
    texts = [task.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    return [ids[:PROBE_TOKENS] for ids in ids_of(texts, task.tokenizer)]


@torch.inference_mode()
def rounding_cost(trained: Any, served: Any, sequences: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """Return how far the served policy is from the trained one; means over all tokens of the sequences.

    `kl`: of the trained from the served distribution, nats a token; `kl_bases`: the same of the bases alone, which is
    what 4 bits cost before anything is learnt; `kl_learnt`: of the served policy from its base, the scale of what was
    learnt; `same_token`: how often both find the same token the likeliest.
    """
    sums = dict.fromkeys(("kl", "kl_bases", "kl_learnt", "same_token"), 0.0)
    for ids in sequences:
        ours_TV, theirs_TV = next_logps(trained, ids), next_logps(served, ids)
        with trained.disable_adapter(), served.disable_adapter():
            our_base_TV, their_base_TV = next_logps(trained, ids), next_logps(served, ids)
        sums["kl"] += kl(ours_TV, theirs_TV)
        sums["kl_bases"] += kl(our_base_TV, their_base_TV)
        sums["kl_learnt"] += kl(theirs_TV, their_base_TV)
        sums["same_token"] += float((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum())
    tokens = sum(map(len, sequences))
    return {name: value / tokens for name, value in sums.items()}


def next_logps(model: Any, ids: tuple[int, ...]) -> Tensor:
    """Return the log-probabilities of the token after each of the ids, shape (T, V), on the CPU."""
    logits_TV: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits_TV.float().log_softmax(-1).cpu()


def kl(logps_TV: Tensor, others_TV: Tensor) -> float:
    """Return the Kullback-Leibler divergence of the first from the second, nats, summed over tokens."""
    return float((logps_TV.exp() * (logps_TV - others_TV)).sum())
