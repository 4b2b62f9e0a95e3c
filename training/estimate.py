"""What a run will take, before it starts: steps, time and memory, by the planner's arithmetic on what is known here."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from hone.errors import ConfigError
from hone.plan.cost import cost_of
from hone.plan.facts import Hardware, Lengths, Shape, read_shape, this_machine
from hone.plan.fit import SAMPLING, Fit, setup_for, with_batch
from hone.plan.memory import memory_of
from hone.plan.tables import load_tables
from training.meter import gpu_named
from training.spec import RunSpec

START_S = 15.0
"""Loading torch and the model, exporting it and reading it again."""


class Length(NamedTuple):
    """Tokens of a sequence; of a pair the answer is the mean of both."""

    prompt: float
    answer: float


class Estimate(NamedTuple):
    """An upper bound of memory, and a time that holds if the device reaches what the planner's tables say."""

    steps: int
    seconds: float
    "Training alone: the evaluation's samples are not counted."
    memory_bytes: float
    "Of one device, at most."
    device: str


def estimate(spec: RunSpec, base: Path, lengths: Sequence[Length]) -> Estimate | None:
    """Return what a run on sequences of these lengths takes; None for a base that the planner cannot count."""
    try:
        shape = read_shape(base)
    except ConfigError:
        return None
    hardware = hardware_here(spec)
    if hardware is None or not lengths:
        return None
    rows, steps = num_rows(spec, lengths), num_steps(spec, lengths)
    tokens = Lengths(
        prompt=max(1, round(mean(one.prompt for one in lengths))),
        answer=max(1, round(mean(one.answer for one in lengths))),
        longest=max(8, ceil(max(one.prompt + one.answer for one in lengths))),
    )
    fit = fit_of(spec, shape, hardware, tokens)
    cost = cost_of(shape, fit, spec.method, rows, steps * spec.batch_size / rows, tokens, hardware)
    return Estimate(steps, START_S + cost.seconds, fit.memory.total, hardware.name)


def num_rows(spec: RunSpec, lengths: Sequence[Length]) -> int:
    """Return the rows of one pass; of PPO, RLOO and GRPO these are answers."""
    return len(lengths) * (spec.samples.per_prompt if spec.method in SAMPLING else 1)


def num_steps(spec: RunSpec, lengths: Sequence[Length]) -> int:
    """Return the optimiser steps over rows of these lengths."""
    return spec.steps or max(1, ceil(spec.epochs * num_rows(spec, lengths) / spec.batch_size))


def hardware_here(spec: RunSpec) -> Hardware | None:
    """Return what the run would use on this machine; None: a GPU that the planner's tables do not know."""
    tables = load_tables()
    if not torch.cuda.is_available():
        return Hardware(name="cpu", device=this_machine(tables.hardware["cpu"], spec.threads), gpus=0)
    name = gpu_named(torch.cuda.get_device_name())
    return Hardware(name=name, device=tables.hardware[name], gpus=spec.launch.world) if name else None


def fit_of(spec: RunSpec, shape: Shape, hardware: Hardware, tokens: Lengths) -> Fit:
    """Return the spec as the planner sees it."""
    targets = () if isinstance(spec.lora.targets, str) else spec.lora.targets
    setup = setup_for(spec.method, spec.adapter, spec.lora.rank, targets, hardware)
    sharding = spec.launch.sharding if spec.launch.world > 1 else "none"
    setup = replace(setup, precision=spec.precision, sharding=sharding)
    each = spec.batch_size // hardware.world or 1
    at_once = min(spec.ppo.minibatch_size if spec.method == "ppo" else spec.micro_batch_size or each, each)
    setup = with_batch(setup, spec.method, at_once, tokens, checkpointing=spec.gradient_checkpointing)
    memory = memory_of(shape, setup)
    return Fit(setup=setup, memory=memory, labels_per_device=at_once, accumulation=max(1, each // at_once))
