"""Single answers as token ids: what SFT imitates and KTO weighs, checked like pairs and dropped with a reason."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hone.errors import NotEnoughData
from training.pairs import Row, encode_side, fault_of, ids_of


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """A prompt and its answer as token ids; the answer ends with the end token, and only there."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    row: Row


def answers_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with what is to be imitated as their `completion`: of a pair, the chosen answer."""
    return [{**row, "completion": row["chosen"]} if "chosen" in row else row for row in rows]


def labels_of(rows: Sequence[Row]) -> list[Row]:
    """Return rows of `completion` and `label`: a pair is one good and one bad answer, a demonstration a good one."""
    found: list[Row] = []
    for row in rows:
        if "chosen" in row:
            found += [{**row, "completion": row[side], "label": side == "chosen"} for side in ("chosen", "rejected")]
        else:
            found.append({"label": True, **row})
    return found


def thin(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows, each kept with probability weight ÷ largest weight: for trainers that know no weights."""
    largest = max((float(row.get("weight", 1.0)) for row in rows), default=1.0)
    rng = random.Random(seed)
    return [row for row in rows if rng.random() * largest < float(row.get("weight", 1.0))]


def encode_answers(rows: Sequence[Row], tokenizer: Any, max_length: int) -> tuple[list[TokenAnswer], dict[str, int]]:
    """Return the rows as token ids, and how many were dropped for which reason; nothing is cut.

    Raises:
        NotEnoughData: nothing is left.
    """
    prompts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    wholes, prompt_ids = encode_side(rows, "completion", prompts, tokenizer), ids_of(prompts, tokenizer)
    dropped = {"not_a_prefix": 0, "end_tokens": 0, "too_long": 0}
    answers = []
    for prompt, whole, row in zip(prompt_ids, wholes, rows, strict=True):
        fault = fault_of(prompt, whole, whole, tokenizer.eos_token_id, max_length)
        if fault:
            dropped[fault] += 1
        else:
            answers.append(TokenAnswer(prompt, whole[len(prompt) :], row))
    if not answers:
        raise NotEnoughData(
            f"none of {len(rows)} answers can be trained on ({dropped}): check chat template and max_length"
        )
    return answers, dropped
