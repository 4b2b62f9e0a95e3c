"""The words of a rollout: its phases, its policy, and what a change of phase carries.

A policy is read from TOML, frozen with its hash when a rollout starts, and never changed after that.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hone.errors import ConfigError, Conflict
from hone.settings import explain


class Phase(StrEnum):
    """Where a rollout stands."""

    CREATED = "created"
    "The canary is being loaded; it gets no traffic."
    SHADOW = "shadow"
    CANARY = "canary"
    PAUSED = "paused"
    "A person holds the weight; only safety moves it, downwards."
    PROMOTING = "promoting"
    "`stable` points to the new version; routers are being told."
    PROMOTED = "promoted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


FINAL = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK})


class Action(StrEnum):
    """What a person may ask of a live rollout."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    PAUSE = "pause"
    RESUME = "resume"
    APPROVE = "approve"
    "Let a rollout whose policy asks for approval meet traffic."


class Ledger(StrEnum):
    """How the budget `alpha` of false promotions is shared among successive rollouts; see `hone.rollout_ledger`."""

    E_LOND = "e-lond"
    "`alpha` bounds the false discovery rate: the expected share of wrong ones among all promotions ever made."
    MONTHLY = "monthly"
    "`alpha` bounds the chance of any false promotion in a calendar month (UTC)."
    FIXED = "fixed"
    "`alpha` bounds the chance of a false promotion in each rollout, however many there are."


AUTOMATIC_PAUSES = frozenset({"drift", "stale"})
"""First words of the reasons for which the controller pauses a rollout by itself."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The next phase of a rollout, the plan that goes with it, and why."""

    phase: Phase
    stage: int
    weight: float
    reason: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A closed user; `value` in [0, 1] is None for one who gave no outcome."""

    position: int
    track: str
    stage: int
    value: float | None
    closed_at: datetime
    measures: Mapping[str, float] = field(default_factory=dict)
    "Of the first answer, each in [0, 1], by the name that a guardrail gives them; what is unknown is left out."


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """Users whom one stage assigned to each arm, and the canary's intended share of them."""

    stage: int
    weight: float
    canary: int
    stable: int


@dataclass(frozen=True, slots=True)
class ArmHealth:
    """Answers of one arm in a stretch of time. A canary's failure that stable answered is the canary's."""

    num: int = 0
    num_failed: int = 0
    p95_latency_ms: float | None = None


class Table(BaseModel):
    """A table of the policy file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Table):
    """One step of the canary's weight."""

    weight: float = Field(gt=0, le=0.5)
    "Share of users that the canary answers."
    min_users: int = Field(ge=1)
    "Rated canary users in this stage before the next one."
    min_dwell_s: float = Field(0, ge=0)
    stable_per_canary: int = Field(1, ge=1, le=50)
    "Stable users against whose mean each canary user is compared."


MEASURE = r"(outcome|signal):[\w.-]+"


class Guard(Table):
    """A measure of users' first answers that must not get worse by more than a margin, tested as the goal is.

    The canary is rolled back once the wealth against "it moved by at most the margin" reaches 1/alpha_guard.
    """

    metric: str = Field(pattern=rf"^(refused|regenerated|length|reward|{MEASURE})$")
    "refused, regenerated: shares of users · length: characters, as a share of `length_chars` · reward · outcomes."
    max_rise: float | None = Field(None, ge=0, lt=1)
    "Points by which the canary's mean may be above stable's, of 1."
    max_fall: float | None = Field(None, ge=0, lt=1)

    @model_validator(mode="after")
    def check_direction(self) -> Self:
        """Refuse a guard that guards nothing, and one that hides two."""
        if (self.max_rise is None) == (self.max_fall is None):
            raise ValueError(
                f"guard on {self.metric}: give one of max_rise and max_fall; two guards may share a metric"
            )
        return self

    @property
    def margin(self) -> float:
        """The move that is allowed."""
        return self.max_rise if self.max_rise is not None else self.max_fall or 0.0

    @property
    def sign(self) -> float:
        """1.0 where a rise is worse, -1.0 where a fall is."""
        return 1.0 if self.max_rise is not None else -1.0

    @property
    def complaint(self) -> str:
        """What people read when it fires."""
        return f"{self.metric} {'rose' if self.sign > 0 else 'fell'} by more than {self.margin:g}"


