"""Loads a chat model and measures the log-probability of answers under it.

Shapes: B sequences, T tokens, N answer tokens of the whole batch, H hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hone.errors import ConfigError
from hone.weights import checked_base
from training.distributed import device
from training.lm_head import head_logps
from training.pairs import TokenPair
from training.shared_prompt import attention_mask, lay_out

Ids = Sequence[int]

PARITY_TOLERANCE = 1e-3
GPU_BLOCK = 128
"""Rows are as long as a multiple of this on a GPU: FlexAttention works in such blocks, and few shapes compile."""


def load_model(directory: Path, *, place: str | None = None, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return the model (in evaluation mode) and the tokenizer of a local directory.

    An adapter is merged, in memory, into the base that it names.

    Args:
        place: the device; None: the GPU of this process if there is one.

    Raises:
        ConfigError: it cannot be loaded, or the base is not the one that the adapter was trained on.
    """
    base = checked_base(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            base.directory if base else directory, local_files_only=True, dtype=dtype
        )
        if base:
            model = PeftModel.from_pretrained(model, directory).merge_and_unload()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory} is no loadable transformers model: {error}") from None
    return model.eval().to(place or device()), tokenizer


@contextmanager
def on_device(model: Any) -> Iterator[None]:
    """Hold a model where this process computes, and afterwards where it was: a GPU has no room for all that wait."""
    before = model.device
    model.to(device())
    try:
        yield
    finally:
        model.to(before)


def end_tokens(model: Any) -> list[int]:
    """Return the ids at which the model's generation stops."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def pair_logps(model: Any, pairs: Sequence[TokenPair], pad: int, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Return the summed log-probabilities (nats) of chosen and rejected answers, both of shape (B,) for B pairs.

    Args:
        shared: compute each prompt once for both answers, see `training.shared_prompt`.
    """
    if shared:
        logps_N, answer_N = shared_token_logps(model, pairs, pad)
    else:
        sequences = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
        logps_N, answer_N = token_logps(model, sequences, pad)
    chosen_B, rejected_B = sum_rows(logps_N, answer_N, 2 * len(pairs)).chunk(2)
    return chosen_B, rejected_B


def shared_token_logps(model: Any, pairs: Sequence[TokenPair], pad: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the answers' tokens, shape (N,), and the answer of each: chosen ones first."""
    rows = lay_out(pairs, pad, multiple=GPU_BLOCK if model.device.type == "cuda" else 1).to(model.device)
    mask = attention_mask(rows, model.config._attn_implementation)
    decoder = decoder_of(model)
    output = decoder(input_ids=rows.ids_BT, position_ids=rows.positions_BT, attention_mask=mask, use_cache=False)
    hidden_NH = output.last_hidden_state.flatten(0, 1)[rows.source_N]
    return head_logps(hidden_NH, rows.target_N, model.get_output_embeddings()), rows.answer_N


def token_logps(model: Any, sequences: Sequence[tuple[Ids, Ids]], pad: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (nats) of the answers' tokens, shape (N,), and the sequence of each, shape (N,).

    Each sequence is (prompt, answer). Logits are made for answer tokens only. Padding stands on the right, where
    causal attention never looks, so that no mask is needed.
    """
    ids_BT, row_N, time_N = (tensor.to(model.device) for tensor in collate(sequences, pad))
    hidden_BTH = decoder_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
    targets_N = ids_BT[row_N, time_N]
    return head_logps(hidden_BTH[row_N, time_N - 1], targets_N, model.get_output_embeddings()), row_N


def answer_logps(model: Any, sequences: Sequence[tuple[Ids, Ids]], pad: int) -> Tensor:
    """Return the summed log-probability of each answer, shape (B,)."""
    logps_N, row_N = token_logps(model, sequences, pad)
    return sum_rows(logps_N, row_N, len(sequences))


def sum_rows(logps_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """Return the sum of each sequence's tokens, shape (B,)."""
    return logps_N.new_zeros(num_rows).index_add(0, row_N, logps_N)


def collate(sequences: Sequence[tuple[Ids, Ids]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return padded ids (B, T), and for every answer token its sequence (N,) and its place in it (N,)."""
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids_BT = torch.full((len(sequences), longest), pad)
    rows, times = [], []
    for k, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids_BT[k, :end] = torch.tensor([*prompt, *answer])
        rows.append(torch.full((len(answer),), k))
        times.append(torch.arange(len(prompt), end))
    return ids_BT, torch.cat(rows), torch.cat(times)


def decoder_of(model: Any) -> Any:
    """Return the part below the language-model head, through an adapter's wrapper if there is one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder()


@torch.no_grad()
def check_parity(model: Any, sequence: tuple[Ids, Ids], pad: int) -> None:
    """Raise ConfigError unless our log-probability of the answer equals that of the model's own forward pass.

    Some architectures scale or cap their logits outside the head; for these only the engine `trl` is right.
    """
    prompt, answer = sequence
    ids_1T = torch.tensor([[*prompt, *answer]], device=model.device)
    logps_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    whole = logps_TV.gather(1, ids_1T[0, 1:, None])[len(prompt) - 1 :].sum()
    ours = answer_logps(model, [sequence], pad)[0]
    if not torch.allclose(whole, ours, atol=PARITY_TOLERANCE, rtol=relative_tolerance(model)):
        raise ConfigError(
            f"log-probability of an answer is {ours:.4f} by the native engine, {whole:.4f} by the model: "
            'this architecture needs engine = "trl"'
        )


def attends_to_all(model: Any) -> bool:
    """Say whether every layer is attention to all that came before: no window, no state, no encoder."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    has_window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not model.config.is_encoder_decoder and not has_window


@torch.no_grad()
def can_share_prompt(model: Any, pairs: Sequence[TokenPair], pad: int) -> bool:
    """Say whether the pairs have the same log-probabilities with a shared prompt as with one of their own."""
    shared = torch.stack(pair_logps(model, pairs, pad, shared=True))
    separate = torch.stack(pair_logps(model, pairs, pad, shared=False))
    return torch.allclose(shared, separate, atol=PARITY_TOLERANCE, rtol=relative_tolerance(model))


def relative_tolerance(model: Any) -> float:
    """Return by how much two ways to the same log-probability may differ: more in bf16."""
    return 1e-4 if model.dtype == torch.float32 else 2e-2
