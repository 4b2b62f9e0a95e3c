"""Clients that write to Kafka, for apps whose chats do not go through the gateway.

    with KafkaClient("broker:9092", identity_key=…, token_keys=…) as hone:
        answer = hone.answered(messages, text, model="acme-3", user="ann", conversation="c1")
        hone.thumbs(1, answer=answer.id)      # from here, or from a browser through the gateway: the id is the same

They hold the gateway's keys and so belong on a server. Ids are minted here, before the first try.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from hone.client.acts import Acts, Answer, Call, Memory, Messages
from hone.client.records import Identity, Record, addressed
from hone.errors import InvalidEvent, Retryable
from hone.records import Feedback, Response

POLL_S = 0.1
Settle = Callable[[KafkaError | None], None]


class Undelivered(Retryable):
    """The broker did not acknowledge these records in time; they may have arrived all the same.

    Send them again with `resend`: they keep their ids, so that each counts once.
    """

    def __init__(self, records: tuple[Record, ...], why: str) -> None:
        super().__init__(f"{len(records)} records were not acknowledged ({why}): send them again with resend()")
        self.records = records
        self.why = why


class Pipe:
    """An idempotent producer with acks=all and a bounded queue, and the thread that serves its outcomes."""

    def __init__(self, bootstrap_servers: str, timeout_s: float, max_waiting: int, config: Mapping[str, Any]) -> None:
        self.timeout_s = timeout_s
        self.failed: list[Record] = []
        "Answers that nobody waits for, and that did not arrive."
        self.why = ""
        self.producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "delivery.timeout.ms": int(timeout_s * 1000),
                "request.timeout.ms": min(int(timeout_s * 1000), 30_000),
                "queue.buffering.max.messages": max_waiting,
                **config,
            }
        )
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.serve, name="hone-kafka", daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Hand outcomes on until the end."""
        while not self.closing.is_set():
            self.producer.poll(POLL_S)

    def put(self, record: Record, settle: Settle) -> None:
        """Queue a record; `settle` is called once, in the thread, with what became of it.

        Raises:
            Undelivered: the queue is full.
            InvalidEvent: the record is larger than Kafka takes.
        """
        topic, key, body = addressed(record)
        try:
            self.producer.produce(topic, body, key, on_delivery=lambda error, _message: settle(error))
        except BufferError:
            raise Undelivered((record,), "the queue is full") from None
        except KafkaException as error:
            raise refusal(record, error.args[0]) from None

    def put_unwatched(self, record: Record) -> None:
        """Queue a record whose failure is told by the next flush."""
        self.put(record, partial(self.note, record))

    def note(self, record: Record, error: KafkaError | None) -> None:
        """Keep a record that did not arrive."""
        if error is not None:
            self.failed.append(record)
            self.why = error.str()

    def flush(self, timeout_s: float | None) -> None:
        """Wait until everything queued is acknowledged.

        Raises:
            Undelivered: some of it was not; with the records that nobody else waits for.
        """
        left = self.producer.flush(self.timeout_s + 1 if timeout_s is None else timeout_s)
        lost, self.failed = tuple(self.failed), []
        if lost or left:
            raise Undelivered(lost, self.why if lost else f"{left} still wait")

    def close(self) -> None:
        """Flush, give up what is not acknowledged by then, and end the thread. Raises Undelivered."""
        try:
            self.producer.flush(self.timeout_s + 1)
            self.producer.purge()
            self.flush(1.0)
        finally:
            self.closing.set()
            self.thread.join()


@contextmanager
def together(earlier: BaseException | None) -> Iterator[None]:
    """Raise what did not arrive at the end together with what had not arrived before."""
    try:
        yield
    except Undelivered as error:
        if isinstance(earlier, Undelivered):
            raise Undelivered((*earlier.records, *error.records), error.why) from earlier
        raise


def settle(done: "Future[KafkaError | None]", error: KafkaError | None) -> None:
    """Tell who waits, if they still do."""
    if done.set_running_or_notify_cancel():
        done.set_result(error)


def refusal(record: Record, error: KafkaError) -> InvalidEvent | Undelivered:
    """Return what an error means: only a record that is too large can never arrive."""
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return InvalidEvent("too_large", f"Kafka does not take the record ({error.str()}): see message.max.bytes")
    return Undelivered((record,), error.str())