class Guardrails(Table):
    """What takes the canary out of traffic at once, whatever people's votes say."""

    window_s: float = Field(600, gt=0)
    min_responses: int = Field(100, ge=1)
    "Answers of each arm in the window before its latency may act."
    min_failed: int = Field(5, ge=1)
    "Failed answers of the canary in the window before its error rate may act."
    max_error_excess: float = Field(0.02, gt=0, le=1)
    "Canary's share of failed answers above stable's, beyond chance (Wilson, z = 3)."
    max_latency_ratio: float = Field(2.0, gt=1)
    "Canary's 95th percentile of latency over stable's."
    latency_slack_ms: float = Field(50, ge=0)
    "Canary may be this much slower whatever the ratio says."
    ready_timeout_s: float = Field(900, gt=0)
    "Seconds that a new canary has to load."
    max_unready_s: float = Field(30, ge=0)
    "Seconds for which a canary with traffic may be away."
    alpha_guard: float = Field(0.01, gt=0, lt=1)
    "Greatest chance that each of `metrics` takes a canary out that is within its margin."
    length_chars: int = Field(4000, ge=1)
    "Characters of an answer that count as length 1; longer ones do too."
    refusal: str = Field(r"^\W*(i('m| am) (so |very )?sorry|i (cannot|can't|can not|won't)|as an ai)", min_length=1)
    "Regular expression (Postgres, case ignored) of an answer that refuses; a content filter's stop counts as well."
    metrics: tuple[Guard, ...] = ()


