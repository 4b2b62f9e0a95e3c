"""The tables of a run's spec that only some methods read. No torch here."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Loss = Literal[
    "sigmoid", "robust", "ipo", "hinge", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"
]


MAX_REPLAYED = 0.8
"""Largest share of rows that are not new."""


class Table(BaseModel):
    """A table of the spec; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Table):
    """The adapter that is trained and then merged (arXiv:2106.09685)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    targets: str | tuple[str, ...] = "all-linear"


class StopRules(Table):
    """When a run goes wrong. Each rule looks at means over the last `window` steps, and only at what was measured."""

    window: int = Field(10, ge=1)
    max_chosen_drop: float = Field(0.5, gt=0)
    "Fall of the chosen answers' log-probability below the reference's, relative to it (likelihood displacement)."
    max_margin: float = Field(15.0, gt=0)
    "Mean implicit reward margin; beyond it the policy has left the reference behind."
    max_kl: float = Field(20.0, gt=0)
    "Nats between policy and reference in one answer, of samples (PPO, RLOO, GRPO)."
    max_end_rate_drop: float = Field(0.2, gt=0, le=1)
    "Fall of the share of samples that end by themselves, below that of the first window."
    min_distinct_share: float = Field(0.2, ge=0, le=1)
    "Distinct ones among a window's samples, relative to the first window: one answer for all is a collapse."
    max_held_out_drop: float = Field(0.1, ge=0)
    "Fall of the held-out signal below that of the first window while the reward rises: reward hacking."
    patience: int | None = Field(None, ge=1)
    """Looks at the dev rows, one a checkpoint, without a lower loss (PPO, RLOO, GRPO: a higher score) until the run
    stops; null: dev rows are not used."""


class Preference(Table):
    """How DPO turns a pair into a loss; `sigmoid` is arXiv:2305.18290, the others by their names in TRL."""

    loss: Loss = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    "Share of pairs that are labelled the wrong way round; read by `robust` (arXiv:2403.00409) and `exo_pair` only."

    @model_validator(mode="after")
    def _smoothing_is_read(self) -> Self:
        if self.label_smoothing and self.loss not in ("robust", "exo_pair"):
            raise ValueError(f'label_smoothing does nothing with loss = "{self.loss}": use loss = "robust"')
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError('loss = "exo_pair" needs label_smoothing > 0')
        return self


class Replay(Table):
    """What is mixed into the training rows against forgetting (SFT, DPO, KTO); see training/mix.py."""

    general: str = "general"
    "General instructions: label of an import (its newest dataset counts), id of a dataset, or a directory."
    general_share: float = Field(0.1, ge=0, le=0.5)
    "Of the rows that are trained on."
    older_share: Annotated[float, Field(ge=0, le=0.5)] | Literal["all"] = 0.2
    "Share of rows that the base has learnt from before; `all`: every one that the dataset has."

    @model_validator(mode="after")
    def _leaves_something_new(self) -> Self:
        older = 0.0 if self.older_share == "all" else self.older_share
        if self.general_share + older > MAX_REPLAYED:
            raise ValueError(f"general_share and older_share leave less than {1 - MAX_REPLAYED:.0%} for what is new")
        return self


class Sft(Table):
    """How demonstrations are put into batches."""

    packing: bool = False
    "Several short conversations share a row; none sees another, answers alone count."


class Reward(Table):
    """How a reward model is trained (arXiv:2203.02155) and when it is no use."""

    objectives: dict[str, float] = Field(default_factory=dict)
    "Objective -> its weight in the sum; each gets a model of its own, from the rows that name it. Empty: one model."
    margin: float = Field(0.0, ge=0)
    "Margin that a pair of weight 1 must be won by; others in proportion to their weight (arXiv:2307.09288, eq. 2)."
    center: float = Field(0.01, ge=0)
    "Pull of the rewards' mean to 0 (arXiv:2312.09244)."
    min_accuracy: float = Field(0.55, ge=0.5, lt=1)
    "Of held-out pairs; below it, or with equal rewards for all answers, the run fails as collapsed."
    min_held_out: int = Field(20, ge=1)
    "With fewer held-out pairs the training pairs are used, and the report says so."


class Kto(Table):
    """How good and bad answers are weighed against each other (arXiv:2402.01306)."""

    desirable_weight: float | None = Field(None, gt=0)
    undesirable_weight: float | None = Field(None, gt=0)
    "Null: computed, so that both classes weigh the same."
    min_rows: int = Field(50, ge=1)
    "Of either class."


class Samples(Table):
    """How answers are drawn while training (PPO, RLOO, GRPO)."""

    per_prompt: int = Field(4, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(160, ge=1)


class Rewards(Table):
    """What answers are rewarded for; the sum of models and functions, each times its weight."""

    models: dict[str, float] = Field(default_factory=dict)
    "Directory of a reward model (or of a run that made some) -> weight."
    functions: dict[str, float] = Field(default_factory=dict)
    "`module:function` -> weight; called with prompts=…, completions=…, returns a number for each."
    held_out: str | None = None
    "`module:function` that the policy is never rewarded for; it falling while the reward rises is reward hacking."


class Ppo(Table):
    """Proximal policy optimisation (arXiv:1707.06347) of a language model (arXiv:1909.08593)."""

    epochs: int = Field(2, ge=1)
    "Passes over one batch of samples."
    minibatch_size: int = Field(8, ge=2)
    clip: float = Field(0.2, gt=0, lt=1)
    value_clip: float = Field(0.2, gt=0)
    value_learning_rate: float = Field(1e-3, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, gt=0, le=1)
    kl_coefficient: float = Field(0.05, ge=0)
    kl_target: float = Field(6.0, gt=0)
    "Nats in one answer that the coefficient steers to."
    kl_horizon: float = Field(10_000.0, gt=0)
    "Samples over which it does."
    whiten_rewards: bool = True
    missing_end_penalty: float = Field(1.0, ge=0)
    "Taken from the reward of a sample that was cut off."
    length_penalty: float = Field(0.0, ge=0)
    "Taken for each token beyond `free_tokens`."
    free_tokens: int = Field(0, ge=0)
