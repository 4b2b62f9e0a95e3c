"""Direct preference optimisation (arXiv:2305.18290), the fast native engine.

Reference log-probabilities are computed once, batches hold sequences of like length, logits exist for answer tokens
only, and each pair counts by its weight. No step draws a random number: a killed run goes on to the same weights.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hone.errors import ConfigError, ProgramFailed
from training import checkpoint
from training.adapter import trainable
from training.checkpoint import Checkpoint
from training.losses import Gains, pair_losses
from training.pairs import TokenPair
from training.policy import answer_logps, check_parity, sum_rows, token_logps
from training.progress import Progress
from training.result import TrainResult
from training.spec import RunSpec
from training.stop_rules import fired

REFERENCE_BATCH = 32
POOL_BATCHES = 8
"""Pairs are sorted by length within pools of this many batches: little padding, and still a random order."""
STEP_0_TOLERANCE = 1e-3


def train_dpo(
    model: Any, pairs: Sequence[TokenPair], spec: RunSpec, pad: int, checkpoints: Path, run_id: str, progress: Progress
) -> TrainResult:
    """Train a fresh adapter on `model`, going on from the newest whole checkpoint of this run.

    Raises:
        ConfigError: the architecture does not suit the native engine, or policy and reference differ before training.
        ProgramFailed: the loss is no longer a number.
    """
    check_parity(model, (pairs[0].prompt, pairs[0].chosen), pad)
    plan = plan_batches([pair.length for pair in pairs], spec)
    reference = reference_logps(model, pairs, {index for batch in plan for index in batch}, pad, progress)
    run = Run(trainable(model, spec), spec, run_id, checkpoints)
    run.resume()
    progress.stage("train")
    while run.step < len(plan):
        batch = plan[run.step]
        run.train_step([pairs[index] for index in batch], [reference[index] for index in batch], len(plan), pad)
        progress.step(run.step, len(plan), loss=run.history[-1]["loss"], margin=run.history[-1]["margin"])
        is_stopped = spec.stop_rules == "stop" and bool(fired(run.history, spec.stop))
        if is_stopped or run.step == len(plan) or run.step % spec.checkpoint_steps == 0:
            run.save()
        if is_stopped:
            break
    return TrainResult(run.model, run.history, fired(run.history, spec.stop))


class Run:
    """The changing state of one run: adapter, optimiser, step and history."""

    def __init__(self, model: Any, spec: RunSpec, run_id: str, checkpoints: Path) -> None:
        """Begin at step 0 with the model's fresh adapter."""
        self.model = model
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._spec = spec
        self._run_id = run_id
        self._checkpoints = checkpoints
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )

    def train_step(
        self, batch: Sequence[TokenPair], reference: Sequence[tuple[float, float]], num_steps: int, pad: int
    ) -> None:
        """Take one optimiser step. Raises ProgramFailed on a loss that is no number, ConfigError on a wrong start."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.step, num_steps, self._spec)
        loss, figures = dpo_loss(self.model, batch, reference, self._spec, pad)
        self._check(figures)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._weights.values(), self._spec.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        self.history.append(figures)

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            tensors |= {f"{key}.{name}": value for key, value in self._optimizer.state[weight].items()}
        state = {"run_id": self._run_id, "threads": torch.get_num_threads(), "history": self.history}
        checkpoint.save(self._checkpoints, Checkpoint(self.step, tensors, state))

    def resume(self) -> None:
        """Take up the newest whole checkpoint of this run, if there is one."""
        expected = {"run_id": self._run_id, "threads": torch.get_num_threads()}
        found = checkpoint.newest(self._checkpoints, expected)
        if found is None:
            return
        for name, weight in self._weights.items():
            weight.data.copy_(found.tensors[f"weight.{name}"])
            state = {key: found.tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self._optimizer.state[weight] = state
        self.step, self.history = found.step, found.state["history"]

    def _check(self, figures: dict[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            raise ProgramFailed(f"the loss is {figures['loss']} at step {self.step + 1}: lower learning_rate")
        if self.step == 0 and abs(figures["preference_loss"] - math.log(2)) > STEP_0_TOLERANCE:
            raise ConfigError(
                f"the preference loss of the first step is {figures['preference_loss']:.4f} and not ln 2 = 0.6931: "
                "policy and reference differ before training; merge the base's adapter into it first"
            )


def dpo_loss(
    model: Any, batch: Sequence[TokenPair], reference: Sequence[tuple[float, float]], spec: RunSpec, pad: int
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch of B pairs and its figures.

    The spec's preference loss, each pair times its weight, divided by B; plus `sft_weight` times the
    negative log-likelihood of the chosen answers' tokens, divided by their number (as in TRL, for weights of 1).
    """
    sequences = [(pair.prompt, pair.chosen) for pair in batch] + [(pair.prompt, pair.rejected) for pair in batch]
    logps_N, row_N = token_logps(model, sequences, pad)
    chosen_B, rejected_B = sum_rows(logps_N, row_N, len(sequences)).chunk(2)
    reference_chosen_B, reference_rejected_B = torch.tensor(reference).T
    weight_B = torch.tensor([pair.weight for pair in batch])
    gains = Gains(
        chosen_B - reference_chosen_B,
        rejected_B - reference_rejected_B,
        torch.tensor([len(pair.chosen) for pair in batch]),
        torch.tensor([len(pair.rejected) for pair in batch]),
    )
    margin_B = spec.beta * (gains.chosen_B - gains.rejected_B)
    preference = (weight_B * pair_losses(gains, spec.beta, spec.preference)).mean()
    likelihood = -(weight_B * chosen_B).sum() / sum(len(pair.chosen) for pair in batch)
    loss = preference + spec.sft_weight * likelihood
    figures = {
        "loss": loss.item(),
        "preference_loss": -F.logsigmoid(margin_B.detach()).mean().item(),
        "margin": margin_B.mean().item(),
        "accuracy": (margin_B > 0).float().mean().item(),
        "chosen_logps": chosen_B.mean().item(),
        "reference_chosen_logps": reference_chosen_B.mean().item(),
    }
    return loss, figures


