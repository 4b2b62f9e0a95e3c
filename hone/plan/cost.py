"""How long a stage takes, and what it costs: floating-point operations over the speed that training reaches.

A forward pass takes 2 operations a parameter and token, the backward pass 4 (arXiv:2001.08361), of which an adapter on
a frozen base saves the half that would make weight gradients; attention adds its own. Sampling reads all weights for
each token of a batch, so it is bound by memory bandwidth.
"""

from dataclasses import dataclass
from math import ceil

from hone.plan.facts import Hardware, Lengths, Shape
from hone.plan.fit import SAMPLING, SEQUENCES, Fit
from hone.plan.memory import base_bytes

TERA, GIGA = 10**12, 10**9
BANDWIDTH_REACHED = 0.6
REFERENCE_METHODS = ("dpo", "kto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a stage takes on the whole hardware."""

    tokens: int
    steps: int
    training_s: float
    sampling_s: float
    usd: float

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.training_s + self.sampling_s


def cost_of(
    shape: Shape, fit: Fit, method: str, num_labels: int, epochs: float, lengths: Lengths, hardware: Hardware
) -> Cost:
    """Return the time and price of `epochs` passes over `num_labels` labels of mean length."""
    length = min(lengths.prompt + lengths.answer, lengths.longest)
    tokens = round(num_labels * epochs * SEQUENCES[method] * length)
    device = hardware.device
    reached = device.tflops * TERA * device.mfu * hardware.world
    training_s = tokens * operations_per_token(shape, fit, method, length) / reached
    sampling_s = 0.0
    if method in SAMPLING:
        rounds = ceil(num_labels * epochs / (fit.labels_per_device * hardware.world))
        each = base_bytes(shape, fit.setup) / (device.bandwidth_gbs * GIGA * BANDWIDTH_REACHED)
        sampling_s = rounds * lengths.answer * each
    usd = (training_s + sampling_s) / 3600 * hardware.world * device.usd_per_hour
    steps = max(1, round(num_labels * epochs / fit.batch))
    return Cost(tokens=tokens, steps=steps, training_s=training_s, sampling_s=sampling_s, usd=usd)


def operations_per_token(shape: Shape, fit: Fit, method: str, length: int) -> float:
    """Return forward and backward operations of one token, with what checkpointing and frozen models add."""
    forward = forward_operations(shape, length)
    backward = 2 * forward if fit.setup.adapter == "full" else forward
    again = forward if fit.setup.checkpointing else 0
    frozen = fit.setup.frozen_models + (1 if method in REFERENCE_METHODS and not fit.setup.frozen_models else 0)
    if method in SAMPLING and fit.setup.adapter != "full":
        frozen += 1
    return forward + backward + again + frozen * forward


def forward_operations(shape: Shape, length: float) -> float:
    """Return the operations of one token's forward pass in a sequence of `length` tokens."""
    # Half of the attention scores are masked: queries times keys, then times values.
    attention = 2 * shape.num_hidden_layers * shape.query_width * length
    return 2 * (shape.num_linear + shape.vocab_size * shape.hidden_size) + attention
