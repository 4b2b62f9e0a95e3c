"""Scores answers by trained reward models and by functions of the operator's: what PPO, RLOO and GRPO learn from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hone.errors import ConfigError
from training.pairs import ids_of
from training.spec import RunSpec

REWARDS = "rewards.json"
"""Objective -> weight, and the mean and deviation that put its scores on one scale."""
SCORING_BATCH = 32

Chat = list[dict[str, str]]
Scorer = Callable[..., list[float]]
"""Called with prompts=[chat, …] and completions=[text, …]; returns one number for each."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One reward model and its part in the sum."""

    model: Any
    tokenizer: Any
    weight: float
    mean: float
    deviation: float

    def __call__(self, prompts: Sequence[Chat], completions: Sequence[str], **_: Any) -> list[float]:
        """Return weight · (score - mean) / deviation of each answer."""
        chats = [
            [*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, completions, strict=True)
        ]
        ids = ids_of([self.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats], self.tokenizer)
        scores = score_ids(self.model, ids, self.tokenizer.pad_token_id)
        return [self.weight * (score - self.mean) / self.deviation for score in scores]


@torch.inference_mode()
def score_ids(model: Any, sequences: Sequence[Sequence[int]], pad: int) -> list[float]:
    """Return the score of each sequence of token ids, in order; the model scores its last token that is no padding."""
    order = sorted(range(len(sequences)), key=lambda k: len(sequences[k]))
    found: dict[int, float] = {}
    for at in range(0, len(order), SCORING_BATCH):
        chunk = order[at : at + SCORING_BATCH]
        longest = max(len(sequences[k]) for k in chunk)
        ids_BT = torch.full((len(chunk), longest), pad)
        for row, k in enumerate(chunk):
            ids_BT[row, : len(sequences[k])] = torch.tensor(sequences[k])
        mask_BT = torch.zeros_like(ids_BT)
        for row, k in enumerate(chunk):
            mask_BT[row, : len(sequences[k])] = 1
        scores_B = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits[:, 0]
        found |= zip(chunk, scores_B.float().tolist(), strict=True)
    return [found[k] for k in range(len(sequences))]


def load_objectives(directory: Path) -> dict[str, Objective]:
    """Return the reward models of a directory that a run of `reward_model` left (or of that run's directory).

    Raises:
        ConfigError: there is none.
    """
    place = directory if (directory / REWARDS).exists() else directory / "model"
    try:
        described = json.loads((place / REWARDS).read_text())
    except OSError:
        raise ConfigError(f"{directory} holds no {REWARDS}: name the directory of a reward_model run") from None
    return {
        name: Objective(
            AutoModelForSequenceClassification.from_pretrained(
                place / name, local_files_only=True, dtype=torch.float32
            ).eval(),
            AutoTokenizer.from_pretrained(place / name, local_files_only=True),
            facts["weight"],
            facts["mean"],
            facts["deviation"],
        )
        for name, facts in described.items()
    }


def load_function(path: str) -> Scorer:
    """Return the function that `module:function` names. Raises ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        found: Scorer = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"reward {path!r} cannot be imported ({error}): write module:function") from None
    return found


def load_rewards(spec: RunSpec) -> dict[str, tuple[float, Scorer]]:
    """Return name -> (weight, scorer) of everything that the spec rewards. Raises ConfigError like its parts."""
    found: dict[str, tuple[float, Scorer]] = {}
    for directory, weight in spec.rewards.models.items():
        for name, objective in load_objectives(Path(directory)).items():
            found[f"{directory}/{name}"] = (weight, objective)
    for path, weight in spec.rewards.functions.items():
        found[path] = (weight, load_function(path))
    return found


def total(rewards: dict[str, tuple[float, Scorer]], prompts: Sequence[Chat], completions: Sequence[str]) -> list[float]:
    """Return the weighted sum of all rewards of each answer."""
    sums = [0.0] * len(completions)
    for weight, scorer in rewards.values():
        for k, score in enumerate(scorer(prompts=list(prompts), completions=list(completions))):
            sums[k] += weight * float(score)
    return sums
