"""Refused messages: listed, repaired, sent back, and then stored exactly once."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, HoneError, NotEnoughData, Retryable
from hone.local.mock_kafka import MockCluster
from hone.records import FEEDBACK_TOPIC, Feedback
from hone.store.dead_letters import (
    DeadLetter,
    add_dead_letters,
    count_dead_letters,
    list_dead_letters,
    take_unpublished,
)
from hone.store.offsets import Group, Partition, claim_partitions
from hone.store.tables import DeadLetterRow, FeedbackEventRow
from ingest.batch import RawMessage, sort_messages, store_batch
from ingest.pair_worker import copy_of
from ingest.publish import Outgoing, Publisher
from ingest.replay import replay
from tests.support.events import encode, feedback, uid
from tests.support.streams import book, feedback_stream

Sessions = sessionmaker[Session]
NOW = datetime(2026, 1, 6, tzinfo=UTC)
GOOD = encode(feedback("thumbs", "a", value=1))
BROKEN = GOOD.replace(b'"value":1', b'"value":11')


@pytest.fixture
def broker() -> Iterator[str]:
    cluster = MockCluster({FEEDBACK_TOPIC: 1})
    yield cluster.bootstrap_servers
    cluster.close()


def letter(offset: int = 0, body: bytes | None = BROKEN, reason: str = "bad_value") -> DeadLetter:
    return DeadLetter(
        incarnation="i",
        topic=FEEDBACK_TOPIC,
        partition=0,
        offset=offset,
        key=b"k",
        body=body,
        reason=reason,
        detail="why",
    )


def add(sessions: Sessions, *letters: DeadLetter) -> list[int]:
    with sessions.begin() as session:
        add_dead_letters(session, letters)
        return [row.dead_letter_id for row in reversed(list_dead_letters(session))]


def run(
    sessions: Sessions, broker: str, number: int, fixed: Path | None = None, *, dry_run: bool = False, streams: str = ""
) -> str:
    shown: list[str] = []
    publisher, mappings = Publisher(broker), book(streams or "[streams]")
    replay(sessions, publisher, number, book=mappings, fixed=fixed, dry_run=dry_run, now=NOW, show=shown.append)
    return "\n".join(shown)


def sent(broker: str) -> list[tuple[bytes, bytes]]:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test"})
    consumer.assign([TopicPartition(FEEDBACK_TOPIC, 0, 0)])
    messages = consumer.consume(10, 1.0)
    consumer.close()
    return [(message.key(), message.value()) for message in messages]


def replayed_at(sessions: Sessions) -> list[datetime | None]:
    with sessions() as session:
        return [row.replayed_at for row in list_dead_letters(session)]


def test_a_repaired_message_is_shown_as_a_diff_sent_once_and_noted(
    sessions: Sessions, broker: str, tmp_path: Path
) -> None:
    (number,) = add(sessions, letter())
    fixed = tmp_path / "fixed.json"
    fixed.write_bytes(GOOD + b"\n")
    shown = run(sessions, broker, number, fixed)
    assert '-  "value": 11' in shown
    assert '+  "value": 1' in shown
    assert sent(broker) == [(b"k", GOOD)]
    assert replayed_at(sessions) == [NOW]


def test_a_dry_run_shows_the_same_and_sends_nothing(sessions: Sessions, broker: str, tmp_path: Path) -> None:
    (number,) = add(sessions, letter())
    fixed = tmp_path / "fixed.json"
    fixed.write_bytes(GOOD)
    assert '+  "value": 1' in run(sessions, broker, number, fixed, dry_run=True)
    assert (sent(broker), replayed_at(sessions)) == ([], [None])


def test_a_message_that_would_come_back_is_not_sent(sessions: Sessions, broker: str) -> None:
    (number,) = add(sessions, letter())
    with pytest.raises(HoneError, match=r"would become one again \(bad_value"):
        run(sessions, broker, number)
    assert (sent(broker), replayed_at(sessions)) == ([], [None])


def test_replaying_the_same_message_twice_stores_one_row(sessions: Sessions, broker: str) -> None:
    (number,) = add(sessions, letter(body=GOOD, reason="database"))
    run(sessions, broker, number)
    run(sessions, broker, number)
    partition, group = Partition(FEEDBACK_TOPIC, 0), Group("g", "i")
    raw = [RawMessage(partition, offset, key, body, 0) for offset, (key, body) in enumerate(sent(broker))]
    assert len(raw) == 2
    with sessions.begin() as session:
        claims = claim_partitions(session, group, "test", {partition: 0})
        store_batch(session, group, sort_messages(raw, claims))
        assert session.scalar(select(func.count()).select_from(FeedbackEventRow)) == 1


def test_a_message_of_another_shape_is_mapped_again_and_its_record_goes_to_hones_topic(
    sessions: Sessions, broker: str
) -> None:
    body = f'{{"on": "{uid("a")}", "at": "2026-01-05T12:00:00Z", "vote": "great"}}'.encode()
    (number,) = add(sessions, replace(letter(body=body, reason="unmapped"), topic="t"))
    with pytest.raises(HoneError, match="or correct the mapping"):
        run(sessions, broker, number, streams=feedback_stream('value = { path = "vote", map = { good = 1 } }'))
    run(sessions, broker, number, streams=feedback_stream('value = { path = "vote", map = { great = 1 } }'))
    ((_, sent_body),) = sent(broker)
    event = msgspec.json.decode(sent_body, type=Feedback)
    assert (event.response_id, event.value) == (uid("a"), 1)
    assert replayed_at(sessions) == [NOW]


def test_a_message_that_no_mapping_reads_any_more_is_named(sessions: Sessions, broker: str) -> None:
    (number,) = add(sessions, replace(letter(), topic="t"))
    with pytest.raises(ConfigError, match=r"no stream reads t: .*give --mapping FILE"):
        run(sessions, broker, number)


@pytest.mark.parametrize(
    ("life", "commands"),
    [
        ("hone", ["backfill 'old votes.jsonl'"]),
        (
            "votes",
            [
                "backfill 'old votes.jsonl' --stream votes --mapping FILE --again",
                "backfill 'old votes.jsonl' --stream votes --mapping FILE",
            ],
        ),
    ],
)
def test_a_letter_of_a_file_names_the_commands_that_settle_it(
    sessions: Sessions, broker: str, life: str, commands: list[str]
) -> None:
    of_file = replace(letter(), topic="file:old votes.jsonl", incarnation=f"{life}:sha256:00#1")
    (number,) = add(sessions, of_file)
    with pytest.raises(ConfigError) as caught:
        run(sessions, broker, number)
    dismiss = "dead-letters dismiss --topic 'file:old votes.jsonl' --reason corrected --yes"
    assert re.findall("`hone ([^`]+)`", str(caught.value)) == [*commands, dismiss]


def test_a_missing_letter_and_a_missing_file_are_named(sessions: Sessions, broker: str, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match="no dead letter 77"):
        run(sessions, broker, 77)
    (number,) = add(sessions, letter())
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere"):
        run(sessions, broker, number, tmp_path / "nowhere")


def test_a_broker_that_is_away_leaves_the_letter_unreplayed(sessions: Sessions) -> None:
    (number,) = add(sessions, letter(body=GOOD, reason="database"))
    with pytest.raises(Retryable, match="did not take 1 messages"):
        run(sessions, "127.0.0.1:1", number)
    assert replayed_at(sessions) == [None]


def test_the_same_coordinates_make_one_letter(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert add_dead_letters(session, [letter(0), letter(1, b"\x00\xff", "not_json")]) == 2
        assert add_dead_letters(session, [letter(1), letter(2)]) == 1
        assert count_dead_letters(session) == {"bad_value": 2, "not_json": 1}
        assert [row.body for row in list_dead_letters(session, reason="not_json")] == [b"\x00\xff"]


def test_each_letter_is_given_to_one_feeder_of_the_topic(sessions: Sessions) -> None:
    add(sessions, *(letter(n) for n in range(5)))
    with sessions() as one, sessions() as other:
        first = [row.offset for row in take_unpublished(one, NOW, 3)]
        second = [row.offset for row in take_unpublished(other, NOW, 3)]
        other.rollback()
        one.commit()
    assert (first, second) == ([0, 1, 2], [3, 4])
    with sessions.begin() as session:
        assert [row.offset for row in take_unpublished(session, NOW)] == [3, 4], "a feeder that failed gives them back"


def test_a_publisher_says_so_when_a_message_is_too_large(broker: str) -> None:
    with pytest.raises(HoneError, match=r"cannot be sent .*too large"):
        Publisher(broker).send([Outgoing(FEEDBACK_TOPIC, None, b"x" * 2_000_000, {})])


def test_a_huge_letter_is_announced_without_its_body() -> None:
    row = DeadLetterRow(dead_letter_id=7, topic="t", partition=0, offset=3, reason="too_large", body=b"x" * 1_000_000)
    copy = copy_of(row)
    assert (copy.body, copy.headers["origin"], copy.headers["body_bytes"]) == (None, "t/0/3", "1000000")
