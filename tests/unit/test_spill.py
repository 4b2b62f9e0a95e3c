"""The file of answers that wait for Kafka, on a disk that becomes full in the middle of a line."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.gateway.recorder import Spill


@contextmanager
def no_file_longer_than(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_did_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    spill = Spill(tmp_path)
    spill.append(b"first")
    with no_file_longer_than(10), pytest.raises(OSError, match="File too large"):
        spill.append(b"second, of which four bytes fit")
    assert spill.growing.read_bytes() == b"first\n"
    spill.append(b"third")
    assert spill.growing.read_bytes() == b"first\nthird\n"


def test_a_half_line_of_a_killed_process_takes_no_other_line_with_it(tmp_path: Path) -> None:
    spill = Spill(tmp_path)
    spill.growing.write_bytes(b"first\nsec")
    spill.append(b"third")
    assert spill.growing.read_bytes() == b"first\nsec\nthird\n"
