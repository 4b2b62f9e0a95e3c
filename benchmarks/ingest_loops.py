"""The loops that are compared: ours from the product's own parts, others as people write them, and the floors."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from io import BytesIO
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import Consumer
from psycopg2.extras import execute_values
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.ingest_world import NUM_PARTITIONS, SHORT_BOTH, SHORT_FEEDBACK, Cost, Meter, World, until
from hone.health import Pulse
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback
from hone.store.copy_text import FORMAT, copy_lines, csv_lines, uuid_array
from hone.store.dead_letters import add_dead_letters
from hone.store.erasure import Forgotten
from hone.store.events import FEEDBACK_COLUMNS, LOOK, Stored, append_new, feedback_row
from hone.store.offsets import Group, advance
from hone.store.tables import DirtyTurnRow, FeedbackEventRow, FeedbackStateRow, ResponseRow
from ingest import consumer
from ingest.batch import Batch, Outcome, dead_letter, sort_messages
from ingest.breaker import Breaker
from ingest.source import Source, consumer_config

Sessions = sessionmaker[Session]
ROWS = 2000
NULL = "\\N"
POLL_S = 0.2


def program(servers: World, sessions: Sessions, topics: Sequence[str]) -> consumer.Ingest:
    """Return the product's ingest as a member of a new group, with its partitions given but not yet claimed."""
    group = Group(f"bench-{uuid4().hex[:8]}", servers.broker.incarnation)
    ingest = consumer.Ingest(
        source=Source(servers.broker.bootstrap_servers, group.name, topics),
        sessions=sessions,
        group=group,
        owner="benchmark",
        max_rows=ROWS,
        poll_timeout_s=POLL_S,
        on_retention_gap="stop",
        breaker=Breaker(0.5),
        pulse=Pulse(),
    )
    until(lambda: len(ingest.source.unclaimed), NUM_PARTITIONS * len(topics), lambda: ingest.source.poll(1, 0.1))
    return ingest


def next_offsets(ingest: consumer.Ingest) -> int:
    """Return how many messages were stored; the partitions begin at 0."""
    return sum(claim.next_offset for claim in ingest.claims.values())


def full_loop(servers: World, sessions: Sessions, events: int) -> Cost:
    """Run the product's own loop over both topics: events, states, answers, dirty turns, offsets."""
    ingest = program(servers, sessions, [FEEDBACK_TOPIC, RESPONSES_TOPIC])
    meter = Meter(sessions)
    until(lambda: next_offsets(ingest), events, lambda: consumer.turn(ingest))
    cost = meter.stop(events)
    ingest.source.close()
    return cost


def append_loop(servers: World, sessions: Sessions, events: int) -> Cost:
    """Run the product's loop on the feedback topic, but only its append path: events, offsets, dead letters."""
    ingest = program(servers, sessions, [FEEDBACK_TOPIC])
    meter = Meter(sessions)
    consumer.claim(ingest)
    until(lambda: next_offsets(ingest), events, lambda: append_turn(ingest))
    cost = meter.stop(events)
    ingest.source.close()
    return cost


def append_turn(ingest: consumer.Ingest) -> None:
    """Store one batch as `ingest.consumer.turn` does, without states and dirty turns."""
    messages = ingest.source.poll(ingest.max_rows, ingest.poll_timeout_s)
    batch = sort_messages(messages, ingest.claims)
    if not batch.steps:
        return
    ingest.breaker.check(batch.num_messages, len(batch.bad))
    with ingest.sessions.begin() as session:
        outcome = append_batch(session, ingest.group, batch, ingest.forgotten)
    ingest.breaker.count(batch.num_messages, len(batch.bad))
    moved = {partition: step.next_offset for partition, step in batch.steps.items()}
    ingest.claims.update({p: ingest.claims[p]._replace(next_offset=offset) for p, offset in moved.items()})
    ingest.source.positions.update(moved)
    ingest.source.hint(moved)
    consumer.report(ingest, batch, outcome)


def append_batch(session: Session, group: Group, batch: Batch, forgotten: Forgotten) -> Outcome:
    """Write offsets, events and dead letters."""
    advance(session, group, batch.steps)
    with session.begin_nested():
        records = [item.record for item in batch.good if isinstance(item.record, Feedback)]
        _, events = append_new(session, [], records, forgotten)
    add_dead_letters(session, [dead_letter(group, message, error) for message, error in batch.bad])
    return Outcome([Stored(Counter(event.kind for event in events), [])], list(batch.bad))


