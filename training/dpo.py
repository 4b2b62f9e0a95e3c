"""Direct preference optimisation (arXiv:2305.18290), the fast native engine.

Reference log-probabilities are computed once and kept on disk, batches hold pairs of like length, a prompt is computed
once for both of its answers, logits exist for answer tokens only, and each pair counts by its weight. No step draws a
random number: a killed run goes on to the same weights.

Several processes each take their part of every batch and add up their gradients; each then takes the same step.
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
from training.best import Best
from training.checkpoint import Checkpoint
from training.distributed import add_up, is_main, of_all, share_of, wait_for_all, world
from training.fast_lora import fast_lora
from training.losses import Gains, pair_losses
from training.pairs import TokenPair
from training.policy import attends_to_all, can_share_prompt, check_parity, pair_logps
from training.precision import computing, prepare, restore
from training.progress import Progress
from training.reference import Logps, reference_logps
from training.result import TrainResult
from training.spec import RunSpec
from training.stop_rules import fired

POOL_BATCHES = 8
"""Pairs are sorted by length within pools of this many batches: little padding, and still a random order."""
PAIR_FIGURES = ("preference_loss", "margin", "accuracy", "chosen_logps", "reference_chosen_logps")
"""What is told of a batch's pairs, besides the loss; means over them."""
STEP_0_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Of the first loss: reference and policy are computed in batches of other shapes, which rounds otherwise."""


def train_dpo(
    model: Any,
    pairs: Sequence[TokenPair],
    spec: RunSpec,
    pad: int,
    checkpoints: Path,
    run_id: str,
    progress: Progress,
    *,
    dev: Sequence[TokenPair] = (),
    cache: Path | None = None,
) -> TrainResult:
    """Train `model`, or a fresh adapter on it, going on from the newest whole checkpoint of this run.

    Args:
        dev: held-out pairs; with `stop.patience` their loss decides when to stop and which checkpoint is taken.
        cache: a folder where reference values are looked up and kept; None: they are computed.

    Raises:
        ConfigError: the architecture does not suit the native engine, or policy and reference differ before training.
        ProgramFailed: the loss is no longer a number.
    """
    check_parity(model, (pairs[0].prompt, pairs[0].chosen), pad)
    shared = attends_to_all(model)
    prepare(model, spec, shared=shared)
    shared = shared and can_share_prompt(model, [min(pairs, key=length_of), max(pairs, key=length_of)], pad)
    plan = plan_batches([pair.length for pair in pairs], spec)
    wanted = {index for batch in plan for index in batch}
    reference = reference_logps(model, pairs, wanted, pad, progress, shared=shared, cache=cache)
    held_out = list(dev) if spec.stop.patience is not None else []
    watched = reference_logps(model, held_out, set(range(len(held_out))), pad, progress, shared=shared, cache=cache)
    run = Run(trainable(model, spec), spec, run_id, checkpoints, shared=shared)
    run.watch([(pair, watched[index]) for index, pair in enumerate(held_out)])
    run.resume()
    progress.stage("train")
    with fast_lora(run.model):
        train_all(run, [[(pairs[index], reference[index]) for index in batch] for batch in plan], pad, progress)
    best = run.take_best()
    return TrainResult(restore(run.model), run.history, fired(run.history, spec.stop), best)


def train_all(run: "Run", plan: Sequence[Sequence["Compared"]], pad: int, progress: Progress) -> None:
    """Take the steps that are left, with a checkpoint now and then and at the end; stop rules and dev may end them."""
    is_over = run.is_stopped or run.best.is_over
    while run.step < len(plan) and not is_over:
        batch = plan[run.step]
        run.train_step(batch, len(plan), pad)
        tokens = num_tokens(batch, shared=run.shared)
        progress.record(run.step, len(plan), run.history[-1], ("loss", "margin"), tokens=tokens)
        is_over = run.is_stopped
        if is_over or run.step == len(plan) or run.step % run.spec.checkpoint_steps == 0:
            if run.held_out:
                progress.keep(run.step, {"eval_loss": run.look(pad)})
            run.save()
            is_over = is_over or run.best.is_over


Compared = tuple[TokenPair, Logps]
"""A pair, and its log-probabilities under the reference."""


def num_tokens(batch: Sequence[Compared], *, shared: bool) -> int:
    """Return the tokens that go through the model: a prompt once for both of its answers where it is shared."""
    pairs = [pair for pair, _ in batch]
    answers = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    return answers + sum(len(pair.prompt) * (1 if shared or not pair.rejected else 2) for pair in pairs)


def length_of(pair: TokenPair) -> int:
    """Return the tokens of the longer sequence."""
    return pair.length


class Run:
    """The changing state of one run: adapter, optimiser, step and history."""

    def __init__(self, model: Any, spec: RunSpec, run_id: str, checkpoints: Path, *, shared: bool = False) -> None:
        """Begin at step 0 with the model's fresh adapter; `shared`: a prompt is computed once for both answers."""
        self.model = model
        self.spec = spec
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.shared = shared
        self._identity: dict[str, Any] = {"run_id": run_id, "threads": torch.get_num_threads()}
        self._identity |= {"processes": world()} if world() > 1 else {}
        self.held_out: Sequence[Compared] = ()
        self.best = Best(checkpoints, self._identity, spec.stop.patience)
        self._checkpoints = checkpoints
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )

    def train_step(self, batch: Sequence[Compared], num_steps: int, pad: int) -> None:
        """Take one optimiser step. Raises ProgramFailed on a loss that is no number, ConfigError on a wrong start."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.step, num_steps, self.spec)
        figures = dict.fromkeys(figures_of(batch), 0.0)
        for part in parts_of(share_of(batch), self.spec.micro_batch_size):
            with computing(self.model, self.spec):
                loss, seen = dpo_loss(self.model, part, self.spec, pad, whole=batch, shared=self.shared)
            loss.backward()  # type: ignore[no-untyped-call]
            figures = {name: value + seen[name] for name, value in figures.items()}
        figures = self._with_others(figures)
        self._check(figures)
        torch.nn.utils.clip_grad_norm_(self._weights.values(), self.spec.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        self.history.append(figures)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop rule has fired that ends the run."""
        return self.spec.stop_rules == "stop" and bool(fired(self.history, self.spec.stop))

    def watch(self, held_out: Sequence[Compared]) -> None:
        """Look at these pairs from now on; those of like length together."""
        self.held_out = sorted(held_out, key=lambda compared: compared[0].length)

    @torch.no_grad()
    def look(self, pad: int) -> float:
        """Return the loss of the held-out pairs, and remember it, and the weights if it is the lowest."""
        loss = 0.0
        for part in parts_of(share_of(self.held_out), self.spec.micro_batch_size or self.spec.batch_size):
            with computing(self.model, self.spec):
                loss += dpo_loss(self.model, part, self.spec, pad, whole=self.held_out, shared=self.shared)[0].item()
        loss = sum(of_all(loss))
        self.history[-1]["eval_loss"] = loss
        self.best.look(self.step, loss, self._weights)
        return loss

    def take_best(self) -> int | None:
        """Take the weights of the best look and return its step; without a look they stay. Raises ProgramFailed."""
        return self.best.put_back(self._weights)

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            tensors |= {f"{key}.{name}": value for key, value in self._optimizer.state[weight].items()}
        state = {**self._identity, "history": self.history, "looks": self.best.looks}
        if is_main():
            checkpoint.save(self._checkpoints, Checkpoint(self.step, tensors, state))
        wait_for_all()

    def resume(self) -> None:
        """Take up the newest whole checkpoint of this run, if there is one."""
        found = checkpoint.newest(self._checkpoints, self._identity)
        if found is None:
            return
        for name, weight in self._weights.items():
            weight.data.copy_(found.tensors[f"weight.{name}"])
            state = {key: found.tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self._optimizer.state[weight] = state
        self.step, self.history = found.step, found.state["history"]
        self.best.take_up(found.state["looks"])

    def _with_others(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the figures of all processes, which afterwards have the gradients of all."""
        if world() == 1:
            return figures
        for weight in self._weights.values():
            if weight.grad is None:  # the batch was smaller than the processes are many
                weight.grad = torch.zeros_like(weight)
        # Figures in double precision, so that they are the same whatever the number of processes.
        own = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.model.device)
        add_up([*(weight.grad for weight in self._weights.values()), own])
        return dict(zip(figures, own.tolist(), strict=True))

    def _check(self, figures: dict[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            raise ProgramFailed(f"the loss is {figures['loss']} at step {self.step + 1}: lower learning_rate")
        first = figures.get("preference_loss", math.log(2))
        if self.step == 0 and abs(first - math.log(2)) > STEP_0_TOLERANCE[self.spec.precision]:
            raise ConfigError(
                f"the preference loss of the first step is {first:.4f} and not ln 2 = 0.6931: "
                "policy and reference differ before training; merge the base's adapter into it first"
            )


def figures_of(batch: Sequence[Compared]) -> tuple[str, ...]:
    """Return the names of a batch's figures: without a pair there is a loss alone."""
    return ("loss", *PAIR_FIGURES) if any(pair.rejected for pair, _ in batch) else ("loss",)


def parts_of(batch: Sequence[Compared], size: int | None) -> list[Sequence[Compared]]:
    """Return what goes through the model at once; gradients of the parts add up to the batch's."""
    size = size or max(1, len(batch))
    return [batch[at : at + size] for at in range(0, len(batch), size)]


def dpo_loss(
    model: Any,
    part: Sequence[Compared],
    spec: RunSpec,
    pad: int,
    *,
    whole: Sequence[Compared] | None = None,
    shared: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of B pairs, a part of the batch `whole` (default: all of it), and their share of its figures.

    The spec's preference loss, each pair times its weight, divided by the batch's size; plus `sft_weight` times the
    negative log-likelihood of the chosen answers' tokens, divided by their number in the batch (as in TRL, for weights
    of 1). An answer without a rival counts in the second part alone; figures other than the loss are of pairs only.
    """
    whole = whole or part
    pairs = [pair for pair, _ in part]
    chosen_B, rejected_B = pair_logps(model, pairs, pad, shared=shared)
    weight_B = chosen_B.new_tensor([pair.weight for pair in pairs])
    likelihood = -(weight_B * chosen_B).sum() / sum(len(pair.chosen) for pair, _ in whole)
    # P pairs: the rows whose chosen answer has a rival.
    row_P = torch.tensor([k for k, pair in enumerate(pairs) if pair.rejected], device=chosen_B.device, dtype=torch.long)
    reference_chosen_P, reference_rejected_P = chosen_B.new_tensor([logps for _, logps in part])[row_P].T
    gains = Gains(
        chosen_B[row_P] - reference_chosen_P,
        rejected_B[row_P] - reference_rejected_P,
        chosen_B.new_tensor([len(pair.chosen) for pair in pairs])[row_P],
        chosen_B.new_tensor([len(pair.rejected) for pair in pairs])[row_P],
    )
    margin_P = spec.beta * gains.gap_B
    preference = (weight_B[row_P] * pair_losses(gains, spec.beta, spec.preference)).sum() / len(whole)
    loss = preference + spec.sft_weight * likelihood
    sums = (
        -F.logsigmoid(margin_P.detach()).sum(),
        margin_P.detach().sum(),
        (margin_P > 0).sum(),
        chosen_B.detach()[row_P].sum(),
        reference_chosen_P.sum(),
    )
    # One look at the device for all figures, not one for each.
    total, *found = torch.stack([loss.detach(), *sums]).tolist()
    num_pairs = sum(bool(pair.rejected) for pair, _ in whole)
    means = {name: value / num_pairs for name, value in zip(PAIR_FIGURES, found, strict=True)} if num_pairs else {}
    return loss, {"loss": total, **means}


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
