"""Proximal policy optimisation (arXiv:1707.06347) of a chat model against rewards, the native engine.

One step: draw answers, score them, estimate advantages, and pass a few times over them. The value of a state is a
linear head on the policy's hidden states; it has an optimiser of its own, and its loss does not reach the policy. The
reference is the policy without its adapter.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hone.errors import ProgramFailed
from training import checkpoint
from training.adapter import trainable
from training.best import Best
from training.checkpoint import Checkpoint
from training.fit import Task
from training.policy import collate, decoder_of
from training.ppo_math import KlController, advantages, policy_loss, token_rewards, value_loss, whitened
from training.ppo_samples import (
    Drawn,
    check_suited,
    draw,
    num_turns,
    penalties,
    prompt_ids,
    seed_of,
    turn,
    usable_prompts,
    watched_prompts,
)
from training.result import TrainResult
from training.reward_set import Chat, Scorer, load_function, load_rewards, total
from training.stop_rules import fired

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Batch:
    """B drawn answers and what was true of them before the update; grids are (B, T), 0 behind an answer."""

    drawn: list[Drawn]
    mask_BT: Tensor
    logps_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


def train_ppo(task: Task) -> TrainResult:
    """Return the policy that earns more, going on from the newest whole checkpoint of this run.

    Raises:
        NotEnoughData: no prompt leaves room for an answer.
        ProgramFailed: loss or reward is no longer a number.
    """
    spec = task.spec
    run = Run(task)
    num_steps = spec.steps or num_turns(len(run.prompts), spec)
    run.resume()
    task.progress.stage("train")
    is_over = run.is_stopped or run.best.is_over
    while run.step < num_steps and not is_over:
        figures = run.train_step()
        task.progress.record(run.step, num_steps, figures, ("reward", "kl"), tokens=run.num_tokens)
        is_over = run.is_stopped
        if is_over or run.step == num_steps or run.step % spec.checkpoint_steps == 0:
            if run.held_out_prompts:
                task.progress.keep(run.step, {"eval_score": run.examine()})
            run.save()
            is_over = is_over or run.best.is_over
    best = run.best.put_back(run.trained)
    return TrainResult(run.policy.eval(), run.history, fired(run.history, spec.stop), best, run.dropped)


class Run:
    """The changing state of one run: policy, value head, both optimisers, KL coefficient, step and history.

    Place in the prompts and random numbers need no state of their own: they follow from seed and step.
    """

    def __init__(self, task: Task) -> None:
        """Begin at step 0. Raises like `train_ppo`."""
        self._task, self._spec = task, task.spec
        self.prompts, self.dropped = usable_prompts(task)
        check_suited(task.model, prompt_ids(self.prompts[:1], task.tokenizer)[0], task.tokenizer.pad_token_id)
        self._reference = copy.deepcopy(task.model) if task.spec.adapter == "full" else None
        self.policy = trainable(task.model, task.spec).eval()  # no dropout: old and new log-probabilities compare
        self.head = nn.Linear(task.model.config.get_text_config().hidden_size, 1, device=task.model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._weights = {name: weight for name, weight in self.policy.named_parameters() if weight.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), lr=task.spec.learning_rate, weight_decay=task.spec.weight_decay
        )
        self._value_optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=task.spec.ppo.value_learning_rate, weight_decay=0.0
        )
        ppo = task.spec.ppo
        self._kl = KlController(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon)
        self._rewards = load_rewards(task.spec)
        held_out = task.spec.rewards.held_out
        self._held_out: Scorer | None = load_function(held_out) if held_out else None
        self.held_out_prompts = watched_prompts(task)
        self.best = Best(task.directory / CHECKPOINTS, self._identity(), task.spec.stop.patience)
        self.step = self.num_tokens = 0
        self.history: list[dict[str, float]] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop rule has fired that ends the run."""
        return self._spec.stop_rules == "stop" and bool(fired(self.history, self._spec.stop))

    @property
    def trained(self) -> dict[str, Tensor]:
        """The policy's weights that learn, by name."""
        return self._weights

    def examine(self) -> float:
        """Return the mean score of answers to held-out prompts, and remember it, and the policy if it is the highest.

        The score is the signal that nobody is rewarded for, where there is one, else the reward. Every look draws with
        the same random numbers.
        """
        chats = self.held_out_prompts
        drawn = draw(self.policy, self._task.tokenizer, chats, self._spec.samples, seed_of(self._spec, 0))
        texts = self._task.tokenizer.batch_decode([one.answer for one in drawn], skip_special_tokens=True)
        if self._held_out is not None:
            scores = [float(value) for value in self._held_out(prompts=chats, completions=texts)]
        else:
            scores = total(self._rewards, chats, texts)
        score = sum(scores) / len(scores)
        self.history[-1]["eval_score"] = score
        self.best.look(self.step, -score, self._weights)
        return score

    def train_step(self) -> dict[str, float]:
        """Draw one batch of answers, learn from it, and return its figures. Raises ProgramFailed on no number."""
        spec = self._spec
        chats = turn(self.prompts, self.step, spec)
        seed = seed_of(spec, self.step)
        with self._task.progress.waiting():
            drawn = draw(self.policy, self._task.tokenizer, chats, spec.samples, seed)
        self.num_tokens = sum(len(one.prompt) + len(one.answer) for one in drawn)
        torch.manual_seed(seed)  # of the order of minibatches
        texts = self._task.tokenizer.batch_decode([one.answer for one in drawn], skip_special_tokens=True)
        batch, figures = self._assess(drawn, chats, texts)
        figures |= self._learn(batch)
        if not all(map(math.isfinite, figures.values())):
            raise ProgramFailed(
                f"step {self.step + 1} of PPO gives {figures}: lower learning_rate, look at the rewards"
            )
        self.step += 1
        self.history.append(figures)
        self._kl.update(figures["kl"], len(drawn))
        return figures

    @torch.no_grad()
    def _assess(self, drawn: list[Drawn], chats: list[Chat], texts: list[str]) -> tuple[Batch, dict[str, float]]:
        """Return the batch with its advantages, and what can be said of the answers."""
        spec, ppo = self._spec, self._spec.ppo
        scores = total(self._rewards, chats, texts)
        scores_B = torch.tensor(scores) - penalties(drawn, spec)
        logps_BT, values_BT, mask_BT = self.look(self.policy, drawn)
        with self._as_reference() as reference:
            reference_BT, _, _ = self.look(reference, drawn)
        rewards_BT = token_rewards(scores_B, logps_BT, reference_BT, mask_BT, self._kl.coefficient)
        if ppo.whiten_rewards:
            rewards_BT = whitened(rewards_BT, mask_BT, centre=False)
        gains_BT = advantages(rewards_BT, values_BT, mask_BT, ppo.gamma, ppo.gae_lambda)
        returns_BT = gains_BT + values_BT
        batch = Batch(drawn, mask_BT, logps_BT, values_BT, whitened(gains_BT, mask_BT), returns_BT)
        figures = {
            "reward": sum(scores) / len(scores),
            "kl": float(((logps_BT - reference_BT) * mask_BT).sum(1).mean()),
            "kl_coefficient": self._kl.coefficient,
            "end_rate": sum(one.ended for one in drawn) / len(drawn),
            "distinct_share": len(set(texts)) / len(texts),
            "length": float(mask_BT.sum(1).mean()),
        }
        if self._held_out is not None:
            signal = self._held_out(prompts=chats, completions=texts)
            figures["held_out"] = sum(map(float, signal)) / len(signal)
        return batch, figures

    def _learn(self, batch: Batch) -> dict[str, float]:
        """Pass over the batch; return the mean losses and how often the ratio left the clip range."""
        ppo = self._spec.ppo
        sums = {"loss": 0.0, "value_loss": 0.0, "clipped": 0.0}
        parts = list(self._minibatches(len(batch.drawn)))
        for rows in parts:
            logps_BT, values_BT, mask_BT = self.look(self.policy, [batch.drawn[k] for k in rows])
            width = mask_BT.shape[1]
            old_BT, gains_BT = batch.logps_BT[rows, :width], batch.advantages_BT[rows, :width]
            loss = policy_loss(logps_BT, old_BT, gains_BT, mask_BT, ppo.clip)
            error = value_loss(
                values_BT, batch.values_BT[rows, :width], batch.returns_BT[rows, :width], mask_BT, ppo.value_clip
            )
            self._update(loss, error)
            outside = ((logps_BT - old_BT).exp() - 1).abs() > ppo.clip
            clipped = float((outside * mask_BT).sum() / mask_BT.sum())
            for name, value in (("loss", loss.item()), ("value_loss", error.item()), ("clipped", clipped)):
                sums[name] += value / len(parts)
        return sums

    def _update(self, loss: Tensor, error: Tensor) -> None:
        """Take one step of both optimisers; each sees its own loss only."""
        for optimizer, part, weights in (
            (self._optimizer, loss, self._weights.values()),
            (self._value_optimizer, error, self.head.parameters()),
        ):
            optimizer.zero_grad()
            part.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, self._spec.max_grad_norm)
            optimizer.step()

    def _minibatches(self, number: int) -> Iterator[list[int]]:
        """Yield the rows of each update: all of the batch, `epochs` times, in random order."""
        size = self._spec.ppo.minibatch_size
        for _ in range(self._spec.ppo.epochs):
            order = torch.randperm(number).tolist()
            yield from (order[at : at + size] for at in range(0, number, size))

    def look(self, model: Any, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities (nats, at the sampling temperature), values and mask of the answers' tokens.

        The value of a token's state comes from the hidden state before the token, cut off from the policy's gradient.
        """
        sequences = [(one.prompt, one.answer) for one in drawn]
        ids_BT, row_N, time_N = (
            part.to(model.device) for part in collate(sequences, self._task.tokenizer.pad_token_id)
        )
        hidden_BTH = decoder_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
        before_NH = hidden_BTH[row_N, time_N - 1]
        logits_NV = model.get_output_embeddings()(before_NH).float() / self._spec.samples.temperature
        logps_N = -nn.functional.cross_entropy(logits_NV, ids_BT[row_N, time_N], reduction="none")
        values_N = self.head(before_NH.detach().float())[:, 0]
        place_N = time_N - torch.tensor([len(one.prompt) for one in drawn], device=model.device)[row_N]
        empty_BT = torch.zeros(len(drawn), max(len(one.answer) for one in drawn))
        grids = [
            empty_BT.index_put((row_N.cpu(), place_N.cpu()), part_N.cpu())
            for part_N in (logps_N, values_N, torch.ones_like(logps_N))
        ]
        return grids[0], grids[1], grids[2]

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        """Give the reference for the time of a block: the frozen copy, or the policy without its adapter."""
        if self._reference is not None:
            yield self._reference
        else:
            with self.policy.disable_adapter():
                yield self.policy

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in self._all_weights()}
        for name, weight in self._all_weights():
            state = self._optimizer.state.get(weight) or self._value_optimizer.state[weight]
            tensors |= {f"{key}.{name}": state[key] for key in MOMENTS}
        state = {**self._identity(), "history": self.history, "kl_coefficient": self._kl.coefficient}
        state["looks"] = self.best.looks
        checkpoint.save(self._task.directory / CHECKPOINTS, Checkpoint(self.step, tensors, state))

    def resume(self) -> None:
        """Take up the newest whole checkpoint of this run, if there is one."""
        found = checkpoint.newest(self._task.directory / CHECKPOINTS, self._identity())
        if found is None:
            return
        for name, weight in self._all_weights():
            weight.data.copy_(found.tensors[f"weight.{name}"])
            optimizer = self._optimizer if name in self._weights else self._value_optimizer
            moments = {key: found.tensors[f"{key}.{name}"] for key in MOMENTS}
            # AdamW counts its steps on the CPU, wherever the weights are.
            optimizer.state[weight] = {k: v if k == "step" else v.to(weight.device) for k, v in moments.items()}
        self.step, self.history = found.step, found.state["history"]
        self._kl.coefficient = found.state["kl_coefficient"]
        self.best.take_up(found.state["looks"])

    def _all_weights(self) -> Iterator[tuple[str, Any]]:
        yield from self._weights.items()
        yield from ((f"value_head.{name}", weight) for name, weight in self.head.named_parameters())

    def _identity(self) -> dict[str, Any]:
        return {"run_id": self._task.run_id, "threads": torch.get_num_threads()}
