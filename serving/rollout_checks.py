"""What takes a canary out of traffic whatever people prefer, and what undoes a promotion. Pure."""

import math
from collections.abc import Mapping
from datetime import datetime

from hone.records import Track
from hone.rollout import ArmHealth, Phase, Policy
from hone.stats import wilson_interval
from serving.rollout_evidence import Evidence, Rollout, e_value, seconds_in_phase


def danger(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> str | None:
    """Return why the canary must leave traffic now, or None. The first word is stable; metrics count it."""
    if evidence.broken_glass and not policy.reverse:
        return "break_glass: an operator stopped it at a router"
    if evidence.stable_moved:
        return "stable_moved: the version that it is compared with is no longer served"
    if reason := unready(rollout, evidence, policy, now):
        return reason
    if rollout.phase in (Phase.CREATED, Phase.PROMOTING):
        return None
    if evidence.log_down >= -math.log(policy.alpha_harm):
        word = "better: the former model is worse" if policy.reverse else "harm"
        return (
            f"{word}: e-value {e_value(evidence.log_down)} of {1 / policy.alpha_harm:.0f}, {evidence.num_pairs} pairs"
        )
    if evidence.sample_ratio_log_e >= -math.log(policy.alpha_check):
        return f"sample_ratio: arms do not have their intended shares (e-value {e_value(evidence.sample_ratio_log_e)})"
    if policy.reverse:
        return failing(evidence.health, policy)
    return guarded(evidence, policy) or failing(evidence.health, policy) or slow(evidence.health, policy)


def regret(evidence: Evidence, policy: Policy) -> str | None:
    """Return why a promotion must be undone, or None: what a reverse watch looks for.

    Its canary is the former model, so that evidence for it speaks against the new one.
    """
    if evidence.stable_moved:
        return None
    if evidence.broken_glass:
        return "break_glass: an operator went back to the former model at a router"
    if not evidence.ready:
        return None
    if evidence.log_up >= -math.log(policy.alpha):
        found = f"e-value {e_value(evidence.log_up)} of {1 / policy.alpha:.0f}, {evidence.num_pairs} pairs"
        return f"worse: the former model is better: {found}"
    health: dict[str, ArmHealth] = {
        Track.CANARY: arm(evidence.health, Track.STABLE),
        Track.STABLE: arm(evidence.health, Track.CANARY),
    }
    return guarded(evidence, policy) or failing(health, policy) or slow(health, policy)


def guarded(evidence: Evidence, policy: Policy) -> str | None:
    """Return which guarded measure is proven to have moved for the worse beyond its margin, or None."""
    alpha = policy.guardrails.alpha_guard
    for complaint, log_e in evidence.guards.items():
        if log_e >= -math.log(alpha):
            return f"guardrail: {complaint}: e-value {e_value(log_e)} of {1 / alpha:.0f}"
    return None


def arm(health: Mapping[str, ArmHealth], track: Track) -> ArmHealth:
    """Return the health of an arm; one that was not seen answered nothing."""
    return health.get(track, ArmHealth())


def unready(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> str | None:
    """Return that the canary did not load in time, or has been away for too long."""
    limits = policy.guardrails
    if evidence.ready:
        return None
    if rollout.phase is Phase.CREATED:
        waited = seconds_in_phase(rollout, now)
        return f"not_ready: not loaded after {waited:.0f} s" if waited > limits.ready_timeout_s else None
    return f"not_ready: away for {evidence.unready_s:.0f} s" if evidence.unready_s > limits.max_unready_s else None


def failing(health: Mapping[str, ArmHealth], policy: Policy) -> str | None:
    """Return that the canary fails more often than stable, beyond chance and the allowed excess."""
    canary, stable = arm(health, Track.CANARY), arm(health, Track.STABLE)
    if canary.num_failed < policy.guardrails.min_failed:
        return None
    low, _ = wilson_interval(canary.num_failed, canary.num, z=3.0)
    allowed = stable.num_failed / max(stable.num, 1) + policy.guardrails.max_error_excess
    return f"errors: {canary.num_failed} of {canary.num} canary answers failed" if low > allowed else None


def slow(health: Mapping[str, ArmHealth], policy: Policy) -> str | None:
    """Return that the canary's slow answers are far slower than stable's."""
    limits = policy.guardrails
    canary, stable = arm(health, Track.CANARY), arm(health, Track.STABLE)
    if min(canary.num, stable.num) < limits.min_responses or not (canary.p95_latency_ms and stable.p95_latency_ms):
        return None
    allowed = stable.p95_latency_ms * limits.max_latency_ratio + limits.latency_slack_ms
    if canary.p95_latency_ms <= allowed:
        return None
    return f"latency: p95 {canary.p95_latency_ms:.0f} ms, at most {allowed:.0f} ms allowed"
