"""Tiny chat models that each learned one answer, so that a text tells whose weights it comes from."""

from pathlib import Path
from typing import Any

import torch

from examples.support.chat_model import build_model, save_model, train_tokenizer
from tests.support.tiny_model import OBJECTS, VERBS, sentences

STEPS = 40


def make_speaking_model(directory: Path, answer: str, seed: int = 0) -> Path:
    """Write a model that answers every question with `answer`; about a CPU second."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(sentences(), vocab_size=512)
    model = build_model(tokenizer, hidden=32, layers=2, heads=4, max_length=256, seed=seed)
    rows = [example(tokenizer, f"How do I {verb} my {thing}?", answer) for verb in VERBS for thing in OBJECTS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        ids, labels = batch(rows[step % 6 :: 6])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.eval(), tokenizer, directory)
    return directory


def example(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and which of them are learned."""
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False)
    ids, start = encode(tokenizer, whole), len(encode(tokenizer, prompt))
    return ids, [-100] * start + ids[start:]


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def batch(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one length, filled up on the right with what is not learned."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (length - len(row)) for _, row in rows])
    return ids, labels
