"""The memory of one training device, in bytes, term by term.

Sources: mixed-precision AdamW keeps 16 bytes a trained parameter, and ZeRO splits them (arXiv:1910.02054); 4-bit NF4
with double quantisation takes 0.5 + 0.127/8 bytes a parameter (arXiv:2305.14314); activations are counted tensor by
tensor as the Llama layer of transformers keeps them for its backward pass, in the manner of arXiv:2205.05198. The sum
is an upper bound: gradients and activations are never all there at once unless gradients are accumulated.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from hone.plan.facts import GB, Shape

Adapter = Literal["full", "lora", "qlora"]
Sharding = Literal["none", "ddp", "zero2", "fsdp2", "zero3", "tensor_pipeline"]
Precision = Literal["fp32", "bf16"]

BYTES = {"fp32": 4, "bf16": 2}
FP32 = 4
NF4_BYTES = 0.5 + 0.127 / 8
ADAM_BYTES = 8
CUDA_CONTEXT = 0.9 * GB
LOGIT_COPIES, LOGIT_COPIES_TRL_CPU = 3, 9
"""Of the logits at the peak: themselves, their log-softmax, and the gradient. TRL, where it has no kernel of its own
(on CPUs), makes more of them for the figures that it logs: 8 to 9 were measured (docs/benchmarks.md)."""
GATHERED_LAYERS = 2
"""Layers whose whole weights a device holds at once where weights are split: the present one and the next."""
TENSOR_PARALLEL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a batch is trained on one device."""

    adapter: Adapter
    rank: int = 0
    targets: tuple[str, ...] = ()
    precision: Precision = "bf16"
    sharding: Sharding = "none"
    world: int = 1
    sequences: int = 1
    "Sequences of one step on one device; a pair is two."
    tokens: int = 1024
    "Length of a sequence."
    logit_tokens: int = 1024
    "Tokens of a device's batch whose logits exist at once."
    logit_copies: int = LOGIT_COPIES
    checkpointing: bool = False
    frozen_models: int = 0
    "Further models that only compute: a reference that no adapter can be switched off of, a reward model."
    generates: bool = False
    "Samples answers: keys and values are cached."
    is_gpu: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one device."""

    weights: float
    adapter: float
    gradients: float
    optimiser: float
    frozen_models: float
    activations: float
    logits: float
    cache: float
    runtime: float

    @property
    def total(self) -> float:
        """All terms."""
        return float(sum(asdict(self).values()))


def memory_of(shape: Shape, setup: Setup) -> Memory:
    """Return the memory of one device of the setup."""
    bytes_each = BYTES[setup.precision]
    trained = num_trained(shape, setup)
    is_full = setup.adapter == "full"
    split = shards(setup)
    base = base_bytes(shape, setup)
    frozen = setup.frozen_models * shape.num_parameters * bytes_each / split["frozen"]
    gathered = gathered_bytes(shape, setup)
    # Adapters are kept and stepped in fp32; full bf16 training has an fp32 copy for the optimiser to step on.
    gradient_bytes = bytes_each if is_full else FP32
    master = FP32 if is_full and setup.precision == "bf16" else 0
    return Memory(
        weights=base / split["weights"] + gathered,
        adapter=0 if is_full else trained * FP32 / split["gradients"],
        gradients=trained * gradient_bytes / split["gradients"],
        optimiser=trained * (ADAM_BYTES + master) / split["optimiser"],
        frozen_models=frozen,
        activations=activation_bytes(shape, setup),
        logits=logit_bytes(shape, setup),
        cache=cache_bytes(shape, setup) if setup.generates else 0,
        runtime=CUDA_CONTEXT if setup.is_gpu else 0,
    )


def num_trained(shape: Shape, setup: Setup) -> int:
    """Return the trained parameters: all of them, or rank * (inputs + outputs) for each adapted map."""
    if setup.adapter == "full":
        return shape.num_parameters
    maps = shape.linears()
    each = sum(setup.rank * sum(maps[name]) for name in setup.targets or tuple(maps) if name in maps)
    return shape.num_hidden_layers * each


def base_bytes(shape: Shape, setup: Setup) -> float:
    """Return the base's weights; embeddings, head and norms are never quantised."""
    bytes_each = BYTES[setup.precision]
    if setup.adapter != "qlora":
        return float(shape.num_parameters * bytes_each)
    return shape.num_linear * NF4_BYTES + (shape.num_parameters - shape.num_linear) * bytes_each


def shards(setup: Setup) -> dict[str, int]:
    """Return by how much each kind of state is divided among the devices."""
    n = setup.world
    whole = {"weights": 1, "frozen": 1, "gradients": 1, "optimiser": 1}
    if setup.sharding == "zero2":
        return whole | {"gradients": n, "optimiser": n}
    if setup.sharding in ("fsdp2", "zero3", "tensor_pipeline"):
        return dict.fromkeys(whole, n)
    return whole


def gathered_bytes(shape: Shape, setup: Setup) -> float:
    """Return the whole weights that pass through a device where each holds a part only."""
    if setup.sharding not in ("fsdp2", "zero3"):
        return 0.0
    layer = shape.num_linear / shape.num_hidden_layers * BYTES[setup.precision]
    embedding = shape.num_embedding * BYTES[setup.precision]
    return GATHERED_LAYERS * layer + embedding


def activation_bytes(shape: Shape, setup: Setup) -> float:
    """Return what the layers keep for the backward pass; with checkpointing their inputs, and one layer's all."""
    tokens = setup.sequences * setup.tokens
    layer = layer_bytes(shape, setup) * tokens
    if setup.sharding == "tensor_pipeline":
        layer /= TENSOR_PARALLEL
    if not setup.checkpointing:
        return shape.num_hidden_layers * layer
    return shape.num_hidden_layers * shape.hidden_size * BYTES[setup.precision] * tokens + layer


def layer_bytes(shape: Shape, setup: Setup) -> float:
    """Return the bytes that one layer keeps for each token.

    Two norms: the input in fp32, the output, and (where its weight is trained) the normalised input. Attention:
    queries, keys and values as attention reads them, its result and that result as the output map reads it. MLP: gate,
    up, the activated gate and their product. An adapter adds the result of its first half for each map.
    """
    each = BYTES[setup.precision]
    hidden, query, wide = shape.hidden_size, shape.query_width, shape.intermediate_size
    # On the CPU keys and values are repeated for each query head before attention; GPU kernels read them as they are.
    keys = shape.key_width if setup.is_gpu else query
    norms = 2 * hidden * (FP32 + each * (2 if setup.adapter == "full" else 1))
    attention = each * (query + 2 * keys + 2 * query) + FP32 * shape.num_attention_heads
    mlp = each * 4 * wide
    adapter = 0 if setup.adapter == "full" else FP32 * setup.rank * (len(setup.targets) or len(shape.linears()))
    return norms + attention + mlp + adapter


def logit_bytes(shape: Shape, setup: Setup) -> float:
    """Return the logits of the tokens whose logits exist at once, in fp32, with their copies."""
    return float(setup.logit_copies * FP32 * setup.logit_tokens * shape.vocab_size)


def cache_bytes(shape: Shape, setup: Setup) -> float:
    """Return the keys and values of the answers being sampled."""
    each = BYTES[setup.precision]
    return float(2 * shape.num_hidden_layers * shape.key_width * each * setup.sequences * setup.tokens)