def learning_rate(step: int, num_steps: int, spec: RunSpec) -> float:
    """Return the rate of a step (from 0): linear warm-up, then linear to 0."""
    warmup = min(1.0, (step + 1) / (spec.warmup_steps + 1))
    return spec.learning_rate * warmup * (num_steps - step) / num_steps


def plan_batches(lengths: Sequence[int], spec: RunSpec) -> list[list[int]]:
    """Return the pairs of every step, as indices: a function of lengths and spec alone."""
    size = spec.batch_size
    num_steps = spec.steps or max(1, math.ceil(spec.epochs * len(lengths) / size))
    rng = random.Random(spec.seed)
    plan: list[list[int]] = []
    while len(plan) < num_steps:
        order = rng.sample(range(len(lengths)), len(lengths))
        pools = [order[at : at + size * POOL_BATCHES] for at in range(0, len(order), size * POOL_BATCHES)]
        pools = [sorted(pool, key=lambda index: lengths[index]) for pool in pools]
        batches = [pool[at : at + size] for pool in pools for at in range(0, len(pool), size)]
        rng.shuffle(batches)
        plan += batches
    return plan[:num_steps]


@torch.no_grad()
def reference_logps(
    model: Any, pairs: Sequence[TokenPair], wanted: set[int], pad: int, progress: Progress
) -> dict[int, tuple[float, float]]:
    """Return (chosen, rejected) log-probabilities under the model as it is, for the wanted pairs."""
    progress.stage("reference")
    order = sorted(wanted, key=lambda index: (pairs[index].length, index))
    found: dict[int, tuple[float, float]] = {}
    for at in range(0, len(order), REFERENCE_BATCH):
        chunk = [pairs[index] for index in order[at : at + REFERENCE_BATCH]]
        sequences = [(pair.prompt, pair.chosen) for pair in chunk] + [(pair.prompt, pair.rejected) for pair in chunk]
        chosen_B, rejected_B = answer_logps(model, sequences, pad).chunk(2)
        found |= zip(order[at:], zip(chosen_B.tolist(), rejected_B.tolist(), strict=True), strict=False)
        progress.step(len(found), len(order))
    return found
