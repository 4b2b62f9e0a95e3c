"""Which of several processes this one is. They share one spec and one directory; only the first writes there.

The launcher (accelerate, torchrun, Ray) sets RANK and WORLD_SIZE before it starts `python -m training`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hone.errors import ConfigError
from training.spec import RunSpec

T = TypeVar("T")
MAX_SUMMED = 1 << 24
"""Elements that are added up over the processes at once."""


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


def native_obstacle(spec: RunSpec, num_processes: int) -> str | None:
    """Return why the native engine cannot train in so many processes, or None."""
    if spec.engine != "native" or num_processes == 1:
        return None
    if spec.method != "dpo":
        return f"the native {spec.method} trains in one process: set launch.processes = 1"
    if spec.launch.sharding != "ddp":
        return f'the native engine holds the whole model in each process: {spec.launch.sharding} needs engine = "trl"'
    return None


def share_of(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of what all of them do together; one in turn to each, so that like ones are spread."""
    return items[rank() :: world()]


def add_up(tensors: Sequence[Any]) -> None:
    """Replace each tensor by its sum over all processes, which give equal shapes; few messages carry many."""
    import torch

    if world() == 1:
        return
    group()
    for bucket in buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def buckets(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the tensors in groups of one type, each of at most MAX_SUMMED elements or of one tensor."""
    bucket: list[Any] = []
    for tensor in tensors:
        is_full = sum(other.numel() for other in bucket) + tensor.numel() > MAX_SUMMED
        if bucket and (is_full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def from_main(value: T) -> T:
    """Return the main process's value, in every process; it must be picklable."""
    import torch

    if world() == 1:
        return value
    group()
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def of_all(value: T) -> list[T]:
    """Return every process's value, in their order, in every process."""
    import torch

    if world() == 1:
        return [value]
    group()
    values: list[Any] = [None] * world()
    torch.distributed.all_gather_object(values, value)
    return values


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
