"""Finds how a stage fits the devices: how it is split, how large a batch, with or without checkpointing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hone.plan.facts import GB, Hardware, Lengths, Shape
from hone.plan.memory import LOGIT_COPIES, LOGIT_COPIES_TRL_CPU, Adapter, Memory, Setup, Sharding, memory_of
from hone.plan.tables import Limits

SEQUENCES = {"sft": 1, "reward_model": 2, "dpo": 2, "kto": 1, "ppo": 1, "rloo": 1, "grpo": 1}
"""Sequences of one label."""
SAMPLING = ("ppo", "rloo", "grpo")
OWN_ENGINE = ("ppo",)
"""Methods that only hone's own engine has."""
NATIVE = ("dpo", *OWN_ENGINE)
"""Methods that a plan gives to hone's own engine."""
COMFORTABLE_LABELS = 4
"""With fewer labels a device in one step than this, checkpointing is worth its third of more work."""
LOGIT_CHUNK_TOKENS = 4096
"""Answer tokens whose logits exist at once, at most."""
LARGEST_CLUSTER = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A setup that fits, with its memory."""

    setup: Setup
    memory: Memory
    labels_per_device: int
    accumulation: int

    @property
    def batch(self) -> int:
        """Labels of one optimiser step over all devices."""
        return self.labels_per_device * self.accumulation * self.setup.world


def limit_bytes(hardware: Hardware, limits: Limits) -> float:
    """Return what a plan may use of one device."""
    return hardware.device.memory_gb * GB * (limits.memory_share if hardware.gpus else limits.cpu_memory_share)


def num_frozen(method: str, adapter: Adapter) -> int:
    """Return the models beside the policy: the reward model, and a reference where no adapter can be switched off.

    DPO computes its reference once, before training.
    """
    reference = 1 if adapter == "full" and method in ("kto", *SAMPLING) else 0
    return reference + (1 if method in ("ppo", "rloo") else 0)


def setup_for(method: str, adapter: Adapter, rank: int, targets: tuple[str, ...], hardware: Hardware) -> Setup:
    """Return the setup of the method on this hardware, before a batch is chosen."""
    return Setup(
        adapter=adapter,
        rank=0 if adapter == "full" else rank,
        targets=targets,
        precision="bf16" if hardware.gpus else "fp32",
        world=hardware.world,
        frozen_models=num_frozen(method, adapter),
        logit_copies=LOGIT_COPIES if hardware.gpus or method in NATIVE else LOGIT_COPIES_TRL_CPU,
        generates=method in SAMPLING,
        is_gpu=hardware.gpus > 0,
    )


def with_batch(setup: Setup, method: str, labels: int, lengths: Lengths, *, checkpointing: bool) -> Setup:
    """Return the setup with so many labels on each device; batches are as long as their longest sequence may be."""
    sequences = labels * SEQUENCES[method]
    return replace(
        setup,
        sequences=sequences,
        tokens=lengths.longest,
        logit_tokens=1 if method == "reward_model" else min(LOGIT_CHUNK_TOKENS, sequences * lengths.longest),
        checkpointing=checkpointing,
    )


def fits(
    shape: Shape, setup: Setup, method: str, batch: int, lengths: Lengths, limit: float, shardings: tuple[Sharding, ...]
) -> Fit | None:
    """Return the first split that fits, with the largest batch a device takes; None where not even one label fits."""
    for sharding in shardings:
        found = best_batch(shape, replace(setup, sharding=sharding), method, batch, lengths, limit)
        if found is not None:
            return found
    return None


def best_batch(shape: Shape, setup: Setup, method: str, batch: int, lengths: Lengths, limit: float) -> Fit | None:
    """Return the largest batch that fits, without checkpointing where that leaves a comfortable one."""
    largest = max(1, batch // setup.world)
    comfortable = min(COMFORTABLE_LABELS, largest)
    wishes = [(False, comfortable), (True, 1), (False, 1)]
    for checkpointing, at_least in wishes:
        for labels in halves(largest):
            if labels < at_least:
                break
            chosen = with_batch(setup, method, labels, lengths, checkpointing=checkpointing)
            accumulation = max(1, -(-batch // (labels * setup.world)))
            memory = memory_of(shape, chosen)
            if memory.total <= limit:
                return Fit(setup=chosen, memory=memory, labels_per_device=labels, accumulation=accumulation)
    return None


def halves(number: int) -> Iterator[int]:
    """Yield the number, then its halves down to 1."""
    while number >= 1:
        yield number
        number //= 2


def smallest_memory(shape: Shape, setup: Setup, method: str, lengths: Lengths) -> Memory:
    """Return the memory of one label with checkpointing: less than this no device can have."""
    return memory_of(shape, with_batch(setup, method, 1, lengths, checkpointing=True))


def gpus_needed(shape: Shape, setup: Setup, method: str, lengths: Lengths, limit: float) -> int | None:
    """Return the smallest power of two of such devices on which one label each fits with FSDP2, or None up to 1,024."""
    world = 2
    while world <= LARGEST_CLUSTER:
        split = replace(setup, world=world, sharding="fsdp2", is_gpu=True)
        if smallest_memory(shape, split, method, lengths).total <= limit:
            return world
        world *= 2
    return None
