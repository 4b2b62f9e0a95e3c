"""Which of several processes this one is. They share one spec and one directory; only the first writes there.

The launcher (accelerate, torchrun, Ray) sets RANK and WORLD_SIZE before it starts `python -m training`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hone.errors import ConfigError


def rank() -> int:
    """Return the number of this process among those of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Say whether this process writes the run's files."""
    return rank() == 0


def device() -> str:
    """Return where this process computes: the GPU of its number on this machine, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def group() -> Any:
    """Return accelerate's state, the processes joined: gloo on CPUs, NCCL on GPUs."""
    import torch
    from accelerate import PartialState

    return PartialState() if torch.cuda.is_available() else PartialState(cpu=True)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process before the others."""
    if world() == 1:
        yield
        return
    with group().main_process_first():
        yield


def wait_for_all() -> None:
    """Return once every process of the run has come here."""
    if world() > 1:
        group().wait_for_everyone()


def rows_of_each(batch_size: int, micro_batch_size: int | None) -> tuple[int, int]:
    """Return (rows of one device at once, times that they are added up) for an optimiser step over `batch_size` rows.

    Raises:
        ConfigError: the batch cannot be divided so.
    """
    each, left = divmod(batch_size, world())
    micro = min(micro_batch_size or each, each)
    if left or not each or each % micro:
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided over {world()} processes of {micro_batch_size or 'all'} rows: "
            "make it a multiple of processes × micro_batch_size"
        )
    return micro, each // micro
