"""Only whole checkpoints count."""

import json
import logging
from pathlib import Path

import pytest
import torch

from training.checkpoint import DONE, MANIFEST, STATE, TENSORS, Checkpoint, newest, save

EXPECTED = {"run_id": "r-1"}


def write(directory: Path, step: int, run_id: str = "r-1") -> Path:
    return save(
        directory, Checkpoint(step, {"w": torch.full((3,), float(step))}, {"run_id": run_id, "history": [step]})
    )


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 3)
    found = newest(tmp_path, EXPECTED)
    assert found
    assert found.step == 3
    assert found.state == {"run_id": "r-1", "history": [3]}
    assert torch.equal(found.tensors["w"], torch.full((3,), 3.0))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-1]), id="torn tensors"),
        pytest.param(lambda path: (path / STATE).write_text(json.dumps({"step": 9, **EXPECTED})), id="changed state"),
        pytest.param(lambda path: (path / TENSORS).unlink(), id="missing tensors"),
        pytest.param(lambda path: (path / DONE).unlink(), id="never finished"),
        pytest.param(lambda path: (path / MANIFEST).write_text("{}"), id="manifest of nothing"),
    ],
)
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 3)
    assert callable(damage)
    damage(write(tmp_path, 6))
    with caplog.at_level(logging.WARNING):
        found = newest(tmp_path, EXPECTED)
    assert found
    assert found.step == 3
    assert "step-00000006 is skipped" in caplog.text


def test_one_of_another_run_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, 3, run_id="r-2")
    assert newest(tmp_path, EXPECTED) is None


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000006"]


def test_an_empty_directory_holds_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "none", EXPECTED) is None
