"""The losses of a preference pair, by the names that TRL gives them. Pure.

Shapes: B pairs. A gain is the log-probability of an answer under the policy minus that under the reference, in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.method_tables import Loss, Preference


@dataclass(frozen=True, slots=True)
class Gains:
    """What a loss sees of B pairs: the gains of both answers, and their lengths in tokens."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor

    @property
    def gap_B(self) -> Tensor:
        """How much more the chosen answer gained."""
        return self.chosen_B - self.rejected_B


def sigmoid(gains: Gains, beta: float, _: float) -> Tensor:
    """Direct preference optimisation, arXiv:2305.18290, eq. 7."""
    return -F.logsigmoid(beta * gains.gap_B)


def robust(gains: Gains, beta: float, flipped: float) -> Tensor:
    """The unbiased loss where a share `flipped` of the labels is the wrong way round: arXiv:2403.00409, eq. 12."""
    right, wrong = -F.logsigmoid(beta * gains.gap_B), -F.logsigmoid(-beta * gains.gap_B)
    return ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped)


def ipo(gains: Gains, beta: float, _: float) -> Tensor:
    """Identity preference optimisation, arXiv:2310.12036, eq. 17, on means over an answer's tokens."""
    gap_B = gains.chosen_B / gains.chosen_tokens_B - gains.rejected_B / gains.rejected_tokens_B
    return (gap_B - 1 / (2 * beta)) ** 2


def hinge(gains: Gains, beta: float, _: float) -> Tensor:
    """A margin of 1: arXiv:2305.10425, eq. 4 (SLiC), normalised as in arXiv:2309.06657."""
    return torch.relu(1 - beta * gains.gap_B)


def exo_pair(gains: Gains, beta: float, flipped: float) -> Tensor:
    """The reverse KL to labels smoothed by `flipped`: arXiv:2402.00856, eq. 16."""
    win_B, lose_B = F.logsigmoid(beta * gains.gap_B), F.logsigmoid(-beta * gains.gap_B)
    target = torch.tensor(flipped)
    return win_B.exp() * (win_B - torch.log1p(-target)) + lose_B.exp() * (lose_B - target.log())


def nca_pair(gains: Gains, beta: float, _: float) -> Tensor:
    """Noise contrastive alignment of a pair: arXiv:2402.05369."""
    chosen_B, rejected_B = beta * gains.chosen_B, beta * gains.rejected_B
    return -F.logsigmoid(chosen_B) - 0.5 * F.logsigmoid(-chosen_B) - 0.5 * F.logsigmoid(-rejected_B)


def bco_pair(gains: Gains, beta: float, _: float) -> Tensor:
    """Binary classifier optimisation of a pair: arXiv:2404.04656, without its shift."""
    return -F.logsigmoid(beta * gains.chosen_B) - F.logsigmoid(-beta * gains.rejected_B)


def sppo_hard(gains: Gains, beta: float, _: float) -> Tensor:
    """Self-play preference optimisation with a sure winner: arXiv:2405.00675, eq. 4.7."""
    return (gains.chosen_B - 0.5 / beta) ** 2 + (gains.rejected_B + 0.5 / beta) ** 2


def apo_zero(gains: Gains, beta: float, _: float) -> Tensor:
    """Anchored: chosen up, rejected down; for chosen answers better than the model's: arXiv:2408.06266, eq. 7."""
    return 1 - torch.sigmoid(beta * gains.chosen_B) + torch.sigmoid(beta * gains.rejected_B)


def apo_down(gains: Gains, beta: float, _: float) -> Tensor:
    """Anchored: both down, rejected more; for chosen answers worse than the model's: arXiv:2408.06266, eq. 8."""
    return torch.sigmoid(beta * gains.chosen_B) + 1 - torch.sigmoid(beta * gains.gap_B)


LOSSES: dict[Loss, Callable[[Gains, float, float], Tensor]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}


def pair_losses(gains: Gains, beta: float, preference: Preference) -> Tensor:
    """Return the loss of each pair, shape (B,)."""
    return LOSSES[preference.loss](gains, beta, preference.label_smoothing)
