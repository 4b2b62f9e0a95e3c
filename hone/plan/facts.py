"""What a plan starts from: labels, goal, the model's shape and the hardware."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hone.errors import ConfigError

Goal = Literal["style", "domain", "structure", "verifiable"]
Fact = str | int | float
GIB = 1 << 30
GB = 10**9


class Frozen(BaseModel):
    """A value; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Labels(Frozen):
    """How many labels of each kind there are to train on."""

    pairs: int = Field(0, ge=0)
    "Preference pairs, those from edits included."
    edits: int = Field(0, ge=0)
    "Pairs whose chosen side is a person's correction."
    thumbs_up: int = Field(0, ge=0)
    "Lone thumbs: on answers that are in no pair."
    thumbs_down: int = Field(0, ge=0)
    demonstrations: int = Field(0, ge=0)
    "Questions with a good answer, such as imported instructions."
    off_policy: int = Field(0, ge=0)
    "Pairs and lone thumbs on answers that the stable model would not have given."
    noise: float | None = Field(None, ge=0, le=1)
    "Measured share of flipped labels; None: not measured."

    @property
    def thumbs(self) -> int:
        """Lone thumbs of both kinds."""
        return self.thumbs_up + self.thumbs_down

    @property
    def total(self) -> int:
        """All labels."""
        return self.pairs + self.thumbs + self.demonstrations

    def facts(self) -> dict[str, Fact]:
        """Return what the rules may ask."""
        return {
            "pairs": self.pairs,
            "edit_share": self.edits / self.total if self.total else 0.0,
            "thumb_share": self.thumbs / self.total if self.total else 0.0,
            "demonstrations": self.demonstrations,
            "noise": self.noise or 0.0,
        }


class Shape(BaseModel):
    """The shape of a Llama-like decoder, under the names of transformers' `config.json`; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    tie_word_embeddings: bool = False

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def key_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.query_width // self.num_attention_heads * (self.num_key_value_heads or self.num_attention_heads)

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return each linear map of one layer as (inputs, outputs)."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.key_width),
            "v_proj": (hidden, self.key_width),
            "o_proj": (self.query_width, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }

    @property
    def num_linear(self) -> int:
        """Parameters of the layers' linear maps: what 4-bit quantisation packs."""
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs in self.linears().values())

    @property
    def num_embedding(self) -> int:
        """Parameters of the embedding, and of the head where that is not the same matrix."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def num_parameters(self) -> int:
        """All parameters: linear maps, embeddings, two norms a layer and the last one. Biases are left out."""
        return self.num_linear + self.num_embedding + self.hidden_size * (2 * self.num_hidden_layers + 1)


class Device(Frozen):
    """One accelerator (or one CPU core with the machine's memory)."""

    memory_gb: float = Field(gt=0)
    tflops: float = Field(gt=0)
    "Matrix speed in the precision that training uses, as the maker states it."
    bandwidth_gbs: float = Field(gt=0)
    mfu: float = Field(gt=0, le=1)
    "Share of `tflops` that training reaches."
    usd_per_hour: float = Field(ge=0)


class Hardware(Frozen):
    """What the run may use. Zero GPUs: the CPU of this machine."""

    name: str
    device: Device
    gpus: int = Field(ge=0)

    @property
    def world(self) -> int:
        """Devices that train side by side."""
        return max(1, self.gpus)

    def facts(self) -> dict[str, Fact]:
        """Return what the rules may ask."""
        return {"gpus": self.gpus, "gpu_gb": self.device.memory_gb if self.gpus else 0}


class Lengths(Frozen):
    """Mean tokens of a prompt and of an answer, and the longest sequence that is kept."""

    prompt: int = Field(150, ge=1)
    answer: int = Field(250, ge=1)
    longest: int = Field(1024, ge=8)


def this_machine(core: Device, cores: int | None = None) -> Device:
    """Return this machine as one device: its memory, and the speed of so many of its cores (None: all)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return core.model_copy(
        update={"memory_gb": round(memory, 1), "tflops": core.tflops * (cores or os.cpu_count() or 1)}
    )


def shape_of(values: Mapping[str, Any], origin: str) -> Shape:
    """Return the shape. Raises ConfigError where `values` are no Llama-like configuration."""
    try:
        return Shape.model_validate(values)
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ConfigError(f"{origin} does not describe a Llama-like model (wrong or missing: {missing})") from None


def read_shape(directory: Path) -> Shape:
    """Return the shape in a model directory's `config.json`. Raises ConfigError."""
    path = directory / "config.json"
    try:
        return shape_of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} ({error}): name a folder that transformers wrote") from None
