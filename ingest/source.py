"""Our side of a Kafka consumer: partitions come and go by the group, positions come from Postgres only."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from hone.errors import HoneError, Retryable
from hone.store.offsets import Partition
from ingest.batch import RawMessage

logger = logging.getLogger(__name__)

BROKER_TIMEOUT_S = 10.0
NO_TOPIC_ID = "A" * 22
"""How a broker before Kafka 2.8 says that it has no ids."""
ASSIGNORS = {"eager": "range", "cooperative": "cooperative-sticky"}

PASSING = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    }
)
"""Errors after which librdkafka goes on by itself."""


class PositionLost(Retryable):
    """The broker no longer has the offset at which a partition stands: compare with its watermarks again."""


def consumer_config(bootstrap_servers: str, group: str, rebalancing: str = "eager") -> dict[str, Any]:
    """Return the configuration: nothing is committed or reset behind our back."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "partition.assignment.strategy": ASSIGNORS[rebalancing],
        "session.timeout.ms": 6_000,
        "heartbeat.interval.ms": 1_000,
        "queued.max.messages.kbytes": 65_536,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 100,
        "topic.metadata.refresh.interval.ms": 10_000,
        "allow.auto.create.topics": False,
    }


class Source:
    """One member of a consumer group.

    A partition that the group gives us is `unclaimed`, and not read, until `read_from` names its position. One loop
    owns all state: Kafka's callbacks run inside `poll`, between two batches, and only note what changed. So a partition
    that is revoked has been drained: its last batch is committed, and it is fenced when its next owner claims it.
    With `rebalancing` "cooperative" the partitions that stay are read on while others move.
    """

    may_hold_old = True

    def __init__(self, bootstrap_servers: str, group: str, topics: Iterable[str], rebalancing: str = "eager") -> None:
        config = self.config(bootstrap_servers, group, rebalancing)
        self.consumer = Consumer(config)
        self.admin = AdminClient({name: config[name] for name in ("bootstrap.servers", "log_level") if name in config})
        self.cooperative = rebalancing == "cooperative"
        self.group = group
        self.topics = list(topics)
        self.unclaimed: set[Partition] = set()
        self.positions: dict[Partition, int] = {}
        self.num_rebalances = 0
        self.subscribe()

    def config(self, bootstrap_servers: str, group: str, rebalancing: str) -> dict[str, Any]:
        """Return the consumer's configuration."""
        return consumer_config(bootstrap_servers, group, rebalancing)

    def subscribe(self) -> None:
        """Join the group."""
        self.consumer.subscribe(self.topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def rejoin(self) -> None:
        """Leave the group and join it again: everything that we held is gone."""
        self.release()
        self.unclaimed.clear()
        self.consumer.unsubscribe()
        self.subscribe()

    def release(self) -> None:
        """Stop reading, and go back to the stored offsets, without leaving the group."""
        self.unclaimed.update(self.positions)
        if self.cooperative:
            self.consumer.incremental_unassign([TopicPartition(p.topic, p.number) for p in self.positions])
        else:
            self.consumer.assign([])
        self.positions.clear()

    def read_from(self, positions: Mapping[Partition, int]) -> None:
        """Read the claimed partitions from these offsets on."""
        self.unclaimed.difference_update(positions)
        self.positions.update(positions)
        starts = positions if self.cooperative else self.positions
        assign = self.consumer.incremental_assign if self.cooperative else self.consumer.assign
        assign([TopicPartition(p.topic, p.number, offset) for p, offset in starts.items()])

    def poll(self, max_messages: int, timeout_s: float) -> list[RawMessage]:
        """Return messages of partitions that are being read; serves the group even when there are none.

        Raises:
            PositionLost: see there.
            HoneError: the broker refused us for good.
        """
        messages: list[RawMessage] = []
        received = self.consumer.consume(max_messages, timeout_s)
        read: dict[tuple[str, int], Partition] = {partition: partition for partition in self.positions}
        for message in received:
            if error := message.error():
                self.told(error, message)
                continue
            # A plain tuple finds the named one; making that anew for each message would cost more than to look it up.
            partition = read.get((message.topic(), message.partition()))
            if partition is not None:
                body, timestamp_ms = message.value(), message.timestamp()[1]
                messages.append(RawMessage(partition, message.offset(), message.key(), body, timestamp_ms))
        return messages

    def watermarks(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that the broker has, and the one that the next message will get.

        Raises:
            Retryable: the broker does not answer.
        """
        try:
            low, high = self.consumer.get_watermark_offsets(
                TopicPartition(partition.topic, partition.number), timeout=BROKER_TIMEOUT_S
            )
        except KafkaException as error:
            raise Retryable(f"no watermarks of {partition.topic}/{partition.number}: {error.args[0].str()}") from None
        return low, high

    def num_behind(self, partition: Partition, next_offset: int) -> int | None:
        """Return how many messages wait, as far as the last fetch told; None before the first."""
        with suppress(KafkaException):
            low, high = self.consumer.get_watermark_offsets(
                TopicPartition(partition.topic, partition.number), cached=True
            )
            return max(0, high - max(low, next_offset)) if high >= 0 else None
        return None

    def cluster_id(self) -> str | None:
        """Return the cluster's own id, or None while no broker answers."""
        with suppress(KafkaException):
            cluster: str | None = self.consumer.list_topics(timeout=2.0).cluster_id
            return cluster
        return None

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Return the ids of the topics, new ones when a topic is created again; empty where the broker has no ids.

        The in-process broker names no controller and answers no such question; Kafka has ids since 2.8.

        Raises:
            Retryable: the broker does not answer.
        """
        try:
            cluster = self.consumer.list_topics(timeout=BROKER_TIMEOUT_S)
            if cluster.controller_id not in cluster.brokers:
                return {}
            names = TopicCollection(sorted(set(topics)))
            found = self.admin.describe_topics(names, request_timeout=BROKER_TIMEOUT_S)
            ids = {name: str(future.result().topic_id) for name, future in found.items()}
        except KafkaException as error:
            raise Retryable(f"no ids of topics: {error.args[0].str()}") from None
        return {name: topic_id for name, topic_id in ids.items() if topic_id != NO_TOPIC_ID}

    def hint(self, positions: Mapping[Partition, int]) -> None:
        """Tell Kafka where we stand, for tools that show lag; nothing depends on it."""
        offsets = [TopicPartition(p.topic, p.number, offset) for p, offset in positions.items()]
        try:
            self.consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            logger.debug("lag hint not sent: %s", error)

    def close(self) -> None:
        """Leave the group."""
        self.consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.num_rebalances += 1
        given = {Partition(p.topic, p.partition) for p in partitions}
        # Our own call, with nothing in it, keeps librdkafka from reading before the positions are known.
        if self.cooperative:
            self.unclaimed |= given
            consumer.incremental_assign([])
        else:
            self.positions.clear()
            self.unclaimed = given
            consumer.assign([])

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.num_rebalances += 1
        gone = {Partition(p.topic, p.partition): p for p in partitions}
        read = [p for partition, p in gone.items() if self.positions.pop(partition, None) is not None]
        self.unclaimed.difference_update(gone)
        if self.cooperative:
            consumer.incremental_unassign(read)

    def told(self, error: KafkaError, message: Message) -> None:
        """Take what the broker says instead of a message.

        Raises:
            PositionLost, HoneError: see `poll`.
        """
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise PositionLost(error.str())
        if error.code() not in PASSING:
            raise HoneError(f"Kafka refuses group {self.group} ({error.str()}): check topics, rights and address")
        logger.warning("kafka: %s", error.str())