class Policy(Table):
    """When a rollout advances, promotes and rolls back."""

    version: int = Field(1, ge=1, le=1)
    goal: str = Field("thumbs", pattern=rf"^(thumbs|reward|{MEASURE})$")
    "The score in [0, 1] that is compared: thumbs, a reward model's, or a named outcome or signal."
    alpha: float = Field(0.05, gt=0, lt=1)
    "Budget of wrong promotions, of models that are not better by more than -non_inferiority; `ledger` shares it out."
    ledger: Ledger = Ledger.E_LOND
    approval: bool = False
    "A person must approve the rollout before it meets traffic: `hone rollout approve`."
    alpha_harm: float = Field(0.05, gt=0, lt=1)
    "Greatest chance to roll back for harm a model that does none."
    alpha_check: float = Field(0.001, gt=0, lt=1)
    "Greatest chance that each check of the experiment itself (sample ratio, vote propensity) fires wrongly."
    non_inferiority: float = Field(0.0, ge=0, lt=1)
    "Above 0 a canary is promoted that is proven not to be worse by this much, and is harmful only if it is."
    max_propensity_gap: float = Field(0.05, ge=0, lt=1)
    "Arms may differ by this much in the share of users who vote."
    promote_weight: float = Field(0.25, gt=0, le=0.5)
    "Smallest weight in which a promotion may be decided."
    min_canary_users: int = Field(250, ge=1)
    "Rated canary users in stages of at least `promote_weight` before a promotion."
    horizon_pairs: int = Field(6000, ge=1)
    "Pairs after which an undecided rollout is rolled back."
    horizon_s: float = Field(14 * 86_400, gt=0)
    outcome_window_s: float = Field(3600, gt=0)
    "Seconds after a user's first answer when the user is closed: the same for both arms."
    settle_s: float = Field(30, ge=0)
    "How much later than others a stored row may arrive and still be seen in time."
    block_s: float = Field(3600, gt=0)
    "Users are compared only when they closed in the same stretch of this length."
    shadow_s: float = Field(0, ge=0)
    "Seconds of shadow traffic before the first stage; 0: none."
    min_shadow_responses: int = Field(100, ge=1)
    stale_s: float = Field(6 * 3600, gt=0)
    "Seconds without any rated user after which the rollout pauses by itself: feedback does not arrive."
    max_drift_looks: int = Field(2, ge=1)
    "Looks in a row that may find a router on another plan; each sends ours again, the next one pauses."
    bake_s: float = Field(0, ge=0)
    "Seconds for which a promotion is watched in reverse; 0: not at all. It sees users after `outcome_window_s`."
    holdback: float = Field(0.05, gt=0, le=0.5)
    "Share of users who get the former stable model meanwhile."
    reverse: bool = False
    "Of a watch, which hone starts by itself: the canary is the former stable model."
    guardrails: Guardrails = Guardrails()
    duel_share: float = Field(0.0, ge=0, le=1)
    "Chance, at a weight of a quarter or more, that the first regenerate of a turn goes to the other arm."
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def check_stages(self) -> Self:
        """Refuse weights that do not grow, and policies that could never promote."""
        weights = [stage.weight for stage in self.stages]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise ValueError(f"stages.weight must grow from stage to stage, got {weights}")
        if weights[-1] < self.promote_weight:
            raise ValueError(f"the last stage's weight {weights[-1]} is below promote_weight {self.promote_weight}")
        return self

    def digest(self) -> str:
        """Return the SHA-256 of the policy's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_policy(values: Mapping[str, Any]) -> Policy:
    """Return the policy that `values` describe.

    Raises:
        ConfigError: a key is unknown, missing or out of range; names key, value and remedy.
    """
    try:
        return Policy.model_validate(dict(values))
    except ValidationError as error:
        known = [key for table in (Stage, Guard, Guardrails, Policy) for key in table.model_fields]
        raise ConfigError(explain(error, "the rollout policy", known=known, page="docs/rollout.md")) from None


IN_REVERSE = {Action.PROMOTE: Action.ROLLBACK, Action.ROLLBACK: Action.PROMOTE}


def watch_policy(policy: Policy) -> Policy:
    """Return the policy of the reverse watch that follows a promotion under `policy`.

    Its canary is the former stable model, with `holdback` of the users. It is promoted back once it is proven better
    by more than `non_inferiority`, which a watch over an equal model does with a chance of at most `alpha_harm`.
    """
    stage = Stage(weight=policy.holdback, min_users=1, stable_per_canary=min(50, round(0.5 / policy.holdback)))
    changes = {
        "reverse": True,
        "alpha": policy.alpha_harm,
        "ledger": Ledger.FIXED,
        "approval": False,
        "stages": (stage,),
        "promote_weight": policy.holdback,
        "min_canary_users": 1,
        "horizon_s": policy.bake_s,
        "bake_s": 0.0,
        "shadow_s": 0.0,
        "duel_share": 0.0,
    }
    return Policy.model_validate(policy.model_dump() | changes)


def asked(action: Action, phase: Phase, stage: int, weight: float, *, reverse: bool = False) -> Transition:
    """Return the transition that a person's `action` makes of a rollout that stands so.

    Of a reverse watch, rolling back means back to the former model, and promoting means to keep the new one.

    Raises:
        Conflict: the phase does not allow it; the message says which phases do.
    """
    live = (Phase.SHADOW, Phase.CANARY)
    held = Phase.CANARY if weight > 0 else Phase.SHADOW
    table = {
        Action.PROMOTE: ((*live, Phase.PAUSED), Transition(Phase.PROMOTING, stage, 0.0, "operator")),
        Action.ROLLBACK: (
            (Phase.CREATED, *live, Phase.PAUSED, Phase.PROMOTING),
            Transition(Phase.ROLLING_BACK, stage, 0.0, "operator"),
        ),
        Action.PAUSE: (live, Transition(Phase.PAUSED, stage, weight, "operator")),
        Action.RESUME: ((Phase.PAUSED,), Transition(held, stage, weight, "operator")),
        Action.APPROVE: ((Phase.CREATED,), Transition(Phase.CREATED, stage, 0.0, "operator")),
    }
    allowed, change = table[IN_REVERSE.get(action, action) if reverse else action]
    if phase not in allowed:
        raise Conflict(f"cannot {action} a rollout that is {phase}: it must be {' or '.join(allowed)}")
    return change