class _Desk:
    """What both clients share: records with ids, and the last answer of each conversation."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        identity_key: str,
        token_keys: str,
        timeout_s: float = 30.0,
        max_waiting: int = 10_000,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._identity = Identity.of(identity_key, token_keys)
        self._memory = Memory(None)
        self._pipe = Pipe(bootstrap_servers, timeout_s, max_waiting, config or {})

    def _answer(
        self,
        messages: Messages,
        completion: str,
        model: str,
        user: str | None,
        conversation: str | None,
        fields: Mapping[str, Any],
    ) -> tuple[Response, Answer]:
        record, token = self._identity.response(
            messages, completion, model=model, user=user, conversation=conversation, now=utc_now(), fields=fields
        )
        if conversation:
            self._memory.remember(conversation, token, user)
        return record, Answer(token, completion, record.finish_reason, msgspec.to_builtins(record))

    def _event(self, call: Call) -> Feedback:
        return self._identity.feedback(call.body, call.headers.get("X-User-Id"), utc_now())


class KafkaClient(_Desk, Acts[UUID]):
    """Blocking client; safe to share between threads, to be made after a fork.

    An act of feedback returns once every in-sync replica has it. An answer is queued, at most `max_waiting` of them:
    `flush` and `close` wait for all, and raise Undelivered with those that did not arrive.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with together(error):
            self.close()

    def answered(
        self,
        messages: Messages,
        completion: str,
        *,
        model: str,
        user: str | None = None,
        conversation: str | None = None,
        **fields: Any,
    ) -> Answer:
        """Log an answer that the app gave; `fields` are those of `hone.records.Response`, such as `latency_ms`.

        Raises:
            InvalidEvent: a field is wrong. Undelivered: the queue is full.
        """
        record, answer = self._answer(messages, completion, model, user, conversation, fields)
        self._pipe.put_unwatched(record)
        return answer

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything queued is acknowledged. Raises Undelivered."""
        self._pipe.flush(timeout_s)

    def close(self) -> None:
        """Flush and end. Raises Undelivered."""
        self._pipe.close()

    def resend(self, records: tuple[Record, ...]) -> None:
        """Send records of an Undelivered again and wait for them. Raises Undelivered."""
        for record in records:
            self._pipe.put_unwatched(record)
        self._pipe.flush(None)

    def _tell(self, call: Call) -> UUID:
        event = self._event(call)
        done: Future[KafkaError | None] = Future()
        self._pipe.put(event, partial(settle, done))
        error = done.result()
        if error is not None:
            raise refusal(event, error)
        return event.event_id


class AsyncKafkaClient(_Desk, Acts[Awaitable[UUID]]):
    """The same for asyncio; `answered` only queues and needs no await."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with together(error):
            await self.close()

    def answered(
        self,
        messages: Messages,
        completion: str,
        *,
        model: str,
        user: str | None = None,
        conversation: str | None = None,
        **fields: Any,
    ) -> Answer:
        """See `KafkaClient.answered`."""
        record, answer = self._answer(messages, completion, model, user, conversation, fields)
        self._pipe.put_unwatched(record)
        return answer

    async def flush(self, timeout_s: float | None = None) -> None:
        """See `KafkaClient.flush`."""
        await asyncio.to_thread(self._pipe.flush, timeout_s)

    async def close(self) -> None:
        """See `KafkaClient.close`."""
        await asyncio.to_thread(self._pipe.close)

    async def resend(self, records: tuple[Record, ...]) -> None:
        """See `KafkaClient.resend`."""
        for record in records:
            self._pipe.put_unwatched(record)
        await self.flush()

    def _tell(self, call: Call) -> Awaitable[UUID]:
        event = self._event(call)
        done: Future[KafkaError | None] = Future()
        self._pipe.put(event, partial(settle, done))

        async def told() -> UUID:
            error = await asyncio.wrap_future(done)
            if error is not None:
                raise refusal(event, error)
            return event.event_id

        return told()


def utc_now() -> datetime:
    """Return the time; the clients' only clock."""
    return datetime.now(UTC)
