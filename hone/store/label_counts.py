"""How many labels of each kind are stored, how noisy they are, and how long the texts: what a plan starts from."""

from math import sqrt
from typing import Any

from sqlalchemy import Text, case, cast, func, select
from sqlalchemy.orm import Session, aliased

from hone.off_policy import MAX_GENERATIONS
from hone.store.models import family_of
from hone.store.tables import PreferencePairRow, ResponseRow, UnaryLabelRow

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English; only for estimates."""
MIN_COMPARISONS = 100
"""Pairs of people who judged the same answer, below which the noise counts as not measured."""


def count_labels(session: Session, max_generations: int = MAX_GENERATIONS) -> dict[str, Any]:
    """Return pairs, edits, lone thumbs and the measured noise of all that is active, as the planner names them.

    Args:
        max_generations: models before the stable one whose answers count as its own.
    """
    pair, label = PreferencePairRow, UnaryLabelRow
    sources: dict[str, int] = {
        source: number
        for source, number in session.execute(
            select(pair.source, func.count()).where(pair.active).group_by(pair.source)
        )
    }
    paired = select(pair.turn_id).where(pair.active)
    lone = select(label.label, func.count()).where(label.active, label.turn_id.not_in(paired)).group_by(label.label)
    thumbs = {is_good: number for is_good, number in session.execute(lone)}
    return {
        "pairs": sum(sources.values()),
        "edits": sources.get("edit", 0),
        "thumbs_up": thumbs.get(True, 0),
        "thumbs_down": thumbs.get(False, 0),
        "noise": label_noise(session),
        "off_policy": count_off_policy(session, max_generations),
    }


def count_off_policy(session: Session, max_generations: int) -> int:
    """Return how many active pairs and labels are about answers that the stable model would not have given."""
    family = family_of(session)
    if family is None:
        return 0
    pair, label, chosen, rejected = PreferencePairRow, UnaryLabelRow, aliased(ResponseRow), aliased(ResponseRow)
    shown = case((pair.body_event_id.is_(None), chosen.model_version), else_=rejected.model_version)
    pairs = select(shown, rejected.model_version, func.count()).select_from(pair).where(pair.active)
    pairs = pairs.join(chosen, chosen.response_id == pair.chosen_id)
    pairs = pairs.join(rejected, rejected.response_id == pair.rejected_id).group_by(shown, rejected.model_version)
    paired = select(pair.turn_id).where(pair.active)
    lone = select(ResponseRow.model_version, ResponseRow.model_version, func.count())
    lone = lone.join(label, label.response_id == ResponseRow.response_id).group_by(ResponseRow.model_version)
    lone = lone.where(label.active, label.turn_id.not_in(paired))
    rows = [*session.execute(pairs), *session.execute(lone)]
    return sum(number for one, other, number in rows if family.reason(frozenset([one, other]), max_generations))


def label_noise(session: Session) -> float | None:
    """Return the share of flipped labels, from answers that several people judged; None: too few of them.

    If each label is flipped with probability e, two people agree with probability a = e² + (1 − e)², so
    e = (1 − √(2a − 1)) / 2.
    """
    label = UnaryLabelRow
    up = func.count().filter(label.label)
    down = func.count().filter(~label.label)
    judged = select(up.label("up"), down.label("down")).where(label.active).group_by(label.response_id)
    agreeing = total = 0
    for ups, downs in session.execute(judged.having(func.count() > 1)):
        agreeing += ups * (ups - 1) // 2 + downs * (downs - 1) // 2
        total += (ups + downs) * (ups + downs - 1) // 2
    return noise_of(agreeing, total)


def noise_of(agreeing: int, total: int) -> float | None:
    """Return the flip rate that makes `agreeing` of `total` pairs of people agree."""
    if total < MIN_COMPARISONS:
        return None
    return (1 - sqrt(max(0.0, 2 * agreeing / total - 1))) / 2


def mean_tokens(session: Session) -> dict[str, int] | None:
    """Return the mean tokens of prompts and answers, estimated from their characters; None without an answer."""
    row = session.execute(
        select(func.avg(func.length(cast(ResponseRow.messages, Text))), func.avg(func.length(ResponseRow.completion)))
    ).one()
    if row[0] is None:
        return None
    return {
        "prompt": max(1, round(row[0] / CHARACTERS_PER_TOKEN)),
        "answer": max(1, round(row[1] / CHARACTERS_PER_TOKEN)),
    }
