"""A chat model so small that a test can make its own: 2 layers, hidden 32, random weights, under a second."""

from pathlib import Path

from examples.support.chat_model import build_model, save_model, train_tokenizer

PAGES = ("Billing", "Profile", "Security", "Orders", "Reports", "Settings")
VERBS = ("rename", "delete", "export", "share", "restore", "archive")
OBJECTS = ("invoice", "password", "order", "report", "calendar", "address")


def sentences() -> list[str]:
    """A few dozen questions and answers; enough text for a tokenizer that knows whole words."""
    questions = [f"How do I {verb} my {thing}?" for verb in VERBS for thing in OBJECTS]
    answers = [f"Happy to help! 1. Open the {page} page. 2. Press {verb.title()}." for page in PAGES for verb in VERBS]
    return questions + answers


def make_tiny_model(directory: Path, seed: int = 0, *, hidden: int = 32, heads: int = 4) -> Path:
    """Write a loadable transformers directory (weights random, chosen by `seed`) and return its path."""
    tokenizer = train_tokenizer(sentences(), vocab_size=512)
    save_model(
        build_model(tokenizer, hidden=hidden, layers=2, heads=heads, max_length=256, seed=seed), tokenizer, directory
    )
    return directory