def join(servers: World, topic: str) -> tuple[Consumer, Callable[[], None]]:
    """Return a member of a new group, and what makes it read its partitions from the beginning."""
    config = consumer_config(servers.broker.bootstrap_servers, f"bench-{uuid4().hex[:8]}")
    client = Consumer({**config, "auto.offset.reset": "earliest", "enable.auto.offset.store": True})
    assigned: list[object] = []

    def hold(member: Consumer, partitions: list[Any]) -> None:
        assigned.extend(partitions)
        member.assign([])

    client.subscribe([topic], on_assign=hold)
    until(lambda: len(assigned), NUM_PARTITIONS, lambda: client.poll(0.1))
    return client, lambda: client.assign(assigned)


def naive_loop(servers: World, sessions: Sessions, events: int, *, full: bool = False) -> Cost:
    """Poll, json, ORM, commit, synchronous offset commit: each message by itself."""
    client, begin = join(servers, SHORT_BOTH if full else SHORT_FEEDBACK)
    meter = Meter(sessions)
    begin()
    num = 0
    while num < events:
        message = client.poll(1.0)
        if message is None or message.error():
            continue
        fields = json.loads(message.value())
        with sessions.begin() as session:
            (store_naively if full else add_event)(session, fields)
        client.commit(message=message, asynchronous=False)
        num += 1
    cost = meter.stop(events)
    client.close()
    return cost


UUIDS = ("event_id", "response_id", "conversation_id", "turn_id", "user_id")
TIMES = ("occurred_at", "received_at", "created_at")


def typed(fields: dict[str, Any]) -> dict[str, Any]:
    """Return JSON fields as the types of the columns."""
    found = {name: value for name, value in fields.items() if name != "schema_version"}
    found |= {name: UUID(found[name]) for name in UUIDS if found.get(name)}
    return found | {name: datetime.fromisoformat(found[name]) for name in TIMES if name in found}


def add_event(session: Session, fields: dict[str, Any]) -> None:
    """Insert one event."""
    session.add(FeedbackEventRow(**typed(fields)))


def store_naively(session: Session, fields: dict[str, Any]) -> None:
    """Insert one event or answer, bring the state to the last word, and mark the turn."""
    if "event_id" not in fields:
        session.add(ResponseRow(**typed(fields)))
        mark_naively(session, UUID(fields["turn_id"]))
        return
    event = typed(fields)
    session.add(FeedbackEventRow(**event))
    key = (event["response_id"], event["kind"], event["user_id"])
    state = session.get(FeedbackStateRow, key)
    kept = ("turn_id", "value", "text", "rejected", "reasons", "occurred_at", "event_id", "signed")
    values = {name: event.get(name) for name in kept}
    if state is None:
        session.add(FeedbackStateRow(subject_id=key[0], slot=key[1], user_id=key[2], **values))
    elif (event["occurred_at"], event["event_id"]) > (state.occurred_at, state.event_id):
        for name, value in values.items():
            setattr(state, name, value)
    if event["kind"] != "comment":
        mark_naively(session, event["response_id"])


def mark_naively(session: Session, turn: UUID) -> None:
    """Mark a turn that is not marked."""
    if session.get(DirtyTurnRow, turn) is None:
        session.add(DirtyTurnRow(turn_id=turn))


def pages_loop(servers: World, sessions: Sessions, events: int) -> Cost:
    """Consume 1000, json, one `execute_values`, commit, synchronous offset commit: what careful people write."""
    client, begin = join(servers, FEEDBACK_TOPIC)
    meter = Meter(sessions)
    begin()
    num = 0
    while num < events:
        messages = [message for message in client.consume(1000, POLL_S) if not message.error()]
        if not messages:
            continue
        rows = [page_row(json.loads(message.value())) for message in messages]
        with sessions.begin() as session:
            insert_page(session, rows)
        client.commit(asynchronous=False)
        num += len(rows)
    cost = meter.stop(events)
    client.close()
    return cost


