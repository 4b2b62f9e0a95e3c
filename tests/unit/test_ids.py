"""Ids sort by time, and never repeat: not in a batch, and not in a child of the process."""

import os

from hone.ids import RANDOM_BATCH, uuid7


def test_ids_are_version_7_sort_by_time_and_do_not_repeat() -> None:
    made = [uuid7(at_ms) for at_ms in range(1_000_000, 1_000_000 + 3 * RANDOM_BATCH)]
    assert made == sorted(set(made))
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}


def test_a_forked_process_makes_other_ids() -> None:
    uuid7()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, b"".join(uuid7(0).bytes for _ in range(RANDOM_BATCH)))
        os._exit(0)
    os.waitpid(child, 0)
    data = os.read(ours, 16 * RANDOM_BATCH)
    made = {data[at : at + 16] for at in range(0, len(data), 16)}
    assert len(made) == RANDOM_BATCH
    assert made.isdisjoint(uuid7(0).bytes for _ in range(RANDOM_BATCH))
