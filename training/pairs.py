"""Turns the rows of a dataset into token ids, and refuses what a trainer would silently learn wrongly from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.errors import ConfigError, NotEnoughData

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One preference as token ids; both answers end with the end token, and only there.

    A demonstration is a pair without a rejected answer: it is imitated, and preferred to nothing.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    weight: float
    row: Row

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def read_rows(path: Path) -> list[Row]:
    """Return the objects of a JSONL file; an absent file is an empty one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def check_tokenizer(tokenizer: Any, end_tokens: Sequence[int]) -> None:
    """Raise ConfigError where the end of an answer could not be learnt or would not be noticed when serving.

    Args:
        end_tokens: the ids at which the model's own generation configuration stops.
    """
    if tokenizer.chat_template is None:
        raise ConfigError("the base model's tokenizer has no chat template: save one with it")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            f"pad token {tokenizer.pad_token!r} and end token {tokenizer.eos_token!r} must differ, else the end is "
            "masked and never learnt: give the tokenizer a pad token of its own"
        )
    if tokenizer.eos_token_id not in end_tokens:
        raise ConfigError(
            f"answers end with {tokenizer.eos_token!r} ({tokenizer.eos_token_id}), but the model stops at "
            f"{list(end_tokens)}: make generation_config.eos_token_id agree with the tokenizer"
        )


def encode_pairs(rows: Sequence[Row], tokenizer: Any, max_length: int) -> tuple[list[TokenPair], dict[str, int]]:
    """Return the rows as token ids, and how many were dropped for which reason; one with a `completion` has no rival.

    Nothing is cut: a pair longer than `max_length` tokens is dropped, so is one whose answer does not end with exactly
    one end token, or whose prompt is not a prefix of the whole.

    Raises:
        NotEnoughData: nothing is left.
    """
    prompts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    lone = [
        {**row, "chosen": row["completion"], "rejected": row["completion"]} if "completion" in row else row
        for row in rows
    ]
    sides = {side: encode_side(lone, side, prompts, tokenizer) for side in ("chosen", "rejected")}
    prompt_ids = ids_of(prompts, tokenizer)
    dropped = {"not_a_prefix": 0, "end_tokens": 0, "too_long": 0}
    pairs = []
    for k, row in enumerate(rows):
        prompt, chosen, rejected = prompt_ids[k], sides["chosen"][k], sides["rejected"][k]
        fault = fault_of(prompt, chosen, rejected, tokenizer.eos_token_id, max_length)
        if fault:
            dropped[fault] += 1
            continue
        cut = len(prompt)
        rival = () if "completion" in row else rejected[cut:]
        pairs.append(TokenPair(prompt, chosen[cut:], rival, float(row.get("weight", 1.0)), row))
    if rows and not pairs:
        raise NotEnoughData(
            f"none of {len(rows)} pairs can be trained on ({dropped}): check chat template and max_length"
        )
    return pairs, dropped


def encode_side(rows: Sequence[Row], side: str, prompts: Sequence[str], tokenizer: Any) -> list[tuple[int, ...]]:
    """Return prompt and answer as one sequence of ids each, up to the first end token of the answer's own."""
    chats = [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in rows]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    texts = [strip_after_end(text, prompt, tokenizer.eos_token) for text, prompt in zip(texts, prompts, strict=True)]
    return ids_of(texts, tokenizer)


def strip_after_end(text: str, prompt: str, end: str) -> str:
    """Return the text without the blanks that some templates put behind the last end token."""
    stripped = text.rstrip()
    return stripped if stripped.endswith(end) and len(stripped) > len(prompt) else text


def ids_of(texts: Iterable[str], tokenizer: Any) -> list[tuple[int, ...]]:
    """Return the token ids of texts that hold their special tokens already."""
    found = list(texts)
    return [tuple(ids) for ids in tokenizer(found, add_special_tokens=False)["input_ids"]] if found else []


def fault_of(
    prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...], end: int, max_length: int
) -> str | None:
    """Return why the pair must be dropped, or None."""
    cut = len(prompt)
    if chosen[:cut] != prompt or rejected[:cut] != prompt:
        return "not_a_prefix"
    for answer in (chosen[cut:], rejected[cut:]):
        if answer.count(end) != 1 or answer[-1] != end:
            return "end_tokens"
    return "too_long" if max(len(chosen), len(rejected)) > max_length else None
