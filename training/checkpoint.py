"""Checkpoints that are whole or do not count: written beside, named by their hashes, renamed into place.

The newest *verified* one wins; a torn or changed one is skipped with a warning. Tensors are safetensors only.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from hone.canonical import sha256_file

logger = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST, DONE = "tensors.safetensors", "state.json", "manifest.json", "DONE"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a run needs to go on after `step` steps as if nothing had happened."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(directory: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write `step-N` into `directory`, durably and at once, and remove all but the newest `keep`; return its path."""
    target = directory / f"step-{checkpoint.step:08d}"
    scratch = directory / f".step-{checkpoint.step:08d}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, scratch / TENSORS)
    seal(scratch, {"step": checkpoint.step, **checkpoint.state})
    publish(scratch, target)
    for old in sorted(directory.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def seal(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`, the hashes of all files and the mark that nothing is missing into a finished folder."""
    (path / STATE).write_text(json.dumps(dict(state)))
    for name in (MANIFEST, DONE):
        (path / name).unlink(missing_ok=True)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    (path / MANIFEST).write_text(json.dumps({str(file.relative_to(path)): sha256_file(file) for file in files}))
    (path / DONE).write_text(sha256_file(path / MANIFEST))
    for file in [*files, path / MANIFEST, path / DONE, path]:
        flush(file)


def newest(directory: Path, expected: Mapping[str, Any]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole and whose state agrees with `expected`, or None."""
    found = newest_path(directory, expected)
    if found is None:
        return None
    path, state = found
    return Checkpoint(step=state.pop("step"), tensors=load_file(path / TENSORS), state=state)


def newest_path(directory: Path, expected: Mapping[str, Any], name: str = "step") -> tuple[Path, dict[str, Any]] | None:
    """Return folder and state of the newest sealed `NAME-<step>` that agrees with `expected`, or None."""
    for path in sorted(directory.glob(f"{name}-*"), key=step_of, reverse=True):
        problem = next(problems(path), None)
        if problem:
            logger.warning("checkpoint %s is skipped: %s", path, problem)
            continue
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        if any(state.get(key) != value for key, value in expected.items()):
            logger.warning("checkpoint %s is skipped: it belongs to another run", path)
            continue
        return path, state
    return None


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name; of a strange name, -1."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def problems(path: Path) -> Iterator[str]:
    """Yield what is missing or changed in a checkpoint; nothing: it is whole."""
    if not (path / DONE).is_file() or not (path / MANIFEST).is_file():
        yield "it was never finished"
        return
    if (path / DONE).read_text() != sha256_file(path / MANIFEST):
        yield "its manifest was changed"
        return
    for name, known in json.loads((path / MANIFEST).read_text()).items():
        if not (path / name).is_file() or sha256_file(path / name) != known:
            yield f"{name} is missing or was changed"


def publish(scratch: Path, target: Path) -> None:
    """Make a finished folder appear at its place at once, and survive a loss of power."""
    for path in [*scratch.rglob("*"), scratch]:
        flush(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
