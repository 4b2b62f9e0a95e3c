"""`method = "auto"`: which method the labels themselves ask for, by the planner's tables. Pure; no torch here."""

from collections.abc import Mapping
from typing import Any

from hone.errors import NotEnoughData
from hone.plan.facts import Labels
from hone.plan.tables import Tables, first

AUTO = "auto"
IMITATED = {"sft_weight": 1.0}
"""Where no corrected answer can be imitated by itself: DPO whose SFT term weighs as much as the preference."""
GOAL = {"goal": "style", "gpus": 0}
"""A retraining learns what people prefer; what it runs on does not decide its method."""


def choose(labels: Labels, tables: Tables) -> tuple[str, dict[str, Any], str]:
    """Return method, overrides of its spec and the reason.

    Lone thumbs give KTO, corrected answers alone SFT, pairs DPO: mostly edits after SFT on the corrected answers,
    measured noise with the loss that corrects for it. A reward model and PPO are a recipe's work, so that many pairs
    give DPO too.

    Raises:
        NotEnoughData: there is no label.
    """
    facts: dict[str, Any] = {**labels.facts(), **GOAL}
    road = first(tables.road, facts)
    if road is None:
        raise NotEnoughData("there is no label to choose a method by: wait for feedback, or name the method")
    stages = tuple(road.then["stages"])
    if stages in (("kto",), ("sft",)):
        return str(stages[0]), {}, road.why
    return "sft+dpo" if stages == ("sft", "dpo") else "dpo", loss_for(labels, tables, facts), road.why


def loss_for(labels: Labels, tables: Tables, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preference loss that the measured noise asks for."""
    rule = first(tables.loss, {**facts, "stage": "dpo"})
    if rule is None or rule.then.get("loss") != "robust" or labels.noise is None:
        return {}
    return {"preference": {"loss": "robust", "label_smoothing": round(labels.noise, 3)}}
