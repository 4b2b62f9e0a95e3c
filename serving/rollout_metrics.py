"""The controller's gauges: what the live rollout looks like now."""

import logging
from collections.abc import Mapping
from typing import Any

from hone import metrics
from hone.rollout import Phase, Transition
from serving.rollout_evidence import Rollout
from serving.traffic.backend import ObservedTraffic

logger = logging.getLogger(__name__)


def announce(before: Rollout, change: Transition) -> None:
    """Log and count a transition."""
    step = f"{before.phase} -> {change.phase}"
    logger.info("rollout %s: %s at weight %s (%s)", before.rollout_id, step, change.weight, change.reason)
    metrics.ROLLOUT_TRANSITIONS.labels(change.phase, change.reason.split(":")[0]).inc()


def show_rollout(before: Rollout, shown: Mapping[str, Any], observed: ObservedTraffic) -> None:
    """Set the gauges of the live rollout."""
    for phase in Phase:
        metrics.ROLLOUT_PHASE.labels(phase).set(phase == before.phase)
    metrics.ROLLOUT_STAGE.set(before.stage)
    metrics.ROLLOUT_WEIGHT_INTENDED.set(before.weight)
    weights = [view.plan.canary_weight for view in observed.routers if view.plan and not view.expired]
    metrics.ROLLOUT_WEIGHT_OBSERVED.set(max(weights, default=0.0))
    metrics.ROLLOUT_PAIRS.set(shown["num_pairs"])
    metrics.ROLLOUT_LOG_WEALTH.labels("up").set(shown["log_wealth_up"])
    metrics.ROLLOUT_LOG_WEALTH.labels("down").set(shown["log_wealth_down"])
    metrics.ROLLOUT_LOG_TARGET.set(shown["log_target"])
    metrics.ROLLOUT_EFFECT.labels("mean").set(shown["effect"] or 0.0)
    metrics.ROLLOUT_EFFECT.labels("low").set(shown["effect_low"])
    metrics.ROLLOUT_EFFECT.labels("high").set(shown["effect_high"])
    metrics.ROLLOUT_CHECK_LOG_E.labels("sample_ratio").set(shown["sample_ratio_log_e"])
    metrics.ROLLOUT_CHECK_LOG_E.labels("propensity").set(shown["propensity_log_e"])
    for track, arm in shown["arms"].items():
        for state in ("assigned", "closed", "rated"):
            metrics.ROLLOUT_USERS.labels(track, state).set(arm[state])


def show_no_rollout() -> None:
    """Set the gauges of a platform without a live rollout; the evidence of the last one stays."""
    for phase in Phase:
        metrics.ROLLOUT_PHASE.labels(phase).set(0)
    metrics.ROLLOUT_STAGE.set(-1)
    metrics.ROLLOUT_WEIGHT_INTENDED.set(0)
    metrics.ROLLOUT_WEIGHT_OBSERVED.set(0)
