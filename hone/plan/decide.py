"""Makes a plan: which stages, what is trained, how it is spread, whether it fits, what it costs, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from hone.errors import ConfigError
from hone.plan.cost import Cost, cost_of
from hone.plan.facts import GB, Fact, Goal, Hardware, Labels, Lengths, Shape
from hone.plan.fit import SEQUENCES, Fit, fits, gpus_needed, limit_bytes, setup_for, smallest_memory
from hone.plan.memory import Adapter, Memory, Setup, Sharding
from hone.plan.tables import Minimum, Rule, Tables, first

FALLBACKS: dict[str, tuple[Adapter, ...]] = {
    "full": ("full", "lora", "qlora"),
    "lora": ("lora", "qlora"),
    "qlora": ("qlora",),
}
FALLBACK_RANK = 16
SPLIT = ("fsdp2", "zero3", "tensor_pipeline")
"""Ways to spread that give each device a part of the weights only."""
PREFERENCE_METHODS = ("dpo", "reward_model", "ppo", "rloo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What a person decides against the tables, and why."""

    stages: tuple[str, ...] = ()
    adapter: Adapter | None = None
    rank: int | None = None
    targets: tuple[str, ...] = ()
    reason: str = ""

    def check(self) -> None:
        """Raise ConfigError where something is overridden without a reason, or with an unknown method."""
        if (self.stages or self.adapter or self.rank or self.targets) and not self.reason.strip():
            raise ConfigError("an override needs its reason: add --reason, it is kept in the plan")
        for stage in self.stages:
            if stage not in SEQUENCES:
                raise ConfigError(f"{stage!r} is not a method: choose among {', '.join(SEQUENCES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that a plan depends on, beside the tables."""

    labels: Labels
    shape: Shape
    hardware: Hardware
    goal: Goal = "style"
    lengths: Lengths = field(default_factory=Lengths)
    model: str = "?"
    max_hours: float | None = None
    max_usd: float | None = None
    override: Override = Override()


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to spread a stage, with the least memory that it takes: one label on each device, checkpointing on."""

    adapter: Adapter
    sharding: Sharding
    least: Memory
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training of the plan. Without `fit` it does not fit, and `refusals` say why."""

    method: str
    num_labels: int
    minimum: int
    adapter: Adapter
    rank: int
    targets: str | tuple[str, ...]
    loss: str | None
    label_smoothing: float
    learning_rate: float
    epochs: float
    fit: Fit | None
    cost: Cost | None
    options: tuple[Option, ...]
    why: tuple[tuple[str, str], ...]
    "(what was decided, because of what)"

    @property
    def below_minimum(self) -> bool:
        """Fewer labels than advised."""
        return self.num_labels < self.minimum


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer: stages in order, and what forbids them."""

    question: Question
    road: Rule | None
    stages: tuple[Stage, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing forbids the plan."""
        return not self.refusals


def make_plan(question: Question, tables: Tables) -> Plan:
    """Return the plan; what will not fit, or cannot be learned from these labels, is refused with its reason.

    Raises:
        ConfigError: an override has no reason, or a rule asks for an unknown fact.
    """
    question.override.check()
    facts = question.labels.facts() | question.hardware.facts()
    facts |= {"goal": question.goal, "params_b": question.shape.num_parameters / 1e9}
    road = first(tables.road, facts)
    stages = question.override.stages or (tuple(road.then["stages"]) if road else ())
    refusals = data_refusals(question.labels, stages, tables)
    planned, warnings = [], off_policy_notes(question.labels)
    for method in stages:
        stage, problems, notes = plan_stage(method, question, tables, facts | {"stage": method})
        planned.append(stage)
        refusals += problems
        warnings += notes
    refusals += budget_refusals(question, planned)
    return Plan(question=question, road=road, stages=tuple(planned), refusals=tuple(refusals), warnings=tuple(warnings))


def data_refusals(labels: Labels, stages: tuple[str, ...], tables: Tables) -> list[str]:
    """Return why these labels cannot be trained on."""
    found = []
    if not stages:
        found.append("there is no label to train on: collect feedback, or import some")
    if labels.noise is not None and labels.noise > tables.limits.max_noise and set(stages) & set(PREFERENCE_METHODS):
        found.append(
            f"{labels.noise:.0%} of the labels are flipped, more than {tables.limits.max_noise:.0%}: such a batch is "
            "not trainable; look at who gives them"
        )
    rarer = min(labels.thumbs_up, labels.thumbs_down)
    if "kto" in stages and rarer < tables.minimum.kto_class:
        found.append(
            f"KTO needs {tables.minimum.kto_class} thumbs up and as many down; there are {labels.thumbs_up} and "
            f"{labels.thumbs_down}: wait for more"
        )
    return found


def off_policy_notes(labels: Labels) -> list[str]:
    """Return what to know of labels whose answers are of another base, or of long ago."""
    if not labels.off_policy:
        return []
    return [
        f"{labels.off_policy} of {labels.total} labels are off-policy: their answers are of another base than the "
        "stable model's, or many generations old; trigger.off_policy says how much they count"
    ]


def budget_refusals(question: Question, stages: list[Stage]) -> list[str]:
    """Return what the plan exceeds of time and money."""
    hours = sum(stage.cost.seconds for stage in stages if stage.cost) / 3600
    usd = sum(stage.cost.usd for stage in stages if stage.cost)
    found = []
    if question.max_hours is not None and hours > question.max_hours:
        found.append(
            f"it takes about {hours:.1f} h, the budget is {question.max_hours:g} h: take more or faster devices"
        )
    if question.max_usd is not None and usd > question.max_usd:
        found.append(f"it costs about {usd:.0f} USD, the budget is {question.max_usd:g}: take a smaller model or QLoRA")
    return found


def plan_stage(
    method: str, question: Question, tables: Tables, facts: Mapping[str, Fact]
) -> tuple[Stage, list[str], list[str]]:
    """Return the stage, what forbids it, and what to know of it."""
    why: list[tuple[str, str]] = []
    adapter, rank = choose_adapter(question, tables, facts, why)
    # An override is not softened: it fits or is refused.
    choices = (adapter,) if question.override.adapter else FALLBACKS[adapter]
    tried: list[str] = []
    options: tuple[Option, ...] = ()
    for choice in choices:
        if choice == "qlora" and not question.hardware.gpus:
            continue
        stage, problem = attempt(method, choice, rank, question, tables, facts)
        options += stage.options
        if stage.fit is not None or problem is None:
            break
        tried.append(f"{method}: {problem}")
    if stage.fit and stage.adapter != adapter:
        why = [fallen_back(name, text, adapter, stage.adapter) for name, text in why]
    stage = replace(stage, options=options, why=(*why, *stage.why))
    return stage, ([] if stage.fit else tried), notes_on(stage, tried if stage.fit else [])


def fallen_back(what: str, why: str, wished: Adapter, taken: Adapter) -> tuple[str, str]:
    """Return the reason of what was decided, the adapter's as it stands after a fallback."""
    if what != "adapter":
        return what, why
    return what, f"{taken}, since {wished} does not fit; the tables wished {wished}: {why}"


def attempt(
    method: str, adapter: Adapter, rank: int, question: Question, tables: Tables, facts: Mapping[str, Fact]
) -> tuple[Stage, str | None]:
    """Return the stage with this adapter, and why it does not fit, or None."""
    why: list[tuple[str, str]] = []
    facts = {**facts, "adapter": adapter}
    rank = 0 if adapter == "full" else rank or FALLBACK_RANK
    loss = taken(tables.loss, facts, "loss", why)
    recipe = taken(tables.recipe, facts, "recipe", why)
    targets = choose_targets(question, tables, facts, why)
    setup = setup_for(method, adapter, rank, () if isinstance(targets, str) else targets, question.hardware)
    fit, options, problem = find_fit(method, setup, int(recipe["batch_size"]), question, tables, facts, why)
    number, passes = num_labels(method, question.labels), float(recipe["epochs"])
    stage = Stage(
        method=method,
        num_labels=number,
        minimum=minimum_of(method, adapter, tables.minimum),
        adapter=adapter,
        rank=rank,
        targets=targets,
        loss=loss.get("loss"),
        label_smoothing=question.labels.noise or 0.0 if loss.get("loss") == "robust" else 0.0,
        learning_rate=recipe["learning_rate"],
        epochs=passes,
        fit=fit,
        cost=cost_of(question.shape, fit, method, number, passes, question.lengths, question.hardware) if fit else None,
        options=tuple(options),
        why=tuple(why),
    )
    return stage, problem


def notes_on(stage: Stage, tried: list[str]) -> list[str]:
    """Return the warnings of a stage."""
    found = [f"{problem}: {stage.adapter} is planned instead" for problem in tried]
    if stage.below_minimum:
        found.append(
            f"{stage.method}: {stage.num_labels} labels are below the advised minimum of {stage.minimum}: "
            "expect little, and trust the gates"
        )
    if stage.fit and stage.fit.setup.sharding == "tensor_pipeline":
        found.append(
            f"{stage.method}: tensor and pipeline parallel training is another engine's work: hone prints its "
            "arithmetic, and runs FSDP2 and ZeRO-3 itself"
        )
    return found


def taken(rules: tuple[Rule, ...], facts: Mapping[str, Fact], what: str, why: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what the first rule that holds says, and note its reason. Raises ConfigError where none holds."""
    rule = first(rules, facts)
    if rule is None:
        raise ConfigError(
            f"no rule of [[{what}]] holds for {dict(facts)}: end the table with a rule without conditions"
        )
    why.append((what, rule.why))
    return rule.then


def choose_adapter(
    question: Question, tables: Tables, facts: Mapping[str, Fact], why: list[tuple[str, str]]
) -> tuple[Adapter, int]:
    """Return what is trained and with which rank, by the tables or by the person who overrides them."""
    chosen = taken(tables.adapter, facts, "adapter", why)
    adapter, rank = chosen["adapter"], int(chosen["rank"])
    if adapter not in get_args(Adapter):
        raise ConfigError(f"[[adapter]] says {adapter!r}: it must be one of {', '.join(get_args(Adapter))}")
    override = question.override
    if override.adapter or override.rank:
        why.append(("override", f"{override.reason} (the tables said {adapter}, rank {rank})"))
        adapter = override.adapter or adapter
        rank = 0 if adapter == "full" else override.rank or rank or FALLBACK_RANK
    return adapter, rank


def choose_targets(
    question: Question, tables: Tables, facts: Mapping[str, Fact], why: list[tuple[str, str]]
) -> str | tuple[str, ...]:
    """Return the linear maps that get an adapter."""
    found = taken(tables.targets, facts, "targets", why)["targets"]
    if question.override.targets:
        why.append(("override", f"{question.override.reason} (the tables said {found})"))
        return question.override.targets
    return found if isinstance(found, str) else tuple(found)


def find_fit(
    method: str,
    setup: Setup,
    batch: int,
    question: Question,
    tables: Tables,
    facts: Mapping[str, Fact],
    why: list[tuple[str, str]],
) -> tuple[Fit | None, list[Option], str | None]:
    """Return the first way to spread the setup that fits, all ways with their least memory, and why none fits."""
    limit = limit_bytes(question.hardware, tables.limits)
    rules = {rule.then["sharding"]: rule.why for rule in tables.sharding if rule.holds(facts)}
    if setup.adapter == "qlora":  # hone's trainer does not split 4-bit weights
        rules = {sharding: why for sharding, why in rules.items() if sharding not in SPLIT}
    options = [option_of(method, replace(setup, sharding=sharding), question, limit) for sharding in rules]
    fit = fits(question.shape, setup, method, batch, question.lengths, limit, tuple(rules))
    if fit is None:
        return None, options, too_large(method, setup, question, limit, options)
    why.append(("sharding", rules[fit.setup.sharding]))
    return fit, options, None


def option_of(method: str, setup: Setup, question: Question, limit: float) -> Option:
    """Return what one way to spread the stage takes at least."""
    least = smallest_memory(question.shape, setup, method, question.lengths)
    return Option(adapter=setup.adapter, sharding=setup.sharding, least=least, fits=least.total <= limit)


def too_large(method: str, setup: Setup, question: Question, limit: float, looked: list[Option]) -> str:
    """Return the arithmetic of what does not fit, and what would."""
    least = min((option.least.total for option in looked), default=0.0)
    text = (
        f"{setup.adapter} needs {least / GB:.1f} GB on each device for one label of {question.lengths.longest} tokens, "
        f"{limit / GB:.1f} GB may be used"
    )
    if question.hardware.gpus:
        split = replace(setup, adapter="lora") if setup.adapter == "qlora" else setup
        needed = gpus_needed(question.shape, split, method, question.lengths, limit)
        if needed and needed > question.hardware.gpus:
            text += f"; {needed} such GPUs would do with FSDP2" + (" and LoRA" if split is not setup else "")
    return text


def num_labels(method: str, labels: Labels) -> int:
    """Return the labels that the method trains on; an edit is a demonstration too."""
    if method == "sft":
        return labels.demonstrations + labels.edits
    if method == "kto":
        return labels.thumbs
    if method == "grpo":
        return labels.demonstrations + labels.pairs + labels.thumbs
    return labels.pairs


def minimum_of(method: str, adapter: Adapter, minimum: Minimum) -> int:
    """Return the advised minimum."""
    if method == "sft":
        return minimum.sft if adapter == "full" else minimum.sft_adapter
    if method in ("dpo", "kto"):
        return minimum.dpo if method == "dpo" else minimum.kto
    return minimum.rlhf
