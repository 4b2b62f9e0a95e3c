"""Whether the cost of an event grows with what is stored: buffer touches of ingest, CPU of the pair worker."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.ingest_world import RESPONSES_PER_FEEDBACK, Messages, Meter, World
from hone.records import FEEDBACK_TOPIC, Feedback, Response
from hone.settings import Pairs
from hone.store.offsets import Group, Partition, Step, claim_partitions
from ingest.batch import Batch, Decoded, RawMessage, store_batch
from ingest.pair_worker import derive_batch

ROWS = 2000
NUM_BATCHES = 10
NUM_WARM = 2
"""Batches before the measured ones: first uses of a connection are not what grows."""

ID = "CAST(lpad(to_hex(1760000000000 + {n}), 12, '0') || '7' || substr(md5({n} || '{salt}'), 1, 3) || '8' || \
substr(md5({n} || '{salt}'), 4, 15) AS uuid)"
"""A version 7 uuid for the number n, as clients mint them: in the order of time."""
HASH = "CAST(md5('{salt}' || ({n})) AS uuid)"

HISTORY = f"""
SET LOCAL synchronous_commit = off;
INSERT INTO response (response_id, conversation_id, turn_id, user_id, messages, completion, model_version, track,
                      propensity, fallback, parameters, completed, latency_ms, eval_only, created_at)
SELECT {ID.format(n="n", salt="r")}, {HASH.format(n="n / 4", salt="c")}, {HASH.format(n="n * 2 / 3", salt="t")},
       {HASH.format(n="n % 50000", salt="u")}, '[{{"role": "user", "content": "Where is my refund?"}}]',
       repeat('It is on its way. ', 10) || n, 'base', 'stable', 1, false, '{{}}', true, 400, false,
       timestamptz '2025-10-09' + n * interval '1 second'
FROM generate_series(1, :responses) AS n;
INSERT INTO feedback_event (event_id, kind, response_id, turn_id, user_id, value, rejected, reasons, occurred_at,
                            received_at, signed)
SELECT {ID.format(n="n", salt="e")}, 'thumbs', {ID.format(n="(n * 68 / 100 + 1)", salt="r")},
       {HASH.format(n="(n * 68 / 100 + 1) * 2 / 3", salt="t")}, {HASH.format(n="n % 50000", salt="u")},
       CASE WHEN n % 3 = 0 THEN -1 ELSE 1 END, '{{}}', '{{}}', timestamptz '2025-10-09' + n * interval '1 second',
       timestamptz '2025-10-09' + n * interval '1 second', true
FROM generate_series(1, :events) AS n;
INSERT INTO feedback_state (subject_id, slot, user_id, turn_id, value, rejected, reasons, occurred_at, event_id, signed)
SELECT response_id, 'thumbs', user_id, turn_id, value, rejected, reasons, occurred_at, event_id, signed
FROM feedback_event;
INSERT INTO unary_label (response_id, user_id, turn_id, label, weight, reasons, signed, active)
SELECT response_id, user_id, turn_id, value > 0, 1, '{{}}', true, true FROM feedback_event;
INSERT INTO preference_pair (turn_id, source, chosen_id, rejected_id, user_id, weight, signed, active)
SELECT turn_id, 'thumbs', response_id, event_id, user_id, 0.8, true, true FROM feedback_event WHERE value > 0;
"""
"""Events, and all that follows from events, in bulk; the pairs stand for no policy but have the size of real ones."""

TOUCHES = """
SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0)
           + coalesce(toast_blks_hit + toast_blks_read + tidx_blks_hit + tidx_blks_read, 0))
FROM pg_statio_user_tables WHERE schemaname = 'public'
"""


@dataclass(frozen=True)
class Growth:
    """The cost of an event on top of so many stored ones."""

    stored_events: int
    touches_per_event: float
    "Buffers of our tables and indexes, found or read, for each message of the full ingest transaction."
    ingest_us: float
    pair_us: float
    "CPU of pair worker and backend for each turn."
    pair_touches: float


def measure(servers: World, stored_events: int, rounds: int, seed: int) -> list[Growth]:
    """Return the costs on top of `stored_events` events, each round on a fresh copy of the same database."""
    name = f"stored_{stored_events}"
    with servers.database(name) as sessions:
        fill(sessions, stored_events)
    parts = new_batches(seed)
    gc.freeze()  # the records that this process holds are no part of any cost
    return [measure_once(servers, parts, name, stored_events) for _ in range(rounds)]


def measure_once(
    servers: World, parts: Sequence[Sequence[Feedback | Response]], template: str, stored_events: int
) -> Growth:
    """Return the cost per event of the full transaction, and per turn of the pairs."""
    with servers.database(template=template) as sessions:
        group = Group(f"bench-{uuid4().hex[:8]}", servers.broker.incarnation)
        store(sessions, group, parts[:NUM_WARM], first=0)
        derive_all(sessions)
        num_warm = sum(map(len, parts[:NUM_WARM]))
        before, meter = touches(sessions), Meter(sessions)
        store(sessions, group, parts[NUM_WARM:], first=num_warm)
        num = sum(map(len, parts[NUM_WARM:]))
        ingest, middle = meter.stop(num), touches(sessions)
        meter = Meter(sessions)
        turns = derive_all(sessions)
        pairs = meter.stop(turns)
        after = touches(sessions)
    return Growth(stored_events, (middle - before) / num, ingest.total_us, pairs.total_us, (after - middle) / turns)


def fill(sessions: sessionmaker[Session], stored_events: int) -> None:
    """Fill the database as so many events would have, and let Postgres know its size."""
    with sessions.begin() as session:
        session.execute(text(HISTORY), {"events": stored_events, "responses": stored_events * 68 // 100 + 1})
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"}).execute(text("VACUUM ANALYZE"))


def new_batches(seed: int) -> list[list[Feedback | Response]]:
    """Return batches of the size that ingest takes: new answers, and feedback on them."""
    total = ROWS * (NUM_WARM + NUM_BATCHES)
    records = Messages.make(round(total / (1 + RESPONSES_PER_FEEDBACK)), seed).both()[:total]
    return [records[start : start + ROWS] for start in range(0, len(records), ROWS)]


def store(
    sessions: sessionmaker[Session], group: Group, parts: Sequence[Sequence[Feedback | Response]], *, first: int
) -> None:
    """Store the batches by the product's own transaction, as one partition."""
    partition = Partition(FEEDBACK_TOPIC, 0)
    with sessions.begin() as session:
        epoch = claim_partitions(session, group, "benchmark", {partition: 0})[partition].epoch
    for part in parts:
        batch = Batch(steps={partition: Step(epoch, first, first + len(part))})
        batch.good = [Decoded(RawMessage(partition, first + n, None, b"", 0), record) for n, record in enumerate(part)]
        with sessions.begin() as session:
            store_batch(session, group, batch)
        first += len(part)


def derive_all(sessions: sessionmaker[Session]) -> int:
    """Run the pair worker's transaction until no turn is dirty; return the number of turns."""
    total = 0
    while True:
        with sessions.begin() as session:
            num_turns, _ = derive_batch(session, Pairs())
        if num_turns == 0:
            return total
        total += num_turns


def touches(sessions: sessionmaker[Session]) -> int:
    """Return how many buffers of our tables were asked for so far."""
    with sessions.begin() as session:
        session.execute(text("SELECT pg_stat_force_next_flush()"))
    with sessions() as session:
        return int(session.scalar(text(TOUCHES)) or 0)