def page_row(fields: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values of one event for psycopg2."""
    return tuple(fields.get(name) for name in FEEDBACK_COLUMNS)


def insert_page(session: Session, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert the rows that are new."""
    connection: Any = session.connection().connection.driver_connection
    casts = {"event_id": "::uuid", "rejected": "::uuid[]", "reasons": "::text[]"}
    casts |= dict.fromkeys(("response_id", "conversation_id", "turn_id", "user_id"), "::uuid")
    casts |= dict.fromkeys(("occurred_at", "received_at"), "::timestamptz")
    template = "(" + ", ".join("%s" + casts.get(name, "") for name in FEEDBACK_COLUMNS) + ")"
    statement = f"INSERT INTO feedback_event ({', '.join(FEEDBACK_COLUMNS)}) VALUES %s ON CONFLICT DO NOTHING"
    with connection.cursor() as cursor:
        execute_values(cursor, statement, rows, template=template, page_size=1000)


def consume_floor(servers: World, events: int) -> Cost:
    """Only take the messages from librdkafka."""
    client, begin = join(servers, FEEDBACK_TOPIC)
    meter = Meter()
    begin()
    num = 0
    while num < events:
        num += len([message.value() for message in client.consume(ROWS, POLL_S)])
    cost = meter.stop(events)
    client.close()
    return cost


def decode_floor(bodies: Sequence[bytes]) -> Cost:
    """Only decode into the record's type."""
    decoder, meter = msgspec.json.Decoder(Feedback), Meter()
    for body in bodies:
        decoder.decode(body)
    return meter.stop(len(bodies))


def encode_floor(records: Sequence[Feedback]) -> Cost:
    """Only format the lines that COPY takes, as cheaply as this benchmark knows how: the product's own way."""
    meter = Meter()
    for part in batches(records):
        csv_lines(list(map(feedback_row, part)))
    return meter.stop(len(records))


def encode_by_hand(records: Sequence[Feedback]) -> Cost:
    """Only format lines of COPY's text format with an f-string, the cheapest way before."""
    meter = Meter()
    for part in batches(records):
        "\n".join([line_by_hand(event) for event in part])
    return meter.stop(len(records))


def line_by_hand(event: Feedback) -> str:
    """Return a line for FEEDBACK_COLUMNS, trusting the event that its lists hold nothing to quote."""
    e, body = msgspec.to_builtins(event), NULL
    if event.text is not None:
        body = event.text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    value, name = NULL if event.value is None else event.value, NULL if event.name is None else event.name
    return (
        f"{e['event_id']}\t{e['kind']}\t{e['response_id']}\t{e['conversation_id']}\t{e['turn_id']}\t{e['user_id']}\t"
        f"{value}\t{body}\t{name}\t{{{','.join(e['rejected'])}}}\t{{{','.join(e['reasons'])}}}\t"
        f"{e['occurred_at']}\t{e['received_at']}\t{e['signed']}"
    )


def staged_copy(sessions: Sessions, records: Sequence[Feedback], rows: int = ROWS) -> Cost:
    """Only COPY ready lines into a temporary table and insert what is new, a transaction for each batch."""

    def write(session: Session, lines: bytes) -> None:
        connection: Any = session.connection().connection.driver_connection
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE TEMP TABLE IF NOT EXISTS s (LIKE feedback_event INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
            )
            cursor.copy_expert(f"COPY s ({', '.join(FEEDBACK_COLUMNS)}) FROM STDIN {FORMAT}", BytesIO(lines))
            cursor.execute("INSERT INTO feedback_event SELECT * FROM s ON CONFLICT DO NOTHING")

    return write_batches(sessions, records, write, rows)


def plain_copy(sessions: Sessions, records: Sequence[Feedback], rows: int = ROWS) -> Cost:
    """Only COPY ready lines into the table itself, with its indexes, a transaction for each batch."""

    def write(session: Session, lines: bytes) -> None:
        copy_lines(session, "feedback_event", FEEDBACK_COLUMNS, lines)

    return write_batches(sessions, records, write, rows)


def look_and_copy(sessions: Sessions, records: Sequence[Feedback], rows: int) -> Cost:
    """Only look which ids are there and COPY the others from ready lines; a transaction for each batch."""
    ids = [uuid_array(event.event_id for event in part) for part in batches(records, rows)]
    looks = iter([{"events": part, "answers": "{}"} for part in ids])

    def write(session: Session, lines: bytes) -> None:
        session.execute(LOOK, next(looks)).all()
        copy_lines(session, "feedback_event", FEEDBACK_COLUMNS, lines)

    return write_batches(sessions, records, write, rows)


def pages_write(sessions: Sessions, records: Sequence[Feedback], page: int = 1000) -> Cost:
    """Only `execute_values` of ready rows, a transaction for each page."""
    rows = [page_row(json.loads(msgspec.json.encode(record))) for record in records]
    meter = Meter(sessions)
    for start in range(0, len(rows), page):
        with sessions.begin() as session:
            insert_page(session, rows[start : start + page])
    return meter.stop(len(rows))


def write_batches(
    sessions: Sessions, records: Sequence[Feedback], write: Callable[[Session, bytes], None], rows: int
) -> Cost:
    """Write lines that were formatted beforehand."""
    prepared = [csv_lines(list(map(feedback_row, part))) for part in batches(records, rows)]
    meter = Meter(sessions)
    for lines in prepared:
        with sessions.begin() as session:
            write(session, lines)
    return meter.stop(len(records))


def batches(records: Sequence[Feedback], rows: int = ROWS) -> Iterator[list[Feedback]]:
    """Yield so many records at a time."""
    rest = iter(records)
    while part := list(islice(rest, rows)):
        yield part
