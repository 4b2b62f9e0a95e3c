"""Chooses the broker of a stack: yours, else a real one, else librdkafka's in-process one; and starts it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hone.local.broker import Broker, BrokerKind, create_topics, external_broker
from hone.local.kafka import fetch_jars, obstacle, prepare_kafka
from hone.local.mock_kafka import mock_broker, mock_program
from hone.local.processes import Supervisor


@dataclass(frozen=True)
class BrokerChoice:
    """Which kind of broker, and why, in words for people."""

    kind: BrokerKind
    reason: str


def choose_broker(bootstrap_servers: str | None, libs: Path) -> BrokerChoice:
    """Decide without starting or fetching anything; `libs` is where Kafka's jars are or would be put."""
    if bootstrap_servers:
        return BrokerChoice("external", f"yours at {bootstrap_servers}")
    if missing := obstacle(libs):
        return BrokerChoice("librdkafka-mock", f"{missing}; messages are in memory only")
    return BrokerChoice("kafka", "a real broker from Maven jars")


def start_broker(
    supervisor: Supervisor,
    directory: Path,
    topics: Mapping[str, int],
    *,
    libs: Path,
    bootstrap_servers: str | None = None,
    detached: bool = False,
) -> Broker:
    """Start the chosen broker (an external one is only looked at), create the topics and describe it.

    Its data and log lie in `directory`; a real broker finds its earlier messages there. `detached` says that the broker
    must outlive the calling process.

    Raises:
        HoneError: an external broker does not answer, the jars cannot be fetched, or the broker did not start.
    """
    match choose_broker(bootstrap_servers, libs).kind:
        case "external":
            broker = external_broker(bootstrap_servers or "")
        case "kafka":
            fetch_jars(libs)
            server = prepare_kafka(directory / "data", libs)
            supervisor.start(server.program(directory / "kafka.log"))
            broker = server.broker()
        case "librdkafka-mock":
            supervisor.start(mock_program(directory, topics, die_with=None if detached else os.getpid()))
            broker = mock_broker(directory)
    create_topics(broker, topics)
    return broker
