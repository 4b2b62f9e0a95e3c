"""The verdicts of a rollout: `decide` turns evidence into a transition. Pure: no clock, no input or output."""

import math
from datetime import datetime

import msgspec

from hone.records import Track, TrafficPlan
from hone.rollout import AUTOMATIC_PAUSES, FINAL, ArmHealth, Phase, Policy, Transition
from serving.rollout_checks import danger, regret
from serving.rollout_evidence import Evidence, Rollout, age_s, e_value, seconds_in_phase


def decide(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the next transition, or None to wait.

    Safety acts in every live phase, also while a person holds the rollout. Moving forward needs evidence: what is
    missing never advances, and what is undecided at the horizon is rolled back.
    """
    if rollout.phase in FINAL:
        return None
    if rollout.phase is Phase.ROLLING_BACK:
        return finish(rollout, Phase.ROLLED_BACK) if evidence.withdrawn else None
    if policy.reverse and rollout.phase is not Phase.PROMOTING and (reason := regret(evidence, policy)):
        return Transition(Phase.PROMOTING, rollout.stage, 0.0, reason)
    if reason := danger(rollout, evidence, policy, now):
        return Transition(Phase.ROLLING_BACK, rollout.stage, 0.0, reason)
    if rollout.phase is Phase.PROMOTING:
        return finish(rollout, Phase.PROMOTED) if evidence.in_force and evidence.ready else None
    if rollout.phase is Phase.PAUSED:
        return give_up(rollout, evidence, policy, now)
    if evidence.held:
        return None
    if rollout.phase is Phase.CREATED:
        return begin(policy) if evidence.ready and (evidence.approved or not policy.approval) else None
    return forward(rollout, evidence, policy, now)


def give_up(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the end of a rollout at its horizon in time that paused by itself; one that a person paused waits."""
    if rollout.reason.split(":")[0] not in AUTOMATIC_PAUSES or age_s(rollout, now) < policy.horizon_s:
        return None
    return undecided(rollout, evidence, policy, now)


def forward(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the promotion, the end at the horizon, or the next stage of a rollout in shadow or canary."""
    if not policy.reverse and (reason := proof(rollout, evidence, policy)):
        return Transition(Phase.PROMOTING, rollout.stage, 0.0, reason)
    if evidence.num_pairs >= policy.horizon_pairs or age_s(rollout, now) >= policy.horizon_s:
        return undecided(rollout, evidence, policy, now)
    if reason := pause(rollout, evidence, policy):
        return Transition(Phase.PAUSED, rollout.stage, rollout.weight, reason)
    if not (evidence.ready and evidence.in_force):
        return None
    if rollout.phase is Phase.SHADOW:
        shadow = evidence.health.get(Track.SHADOW, ArmHealth())
        seen = shadow.num >= policy.min_shadow_responses
        return begin_canary(policy) if seen and seconds_in_phase(rollout, now) >= policy.shadow_s else None
    return next_stage(rollout, evidence, policy, now)


def undecided(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition:
    """Return the end at the horizon: nothing was proven. For a reverse watch that is the good end."""
    found = f"e-value {e_value(evidence.log_up)} of {1 / policy.alpha:.0f}"
    after = f"after {evidence.num_pairs} pairs and {age_s(rollout, now):.0f} s"
    words = "baked: no proof that the new model is worse" if policy.reverse else "inconclusive"
    return Transition(Phase.ROLLING_BACK, rollout.stage, 0.0, f"{words}: {found} {after}")


def pause(rollout: Rollout, evidence: Evidence, policy: Policy) -> str | None:
    """Return why the weight must not move before a person has looked, or None."""
    if evidence.drift_looks > policy.max_drift_looks:
        return f"drift: a router left its plan and did not come back in {evidence.drift_looks} looks"
    if rollout.phase is Phase.CANARY and evidence.silent_s > policy.stale_s:
        return f"stale: no rated user for {evidence.silent_s:.0f} s, does feedback arrive?"
    return None


def begin(policy: Policy) -> Transition:
    """Return the first phase with traffic."""
    return Transition(Phase.SHADOW, 0, 0.0, "ready") if policy.shadow_s > 0 else begin_canary(policy)


def begin_canary(policy: Policy) -> Transition:
    """Return the first stage."""
    return Transition(Phase.CANARY, 0, policy.stages[0].weight, "ready")


def next_stage(rollout: Rollout, evidence: Evidence, policy: Policy, now: datetime) -> Transition | None:
    """Return the next stage once this one has had its users and its time; the last stage has no next."""
    stage = policy.stages[rollout.stage]
    later = rollout.stage + 1
    users = evidence.canary_users[rollout.stage]
    if later == len(policy.stages) or users < stage.min_users or seconds_in_phase(rollout, now) < stage.min_dwell_s:
        return None
    return Transition(Phase.CANARY, later, policy.stages[later].weight, f"advance: {users} rated canary users")


def proof(rollout: Rollout, evidence: Evidence, policy: Policy) -> str | None:
    """Return why the canary may be promoted, or None."""
    if rollout.phase is not Phase.CANARY or policy.stages[rollout.stage].weight < policy.promote_weight:
        return None
    users = sum(
        number
        for number, stage in zip(evidence.canary_users, policy.stages, strict=True)
        if stage.weight >= policy.promote_weight
    )
    sound = evidence.ready and evidence.in_force and evidence.propensity_log_e < -math.log(policy.alpha_check)
    if not sound or users < policy.min_canary_users or evidence.log_up < -math.log(policy.alpha):
        return None
    found = f"e-value {e_value(evidence.log_up)} of {1 / policy.alpha:.0f}"
    users_seen = f"{evidence.num_pairs} pairs, {users} canary users"
    if policy.non_inferiority > 0:
        return f"not_worse: by less than {policy.non_inferiority:g}: {found}, {users_seen}"
    return f"better: {found}, {users_seen}"


def finish(rollout: Rollout, phase: Phase) -> Transition:
    """Return the transition to a final phase; it keeps the verdict's reason."""
    return Transition(phase, rollout.stage, 0.0, rollout.reason)


def intended_plan(
    rollout: Rollout | None,
    *,
    canary: str | None,
    stable: str,
    held: bool,
    fence: int,
    expires_at: datetime,
    reverse: bool = False,
    duel_share: float = 0.0,
) -> TrafficPlan:
    """Return the plan that follows from the stored state alone; `held` (frozen, observe-only) takes the canary out."""
    bare = TrafficPlan(fence=fence, stable=stable, expires_at=expires_at)
    if rollout is None or held or rollout.phase not in (Phase.SHADOW, Phase.CANARY, Phase.PAUSED):
        return bare
    if rollout.weight == 0 and rollout.phase is not Phase.SHADOW:
        return bare
    return msgspec.structs.replace(
        bare,
        canary=canary,
        canary_weight=rollout.weight,
        shadow=rollout.phase is Phase.SHADOW,
        reverse=reverse,
        duel_share=duel_share if rollout.phase is Phase.CANARY else 0.0,
        rollout_id=rollout.rollout_id,
        stage=rollout.stage,
    )
