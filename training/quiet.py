"""Keeps from terminals and logs what other packages say that means nothing here; everything else still shows."""

import logging
import re

from transformers.utils import logging as transformers_logging

EXPECTED = (
    # Checkpoints lie less than a second apart.
    "mtime may not be reliable on this filesystem",
    # A run that had ended, and was killed while it was evaluated, trains no further.
    "There seems not to be a single sample in your epoch_iterator",
    # The head is the embeddings, which are there.
    "There were missing keys in the checkpoint model loaded: ['lm_head.weight'].",
)
"""How messages begin that transformers logs as warnings."""
NEW_HEAD = [("score.weight", "MISSING")]
"""All that a load report may tell of a base that becomes a reward model: its head is drawn anew."""
REPORTED = re.compile(r"^(\S+)\s*\|\s*([A-Z]+)\s*\|", re.MULTILINE)
COLOUR = re.compile(r"\x1b\[\d+m")


def quieten() -> None:
    """Show no progress bars of transformers, and none of its warnings that are expected; safe to repeat."""
    transformers_logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Say whether a message tells people something."""
    text = COLOUR.sub("", record.getMessage())
    if " LOAD REPORT from: " in text:
        return REPORTED.findall(text) != NEW_HEAD
    return not text.startswith(EXPECTED)
