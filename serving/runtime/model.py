"""A model directory of transformers, loaded: it answers, scores and embeds. Not for two threads at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from hone.errors import ConfigError
from hone.weights import checked_base, weights_digest
from serving.runtime.generation import left_pad

DEFAULT_MAX_TOKENS = 256
Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A set of weights under the name of its version."""

    version: str
    directory: Path
    digest: str
    model: Any
    tokenizer: Any
    is_reward: bool
    ends: frozenset[int]
    pad: int
    context: int

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Return the tokens of a conversation up to where the answer begins."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def default_max_tokens(self) -> int:
        """Return how long an answer may get when the request does not say."""
        return getattr(self.model.generation_config, "max_new_tokens", None) or DEFAULT_MAX_TOKENS

    @torch.inference_mode()
    def score(self, items: Sequence[tuple[Messages, str]]) -> list[float]:
        """Return a reward model's reward, or a chat model's mean log-probability (nats a token) of each completion."""
        if self.is_reward:
            return self._rewards(items)
        prompts = [self.prompt_ids(messages) for messages, _ in items]
        answers = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in items]
        answers = [ids or [self.pad] for ids in answers]
        rows = [(prompt + list(answer))[-self.context :] for prompt, answer in zip(prompts, answers, strict=True)]
        ids_BT, mask_BT = left_pad(rows, self.pad, self.model.device)
        logits_BTV = self._forward(ids_BT, mask_BT).logits[:, :-1].float()
        chosen_BT = logits_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0] - logits_BTV.logsumexp(-1)
        return [float(row[-len(answer) :].mean()) for row, answer in zip(chosen_BT, answers, strict=True)]

    def _rewards(self, items: Sequence[tuple[Messages, str]]) -> list[float]:
        """Return the reward model's only logit of each conversation that ends with its completion."""
        texts = [
            self.tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False)
            for messages, text in items
        ]
        batch = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=self.context)["input_ids"]
        ids_BT, mask_BT = left_pad([list(ids) for ids in batch], self.pad, self.model.device)
        return [float(value) for value in self._forward(ids_BT, mask_BT).logits[:, 0]]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the mean of the last hidden states of each text."""
        batch = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=self.context)
        rows = [list(ids) or [self.pad] for ids in batch["input_ids"]]
        ids_BT, mask_BT = left_pad(rows, self.pad, self.model.device)
        hidden_BTD = self._forward(ids_BT, mask_BT, output_hidden_states=True).hidden_states[-1].float()
        weights_BT1 = mask_BT[..., None].float()
        mean_BD = (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)
        return [[float(x) for x in row] for row in mean_BD]

    def _forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, **options: Any) -> Any:
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        return self.model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False, **options
        )


def load_model(version: str, directory: Path) -> LoadedModel:
    """Load a directory, on the GPU where there is one. Nothing is fetched from a network.

    An adapter is merged, in memory, into the base that it names.

    Raises:
        ConfigError: it is not a transformers directory with safetensors weights and a chat template, or an adapter's
            base is not the one that it was trained on.
    """
    try:
        digest, base = weights_digest(directory), checked_base(directory)
        whole = base.directory if base else directory
        config = AutoConfig.from_pretrained(whole, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        is_reward = any("SequenceClassification" in name for name in config.architectures or ())
        factory = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
        model = factory.from_pretrained(whole, local_files_only=True)
        model = (with_adapter(model, directory) if base else model).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {version}: {directory} cannot be loaded ({error}): export it again") from error
    if not tokenizer.chat_template:
        raise ConfigError(f"model {version}: the tokenizer of {directory} has no chat template: add one")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    context = getattr(config, "max_position_embeddings", None) or 2048
    return LoadedModel(version, directory, digest, model, tokenizer, is_reward, ends, pad, context)


def with_adapter(model: Any, directory: Path) -> Any:
    """Return the model with an adapter merged into it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, directory).merge_and_unload()


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: those of the generation config, and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)
