"""Clients for Python apps: chat and feedback that is neither lost nor counted twice. See docs/client.md."""

from hone.client.acts import Answer, Call
from hone.client.http import AsyncHoneClient, HoneClient, problem_text
from hone.client.kafka import AsyncKafkaClient, KafkaClient, Undelivered

__all__ = [
    "Answer",
    "AsyncHoneClient",
    "AsyncKafkaClient",
    "Call",
    "HoneClient",
    "KafkaClient",
    "Undelivered",
    "problem_text",
]
