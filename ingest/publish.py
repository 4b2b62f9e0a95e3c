"""A producer that knows whether the broker took a message."""

from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from hone.errors import HoneError, Retryable

DELIVERY_TIMEOUT_S = 5.0


class Outgoing(NamedTuple):
    """One message to send."""

    topic: str
    key: bytes | None
    body: bytes | None
    headers: dict[str, str]


class Publisher:
    """Sends messages one batch at a time."""

    def __init__(self, bootstrap_servers: str) -> None:
        timeout_ms = int(DELIVERY_TIMEOUT_S * 1000)
        self.producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": timeout_ms,
                "linger.ms": 0,
                "log_level": 0,  # what goes wrong is raised by `send`
            }
        )

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Return once the broker acknowledged all messages.

        Raises:
            Retryable: it did not take at least one of them; others may have arrived.
            HoneError: a message can never be sent.
        """
        errors: list[str] = []
        num_done = 0

        def done(error: KafkaError | None, message: Message) -> None:
            nonlocal num_done
            num_done += 1
            if error is not None:
                errors.append(error.str())

        for message in messages:
            try:
                self.producer.produce(
                    message.topic, message.body, message.key, headers=message.headers or None, on_delivery=done
                )
            except KafkaException as error:
                raise HoneError(f"{message.topic}: a message cannot be sent ({error.args[0].str()})") from None
        self.producer.flush(DELIVERY_TIMEOUT_S + 1)
        if errors or num_done < len(messages):
            why = errors[0] if errors else f"no answer within {DELIVERY_TIMEOUT_S:g} s"
            raise Retryable(f"{messages[0].topic}: the broker did not take {len(messages)} messages ({why})")
