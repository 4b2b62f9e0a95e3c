"""The client that writes to Kafka: records as the gateway makes them, confirmed, bounded, each counted once."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from hone import ids
from hone.client import AsyncKafkaClient, KafkaClient, Undelivered
from hone.errors import ConfigError, InvalidEvent, MalformedToken, RejectedToken
from hone.local.broker import Broker, create_topics
from hone.local.mock_kafka import MockCluster
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, FeedbackKind, Message, Response
from hone.store.tables import FeedbackEventRow, ResponseRow
from hone.tokens import parse_keys
from ingest.decode import decode
from tests.support.events import uid
from tests.support.gateway import IDENTITY_KEY, TOKEN_KEYS
from tests.support.ingest_process import Program, count, hone, wait_for

KEYS = {"identity_key": IDENTITY_KEY, "token_keys": TOKEN_KEYS}
KEY = bytes.fromhex(IDENTITY_KEY)
HI = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
NOWHERE = "127.0.0.1:9"


@pytest.fixture
def broker() -> Iterator[str]:
    cluster = MockCluster({RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1})
    yield cluster.bootstrap_servers
    cluster.close()


def sent(broker: str, topic: str) -> list[Any]:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    messages = consumer.consume(100, 1.0)
    consumer.close()
    return [decode(topic, message.value()) for message in messages]


def test_an_answer_is_logged_as_the_gateway_would_and_its_id_is_a_token_of_the_gateway(broker: str) -> None:
    with KafkaClient(broker, **KEYS) as hone:
        answer = hone.answered(HI, "Hello", model="acme-3", user="ann", conversation="c1", latency_ms=12.0)
    (record,) = sent(broker, RESPONSES_TOPIC)
    assert isinstance(record, Response)
    conversation = ids.conversation_id(KEY, ids.NOBODY, (), "c1")
    assert (record.user_id, record.conversation_id) == (ids.user_id(KEY, "ann"), conversation)
    assert record.turn_id == ids.turn_id(KEY, conversation, (Message("user", "Hi"),))
    assert (record.completion, record.model_version, record.latency_ms) == ("Hello", "acme-3", 12.0)
    claims = parse_keys(TOKEN_KEYS).verify(answer.id, datetime.now(UTC), ids.user_id(KEY, "ann"))
    assert (claims.response_id, claims.turn_id) == (record.response_id, record.turn_id)


def test_every_act_is_confirmed_under_the_id_that_was_minted_here(broker: str) -> None:
    with KafkaClient(broker, **KEYS) as hone:
        one = hone.answered(HI, "Hello", model="m", user="ann", conversation="c1")
        two = hone.answered(HI, "Hi there", model="m", user="ann", conversation="c1")
        told = [
            hone.thumbs(-1, answer=one.id, reasons=["too long"]),
            hone.edit("Hello!", answer=one.id),
            hone.regenerate(answer=one.id, shown=0.5),
            hone.choice(two.id, [one.id]),
            hone.comment("fine", conversation="c1"),
            hone.signal("copied", answer=two.id),
            hone.outcome("resolved", 1, user="ann"),
        ]
    events = {event.event_id: event for event in sent(broker, FEEDBACK_TOPIC)}
    assert list(events) == told, "each is on the broker when its call returns, in order"
    assert [event_id.version for event_id in told] == [7] * 7
    kinds = [events[event_id].kind for event_id in told]
    assert kinds == [*list(FeedbackKind)[:4], FeedbackKind.COMMENT, FeedbackKind.SIGNAL, FeedbackKind.OUTCOME]
    assert {event.user_id for event in events.values()} == {ids.user_id(KEY, "ann")}
    assert events[told[3]].rejected == (events[told[0]].response_id,)
    assert all(event.signed for event in events.values())


def test_mistakes_are_named_before_anything_is_sent(broker: str) -> None:
    with KafkaClient(broker, **KEYS) as hone:
        answer = hone.answered(HI, "Hello", model="m", user="ann", conversation="c1")
        elsewhere = hone.answered(HI, "Hello", model="m", user="ann", conversation="c2")
        for act, error in (
            (lambda: hone.thumbs(2, answer=answer.id), InvalidEvent),
            (lambda: hone.thumbs(1, answer="chatcmpl-abc"), MalformedToken),
            (lambda: hone.thumbs(1, answer=answer.id[:-2] + "AA"), RejectedToken),
            (lambda: hone.thumbs(1), MalformedToken),
            (lambda: hone.choice(answer.id, [elsewhere.id]), InvalidEvent),
            (lambda: hone.edit("a\0b", answer=answer.id), InvalidEvent),
            (lambda: hone.signal("x" * 200, answer=answer.id), InvalidEvent),
            (lambda: hone.answered(HI, "Hello", model="m", colour="red"), InvalidEvent),
            (lambda: hone.answered([{"content": "Hi"}], "Hello", model="m"), InvalidEvent),
        ):
            with pytest.raises(error):
                act()  # type: ignore[no-untyped-call]
    assert sent(broker, FEEDBACK_TOPIC) == []
    with pytest.raises(ConfigError, match="HONE_IDENTITY_KEY"):
        KafkaClient(broker, identity_key="ab", token_keys=TOKEN_KEYS)


def test_what_the_broker_did_not_confirm_is_handed_back_and_counts_once_when_sent_again(broker: str) -> None:
    away = KafkaClient(NOWHERE, timeout_s=0.5, config={"log_level": 0}, **KEYS)
    answer = away.answered(HI, "Hello", model="m", user="ann")
    with pytest.raises(Undelivered) as caught:
        away.thumbs(1, answer=answer.id)
    (event,) = caught.value.records
    assert isinstance(event, Feedback)
    with pytest.raises(Undelivered) as lost:
        away.close()
    assert [record.response_id for record in lost.value.records] == [event.response_id]
    with KafkaClient(broker, **KEYS) as back:
        back.resend((*lost.value.records, event))
    assert [record.event_id for record in sent(broker, FEEDBACK_TOPIC)] == [event.event_id]
    assert [record.response_id for record in sent(broker, RESPONSES_TOPIC)] == [event.response_id]


def answer_and_judge(client: KafkaClient) -> None:
    with client as away:
        answer = away.answered(HI, "Hello", model="m", user="ann")
        away.thumbs(1, answer=answer.id)


def test_leaving_the_client_hands_back_the_act_and_the_answers_together() -> None:
    with pytest.raises(Undelivered) as lost:
        answer_and_judge(KafkaClient(NOWHERE, timeout_s=0.5, config={"log_level": 0}, **KEYS))
    assert [type(record) for record in lost.value.records] == [Feedback, Response]


def test_an_answer_counts_as_ended_by_the_model_unless_it_is_said_otherwise(broker: str) -> None:
    with KafkaClient(broker, **KEYS) as client:
        client.answered(HI, "Hello", model="m")
        client.answered(HI, "Hel", model="m", finish_reason="length")
    assert [record.finish_reason for record in sent(broker, RESPONSES_TOPIC)] == ["stop", "length"]


def test_the_queue_is_bounded() -> None:
    away = KafkaClient(NOWHERE, timeout_s=0.5, max_waiting=3, config={"log_level": 0}, **KEYS)
    for _ in range(3):
        away.answered(HI, "Hello", model="m")
    with pytest.raises(Undelivered, match="the queue is full"):
        away.answered(HI, "Hello", model="m")
    with pytest.raises(Undelivered, match="3 records"):
        away.close()


def test_the_asynchronous_client_confirms_many_at_once_and_survives_a_caller_that_left(broker: str) -> None:
    async def main() -> list[UUID]:
        async with AsyncKafkaClient(broker, **KEYS) as hone:
            answer = hone.answered(HI, "Hello", model="m", user="ann")
            left = asyncio.ensure_future(hone.thumbs(0, answer=answer.id))
            await asyncio.sleep(0)
            left.cancel()
            return list(await asyncio.gather(*(hone.thumbs(1, answer=answer.id) for _ in range(50))))

    told = asyncio.run(main())
    stored = [event.event_id for event in sent(broker, FEEDBACK_TOPIC) if event.value == 1]
    assert sorted(stored) == sorted(told)


def test_the_client_needs_nothing_but_the_bare_wheel(tmp_path: Path) -> None:
    missing = ("psutil", "aiohttp", "starlette", "uvicorn", "fastavro", "httpx2", "ingest", "serving")
    code = f"import sys; sys.modules.update({{n: None for n in {missing!r}}}); from hone.client import KafkaClient"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


@pytest.mark.kafka
@pytest.mark.slow
def test_on_a_real_broker_what_the_client_confirmed_is_stored_by_ingest_and_by_a_backfill_once(
    kafka_bootstrap: str, store_url: str, sessions: sessionmaker[Session]
) -> None:
    create_topics(Broker(kafka_bootstrap, "kafka", "", True, ""), {RESPONSES_TOPIC: 1, FEEDBACK_TOPIC: 1})
    with KafkaClient(kafka_bootstrap, **KEYS) as client:
        answers = [client.answered(HI, f"Hello {n}", model="m", user="ann", conversation=f"k{n}") for n in range(300)]
        told = {client.thumbs(1, answer=answer.id) for answer in answers[:100]}
    env = {"HONE_DATABASE_URL": store_url, "HONE_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    program = Program("events", env)
    try:
        wait_for(lambda: count(sessions, FeedbackEventRow) >= 100 and count(sessions, ResponseRow) >= 300, 60)
    finally:
        program.end()
    before = stored(sessions)
    assert told <= before
    for topic in (RESPONSES_TOPIC, FEEDBACK_TOPIC):
        again = hone("backfill", "--topic", topic, env=env)
        assert again.returncode == 0, again.stderr
        assert ": 0 new" in again.stdout
    assert stored(sessions) == before


def stored(sessions: sessionmaker[Session]) -> set[UUID]:
    with sessions() as session:
        return set(session.scalars(select(FeedbackEventRow.event_id)))


@pytest.mark.kafka
@pytest.mark.slow
def test_a_topic_is_read_to_its_end_though_that_end_is_no_message(
    kafka_bootstrap: str, store_url: str, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    create_topics(Broker(kafka_bootstrap, "kafka", "", True, ""), {"acme.old": 2})
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "transactional.id": "t"})
    producer.init_transactions()
    producer.begin_transaction()
    for n in range(100):
        body = {"on": str(uid("a")), "at": "2026-01-05T12:00:00Z", "id": f"o-{n}"}
        producer.produce("acme.old", msgspec.json.encode(body), str(n))
    producer.commit_transaction()  # its marker is the last offset, and no consumer ever sees it
    path = tmp_path / "streams.toml"
    path.write_text(
        '[streams.old]\ntopic = "acme.old"\nrecord = "feedback"\n[streams.old.fields]\nevent_id = "id"\n'
        'response_id = "on"\noccurred_at = "at"\nkind = { const = "thumbs" }\nvalue = { const = 1 }\n'
    )
    env = {
        "HONE_DATABASE_URL": store_url,
        "HONE_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "HONE_IDENTITY_KEY": IDENTITY_KEY,
    }
    for new in (100, 0):
        shown = hone("backfill", "--topic", "acme.old", "--mapping", str(path), env=env)
        assert (shown.returncode, f": {new} new" in shown.stdout) == (0, True), shown.stderr
        assert count(sessions, FeedbackEventRow) == 100
    unmapped = hone("backfill", "--topic", "acme.chat.other", env=env)
    assert "no stream reads acme.chat.other" in unmapped.stderr
