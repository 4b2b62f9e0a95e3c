"""Records to Kafka from an event loop: a future for each, done once every in-sync replica has the record."""

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from hone.errors import HoneError, InvalidEvent, Retryable

logger = logging.getLogger(__name__)

Done = Callable[[HoneError | None], None]
LINGER_MS = 3
HEALTH_TTL_S = 2.0


class Publisher:
    """An idempotent producer with acks=all. Make it inside the event loop that uses it."""

    def __init__(self, bootstrap_servers: str, *, timeout_s: float, extra: Mapping[str, Any] | None = None) -> None:
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": LINGER_MS,
            "delivery.timeout.ms": int(timeout_s * 1000),
            "request.timeout.ms": min(int(timeout_s * 1000), 30_000),
            "queue.buffering.max.messages": 100_000,
            "socket.connection.setup.timeout.ms": 2000,
            "reconnect.backoff.max.ms": 2000,
            "error_cb": self._on_error,
            "log_level": 0,
            **(extra or {}),
        }
        self._loop = asyncio.get_running_loop()
        self._broken, self._woken = False, False
        self._outcomes: deque[tuple[Done, KafkaError | None]] = deque()
        self._producer = Producer(self._config)
        self._closing = threading.Event()
        self._healthy, self._checked_at = False, -HEALTH_TTL_S
        self._thread = threading.Thread(target=self._poll, name="kafka-delivery", daemon=True)
        self._thread.start()

    def send(self, topic: str, key: bytes, value: bytes) -> "asyncio.Future[None]":
        """Queue a record; the future ends when the broker has it, or with the error that `post` tells; raises as it."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.post(topic, key, value, functools.partial(_settle, future))
        return future

    def post(self, topic: str, key: bytes, value: bytes, done: Done) -> None:
        """Queue a record; `done` is called in the event loop when the broker has it (None), or does not take it.

        Raises:
            Retryable: the queue is full. `done` gets it too when the broker did not answer in time; the record may then
                still have arrived.
            InvalidEvent: the record is larger than the broker takes; it never will be.
        """
        if self._broken:
            self._renew()
        try:
            self._producer.produce(topic, value, key, on_delivery=functools.partial(self._delivered, done))
        except BufferError:
            raise Retryable("the queue to Kafka is full: try again in a few seconds") from None
        except KafkaException as error:
            raise as_error(error.args[0]) from None

    async def is_healthy(self) -> bool:
        """Say whether a broker answered within the last two seconds."""
        if time.monotonic() - self._checked_at > HEALTH_TTL_S:
            self._healthy = await asyncio.to_thread(self._ask_broker)
            self._checked_at = time.monotonic()
        return self._healthy

    async def flush(self, timeout_s: float) -> None:
        """Wait for what is queued; the futures of records that did not make it in time raise."""
        await asyncio.to_thread(self._producer.flush, timeout_s)
        self._producer.purge()
        await asyncio.to_thread(self._producer.flush, 1.0)

    async def close(self) -> None:
        """End the delivery thread; nothing can be sent afterwards."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._producer.close, 1.0)

    def _ask_broker(self) -> bool:
        try:
            return bool(self._producer.list_topics(timeout=1.5).brokers)
        except KafkaException:
            return False

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.1)
        self._producer.poll(0)

    def _delivered(self, done: Done, error: KafkaError | None, _: Message) -> None:
        """Hand the outcome to the event loop, which is woken once for all that are ready."""
        self._outcomes.append((done, error))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        self._woken = False  # before the first look: what is appended after the last one wakes the loop again
        try:
            while self._outcomes:
                done, error = self._outcomes.popleft()
                done(None if error is None else as_error(error))
        finally:  # a fault in one of them is the loop's to report, and keeps nothing from the others
            if self._outcomes:
                self._loop.call_soon(self._resolve)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._broken = True
            logger.error("the Kafka producer broke and is replaced: %s", error.str())
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            logger.warning("no Kafka broker answers: feedback is refused, answers wait on disk")

    def _renew(self) -> None:
        """Replace a producer that met a fatal error; what it still held fails over to its callers."""
        old, self._producer, self._broken = self._producer, Producer(self._config), False
        old.purge()
        old.poll(0)


def _settle(future: "asyncio.Future[None]", error: HoneError | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def as_error(error: KafkaError) -> HoneError:
    """Return what a refusal means: only a record that is too large can never succeed."""
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return InvalidEvent("too_large", f"Kafka does not take the record ({error.str()}): see message.max.bytes")
    return Retryable(f"Kafka did not take the record ({error.str()}): try again")
