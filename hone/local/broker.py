"""Which Kafka broker a stack talks to, and the topics on it. One client code path for all three kinds."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from hone.errors import Retryable

logger = logging.getLogger(__name__)

BROKER_DEFAULT = -1
BrokerKind = Literal["kafka", "librdkafka-mock", "external"]


@dataclass(frozen=True)
class Broker:
    """A broker that answers, and what may be claimed about it."""

    bootstrap_servers: str
    kind: BrokerKind
    version: str
    durable: bool
    """Whether an acknowledged message survives the broker's restart; where False nothing about loss is claimed."""
    incarnation: str
    """Identifies the log that offsets belong to: the cluster id, or a fresh id at each start of an in-memory broker."""


def cluster_id(bootstrap_servers: str, *, timeout_s: float = 1.0) -> str | None:
    """Return the id from the broker's metadata, or None where no broker answers in time."""
    client = AdminClient(_quiet(bootstrap_servers))
    try:
        metadata = client.list_topics(timeout=timeout_s)
    except KafkaException:
        return None
    return metadata.cluster_id if metadata.brokers else None


def serves_groups(bootstrap_servers: str, *, timeout_s: float = 1.0) -> bool:
    """Say whether consumer groups work. Asking makes a new broker create its offsets topic.

    Without that a broker's first consumer waits three seconds for its coordinator.
    """
    client = AdminClient(_quiet(bootstrap_servers))
    group = "hone-readiness"
    try:
        client.describe_consumer_groups([group], request_timeout=timeout_s)[group].result()
    except KafkaException as error:
        return bool(error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND)
    return True


def external_broker(bootstrap_servers: str, *, timeout_s: float = 10.0) -> Broker:
    """Describe a broker that is not ours.

    Raises:
        Retryable: no broker answers at this address.
    """
    found = cluster_id(bootstrap_servers, timeout_s=timeout_s)
    if found is None:
        raise Retryable(
            f"no Kafka broker answers at {bootstrap_servers} within {timeout_s:g} s; "
            "check HONE_KAFKA_BOOTSTRAP_SERVERS, or leave it out to use an embedded one"
        )
    return Broker(bootstrap_servers, "external", "", True, found)


def create_topics(broker: Broker, partitions: Mapping[str, int], *, timeout_s: float = 15.0) -> list[str]:
    """Create the topics that do not exist yet (name -> partitions) and return their names.

    Existing topics keep their partitions; the replication factor is the broker's default. The in-process broker has no
    admin API: it got its topics at its start, and makes any other one at first use.

    Raises:
        Retryable: the broker is away, or did not create a topic.
    """
    if broker.kind == "librdkafka-mock":
        return []
    client = AdminClient(_quiet(broker.bootstrap_servers))
    try:
        existing = client.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise Retryable(f"no Kafka broker answers at {broker.bootstrap_servers}: {error.args[0].str()}") from error
    missing = [name for name in partitions if name not in existing]
    if not missing:
        return []
    topics = [NewTopic(name, partitions[name], BROKER_DEFAULT) for name in missing]
    futures = client.create_topics(topics, operation_timeout=timeout_s, request_timeout=timeout_s)
    return [name for name in missing if _created(name, futures[name])]


def _created(name: str, future: "Future[None]") -> bool:
    try:
        future.result()
    except KafkaException as exception:
        error = exception.args[0]
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise Retryable(f"topic {name} could not be created: {error.str()}") from exception
    return True


def _quiet(bootstrap_servers: str) -> dict[str, str | int]:
    return {"bootstrap.servers": bootstrap_servers, "log_level": 0, "socket.connection.setup.timeout.ms": 2000}
