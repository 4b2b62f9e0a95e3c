"""CPU seconds of a DPO step by the native engine and by TRL: same model, pairs, batch size, adapter and precision."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.result import say
from benchmarks.training_world import World
from training.adapter import peft_config, trainable
from training.dpo import Run, plan_batches
from training.fast_lora import fast_lora
from training.progress import Progress
from training.reference import reference_logps
from training.spec import RunSpec
from training.trl_dpo import chat_row


@dataclass
class Seconds:
    """CPU seconds of one way to train, over several epochs of the same pairs."""

    per_step: list[float] = field(default_factory=list)
    once: list[float] = field(default_factory=list)
    "What comes before the first step: for us reference values; for TRL its set-up, reference values included."


def measure(world: World, spec: RunSpec, repeats: int, scratch: Path) -> dict[str, Seconds]:
    """Return the cost of an epoch's steps by TRL, by TRL with reference values computed before, and by us, in turn."""
    ways: dict[str, TrlWay | NativeWay] = {
        "trl": TrlWay(world, spec, scratch / "trl"),
        "trl_precomputed": TrlWay(world, spec, scratch / "pre", precompute=True),
        "native": NativeWay(world, spec, scratch / "native"),
    }
    for number in range(repeats):
        for name, way in ways.items():
            way.epoch()
            say(f"  {number + 1}/{repeats} {name}: {way.seconds.per_step[-1] * 1000:.1f} CPU ms a step")
    return {name: way.seconds for name, way in ways.items()}


class TrlWay:
    """TRL's trainer at its best on a CPU: fp32, no recomputation, fused AdamW, no logging or saving on the way."""

    def __init__(self, world: World, spec: RunSpec, scratch: Path, *, precompute: bool = False, **overrides: Any):
        """Set up the trainer, which is where TRL computes reference values if asked."""
        torch.manual_seed(spec.seed)
        self.seconds = Seconds()
        self._clock = StepClock()
        settings = trl_settings(spec, len(world.pairs), scratch) | overrides
        started = process_time()
        self._trainer = DPOTrainer(
            copy.deepcopy(world.model),
            None,
            DPOConfig(precompute_ref_log_probs=precompute, **settings),
            train_dataset=Dataset.from_list([chat_row(pair.row) for pair in world.pairs]),
            processing_class=world.tokenizer,
            peft_config=peft_config(spec),
            callbacks=[self._clock],
        )
        self.seconds.once.append(process_time() - started)

    def epoch(self) -> None:
        """Take the steps of an epoch."""
        self._trainer.train()
        self.seconds.per_step.append(self._clock.mean())


def trl_settings(spec: RunSpec, num_pairs: int, scratch: Path) -> dict[str, Any]:
    """Return the spec in TRL's words."""
    return {
        "output_dir": str(scratch),
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, spec.sft_weight],
        "beta": spec.beta,
        "learning_rate": spec.learning_rate,
        "max_steps": num_pairs // spec.batch_size,
        "per_device_train_batch_size": spec.batch_size,
        "max_length": spec.max_length,
        "seed": spec.seed,
        "logging_steps": 10_000,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }


class StepClock(TrainerCallback):  # type: ignore[misc]
    """CPU seconds from the beginning of the second step to the end of the last: the first one makes room for state."""

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self._ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forget the epoch before."""
        self._ends = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self._ends.append(process_time())

    def mean(self) -> float:
        """Return seconds a step."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


class NativeWay:
    """The native engine's own steps."""

    def __init__(self, world: World, spec: RunSpec, scratch: Path) -> None:
        """Lay out the batches of an epoch."""
        self.seconds = Seconds()
        self._world, self._spec, self._scratch = world, spec, scratch
        self._plan = plan_batches([pair.length for pair in world.pairs], spec)
        scratch.mkdir(parents=True)

    def epoch(self) -> None:
        """Compute reference values, and take the steps of an epoch."""
        model, pairs, pad = copy.deepcopy(self._world.model), self._world.pairs, self._world.tokenizer.pad_token_id
        started = process_time()
        progress = Progress(self._scratch / "progress.json")
        reference = reference_logps(model, pairs, set(range(len(pairs))), pad, progress, shared=True)
        self.seconds.once.append(process_time() - started)
        run = Run(trainable(model, self._spec), self._spec, "r-bench", self._scratch, shared=True)
        ends = []
        with fast_lora(run.model):
            for batch in self._plan:
                run.train_step([(pairs[k], reference[k]) for k in batch], len(self._plan), pad)
                ends.append(process_time())
        self.seconds.per_step.append((ends[-1] - ends[0]) / (len(ends) - 1))


def describe(seconds: dict[str, Seconds], num_steps: int) -> dict[str, float]:
    """Return medians, and how many times as much TRL costs: a step, and an epoch with what is computed before it."""
    step = {name: median(way.per_step) for name, way in seconds.items()}
    set_up = median(seconds["trl"].once)
    reference = {
        "trl": 0.0,
        "trl_precomputed": max(0.0, median(seconds["trl_precomputed"].once) - set_up),
        "native": median(seconds["native"].once),
    }
    epoch = {name: step[name] * num_steps + reference[name] for name in step}
    return {
        **{f"{name}_ms_per_step": 1000 * value for name, value in step.items()},
        **{f"{name}_reference_s": value for name, value in reference.items() if value},
        "vs_trl": step["trl"] / step["native"],
        "vs_trl_precomputed": step["trl_precomputed"] / step["native"],
        "vs_trl_with_reference": epoch["trl"] / epoch["native"],
        "vs_trl_precomputed_with_reference": epoch["trl_precomputed"] / epoch["native"],
        "spread": max(max(way.per_step) / min(way.per_step) for way in seconds.values()),
    }


def default_settings_ms(world: World, spec: RunSpec, scratch: Path, pairs: Sequence[Any]) -> float:
    """Return a step's CPU milliseconds by TRL as it comes: bf16 and recomputed activations."""
    few = World(world.model, world.tokenizer, list(pairs))
    way = TrlWay(few, spec, scratch, bf16=True, activation_checkpointing=True)
    way.epoch()
    return 1000 * way.seconds.per_step[0]
