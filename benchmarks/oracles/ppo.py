"""Our PPO equations against TRL 1.12's own training loop, the last TRL that has one. A development script.

    uv pip install --target DIR --no-deps trl==1.12.0
    PYTHONPATH=DIR .venv/bin/python -m benchmarks.oracles.ppo

TRL's loop draws answers from a tiny model, scores them with a tiny reward model, and learns. Wherever it has computed
rewards, advantages or losses, ours are computed from the same inputs and compared. Answers have one length: TRL puts
the score of a shorter one behind its last token, and we put it at the last token (arXiv:1909.08593, eq. 2).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from tests.support.tiny_model import make_tiny_model
from tests.support.training import row
from training.policy import load_model
from training.ppo_math import advantages, policy_loss, token_rewards, value_loss, whitened

WANTED, TOLERANCE = "1.12.", 1e-5
CONFIG: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 4,
    "total_episodes": 24,
    "response_length": 12,
    "learning_rate": 1e-2,
    "kl_coef": 0.1,
    "gamma": 0.97,
    "lam": 0.9,
    "whiten_rewards": True,
    "temperature": 0.8,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "num_sample_generations": 0,
    "save_strategy": "no",
    "disable_tqdm": True,
}


class Comparison:
    """The largest difference of each quantity, relative to its own largest value."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.number = 0
        self.largest_ratio = 0.0

    def see(self, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        gap = float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=1e-3))
        self.found[name] = max(self.found.get(name, 0.0), gap)
        self.number += 1


def watch(trainer_module: Any, comparison: Comparison) -> None:
    """Compare whenever TRL's loop whitens or takes the mean of a loss, from the variables of its own frame."""
    plain_whiten, plain_mean = trainer_module.masked_whiten, trainer_module.masked_mean

    def whiten(values: Any, mask: Any, shift_mean: bool = True) -> Any:
        theirs = plain_whiten(values, mask, shift_mean)
        at = sys._getframe(1).f_locals
        config, grid = at["args"], mask.float()
        # TRL divides by n - 1, we divide by n: at least a batch of samples, so the difference is a constant factor.
        bessel = ((grid.sum() - 1) / grid.sum()).sqrt()
        mean = (values * grid).sum() / grid.sum()
        ours = whitened(values, grid, centre=shift_mean)
        shift = 0.0 if shift_mean else mean
        comparison.see("whitened", (ours - shift) * bessel + shift, theirs)
        if not shift_mean:
            rewards = token_rewards(at["scores"], at["logprobs"], at["ref_logprobs"], grid, config.kl_coef)
            comparison.see("token_rewards", rewards, values)
        else:
            ours = advantages(at["rewards"], at["values"], grid, config.gamma, config.lam)
            comparison.see("advantages", ours, values)
        return theirs

    def mean(values: Any, mask: Any, axis: Any = None) -> Any:
        theirs = plain_mean(values, mask, axis)
        at = sys._getframe(1).f_locals
        if values is at.get("pg_loss_max"):
            new, old = at["new_logprobs"], at["mb_logprobs"]
            ours = policy_loss(new, old, at["mb_advantage"], mask.float(), at["args"].cliprange)
            comparison.see("policy_loss", ours, theirs)
            comparison.largest_ratio = max(comparison.largest_ratio, float((new - old).detach().exp().max()))
        if values is at.get("vf_loss_max") and "vf_loss" not in at:
            ours = value_loss(at["vpred"], at["mb_values"], at["mb_return"], mask.float(), at["args"].cliprange_value)
            comparison.see("value_loss", ours, 0.5 * theirs)
        return theirs

    trainer_module.masked_whiten, trainer_module.masked_mean = whiten, mean


def main() -> int:
    """Run TRL's loop and print how far ours is from it; exit code 1 where it is not the same."""
    if not trl.__version__.startswith(WANTED):
        print(f"trl is {trl.__version__}, this needs 1.12: see the head of this file", file=sys.stderr)
        return 2
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = make_tiny_model(Path(folder) / "base")
        model, tokenizer = load_model(base)
        torch.manual_seed(1)
        reward, value = (
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32) for _ in "ab"
        )
        ids = [
            tokenizer.apply_chat_template(row(k)["prompt"], add_generation_prompt=True, return_dict=False)
            for k in range(24)
        ]
        comparison = Comparison()
        watch(ppo_trainer, comparison)
        PPOTrainer(
            PPOConfig(folder, stop_token=None, **CONFIG),
            tokenizer,
            model,
            None,
            reward,
            Dataset.from_dict({"input_ids": ids}),
            value,
            eval_dataset=Dataset.from_dict({"input_ids": ids[:8]}),
        ).train()
    found = {"comparisons": comparison.number, "largest_relative_gap": comparison.found}
    print(json.dumps({**found, "largest_ratio": comparison.largest_ratio}))
    return int(not comparison.found or max(comparison.found.values()) > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
