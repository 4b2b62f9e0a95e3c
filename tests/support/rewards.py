"""Rewards for tests of PPO, RLOO and GRPO, named in specs as `tests.support.rewards:NAME`."""

from typing import Any

Chats = list[list[dict[str, str]]]


def first_half(prompts: Chats, completions: list[str], **_: Any) -> list[float]:
    """1 for an answer whose first character is in the lower half of the letters."""
    return [float(text[:1].lower() < "m") for text in completions]


def length(prompts: Chats, completions: list[str], **_: Any) -> list[float]:
    """A tenth of the characters."""
    return [len(text) / 10 for text in completions]


def shortness(prompts: Chats, completions: list[str], **_: Any) -> list[float]:
    """What a reward for length is bought with."""
    return [-len(text) / 10 for text in completions]
