"""The equations of PPO for a language model, one function each. Pure.

A state is a prompt and the tokens written so far, an action is the next token. Shapes: B samples, T tokens of the
longest answer; mask_BT is 1 on the tokens that were written (the end token included) and 0 behind them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KL_STEP = 0.2
"""Largest relative error that moves the KL coefficient: arXiv:1909.08593, section 2.2."""


def token_rewards(scores_B: Tensor, logps_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, pull: float) -> Tensor:
    """Return the reward of each token: the answer's score at its last one, minus pull · log(policy / reference).

    arXiv:1909.08593, eq. 2; its sum over an answer is the score minus `pull` times an estimate of the KL divergence.
    """
    rewards_BT = -pull * (logps_BT - reference_BT) * mask_BT
    last_B = mask_BT.sum(1).long() - 1
    rewards_BT[torch.arange(len(scores_B)), last_B] += scores_B
    return rewards_BT


def advantages(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, decay: float) -> Tensor:
    """Return generalised advantage estimates (arXiv:1506.02438, eq. 16); what follows an answer is worth 0.

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γ λ A_{t+1}, with λ = `decay`.
    """
    following_B = torch.zeros(len(rewards_BT))
    next_value_B = torch.zeros(len(rewards_BT))
    found_BT = torch.zeros_like(rewards_BT)
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        following_B = (delta_B + gamma * decay * following_B) * mask_BT[:, t]
        next_value_B = values_BT[:, t] * mask_BT[:, t]
        found_BT[:, t] = following_B
    return found_BT


def whitened(values_BT: Tensor, mask_BT: Tensor, *, centre: bool = True) -> Tensor:
    """Return the masked values with deviation 1, and with mean 0 or (`centre` false) the mean they had."""
    number = mask_BT.sum()
    mean = (values_BT * mask_BT).sum() / number
    variance = (((values_BT - mean) ** 2) * mask_BT).sum() / number
    found_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return (found_BT if centre else found_BT + mean) * mask_BT


def policy_loss(logps_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float) -> Tensor:
    """Return the clipped objective, negated, as the mean over written tokens: arXiv:1707.06347, eq. 7."""
    ratio_BT = torch.exp(logps_BT - old_BT)
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    gain_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return -(gain_BT * mask_BT).sum() / mask_BT.sum()


def value_loss(values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float) -> Tensor:
    """Return half the squared error of the values, the worse of clipped and not: arXiv:2005.12729, section 3."""
    clipped_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    error_BT = torch.maximum((values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2)
    return 0.5 * (error_BT * mask_BT).sum() / mask_BT.sum()


@dataclass(slots=True)
class KlController:
    """Steers the pull to the reference so that answers stay about `target` nats from it: arXiv:1909.08593, 2.2."""

    coefficient: float
    target: float
    horizon: float

    def update(self, kl: float, num_samples: int) -> None:
        """Take the mean KL of `num_samples` answers into account."""
        error = max(-KL_STEP, min(KL_STEP, kl / self.target - 1))
        self.coefficient *= 1 + error * num_samples / self.horizon
