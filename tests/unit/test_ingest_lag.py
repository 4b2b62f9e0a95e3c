"""The lag that a scaler sums up over all members counts each partition once."""

from pathlib import Path
from threading import Event

from prometheus_client import REGISTRY
from sqlalchemy.orm import sessionmaker

from hone import metrics
from hone.health import Pulse
from hone.store.offsets import Group, Partition
from ingest.backfill import FileSource
from ingest.breaker import Breaker
from ingest.consumer import Ingest, forget_lost


def shown(partition: Partition) -> float | None:
    return REGISTRY.get_sample_value(
        "hone_ingest_lag_messages", {"topic": partition.topic, "partition": str(partition.number)}
    )


def test_a_partition_that_went_to_another_member_is_shown_no_more() -> None:
    source = FileSource(Path("held.jsonl"), Event(), lambda done: None)
    held, lost = source.partition, Partition("lost.v1", 3)
    for partition in (held, lost):
        metrics.INGEST_LAG_MESSAGES.labels(partition.topic, str(partition.number)).set(7)
    ingest = Ingest(
        source=source,
        sessions=sessionmaker(),
        group=Group("g", "i"),
        owner="test",
        max_rows=1,
        poll_timeout_s=0.1,
        on_retention_gap="stop",
        breaker=Breaker(0.5),
        pulse=Pulse(),
        measured={held, lost},
    )
    forget_lost(ingest)
    assert (shown(held), shown(lost)) == (7, None)
    assert ingest.measured == {held}
