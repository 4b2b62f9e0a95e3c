"""Loads a chat model and measures the log-probability of answers under it.

Shapes: B sequences, T tokens, N answer tokens of the whole batch, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hone.errors import ConfigError

Ids = Sequence[int]

PARITY_TOLERANCE = 1e-3


def load_model(directory: Path) -> tuple[Any, Any]:
    """Return the model (fp32, evaluation mode) and the tokenizer of a local transformers directory.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory} is no loadable transformers model: {error}") from None
    return model.eval(), tokenizer


def end_tokens(model: Any) -> list[int]:
    """Return the ids at which the model's generation stops."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def token_logps(model: Any, sequences: Sequence[tuple[Ids, Ids]], pad: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (nats) of the answers' tokens, shape (N,), and the sequence of each, shape (N,).

    Each sequence is (prompt, answer). Logits are made for answer tokens only. Padding stands on the right, where
    causal attention never looks, so that no mask is needed.
    """
    ids_BT, row_N, time_N = collate(sequences, pad)
    hidden_BTH = decoder_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
    logits_NV = model.get_output_embeddings()(hidden_BTH[row_N, time_N - 1]).float()
    return -F.cross_entropy(logits_NV, ids_BT[row_N, time_N], reduction="none"), row_N


def answer_logps(model: Any, sequences: Sequence[tuple[Ids, Ids]], pad: int) -> Tensor:
    """Return the summed log-probability of each answer, shape (B,)."""
    logps_N, row_N = token_logps(model, sequences, pad)
    return sum_rows(logps_N, row_N, len(sequences))


def sum_rows(logps_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """Return the sum of each sequence's tokens, shape (B,)."""
    return torch.zeros(num_rows).index_add(0, row_N, logps_N)


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
    ids_1T = torch.tensor([[*prompt, *answer]])
    logps_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    whole = logps_TV.gather(1, ids_1T[0, 1:, None])[len(prompt) - 1 :].sum()
    ours = answer_logps(model, [sequence], pad)[0]
    if not torch.allclose(whole, ours, atol=PARITY_TOLERANCE, rtol=1e-4):
        raise ConfigError(
            f"log-probability of an answer is {ours:.4f} by the native engine, {whole:.4f} by the model: "
            'this architecture needs engine = "trl"'
        )
