"""The controller: reads evidence, decides, writes the intent, and makes the routers follow it.

Each look is level-triggered. A verdict and its intent are written in one transaction under a lease; what the routers
shall do then follows from the stored rows alone, so a controller that dies at any point is replaced by one that
carries out the same intent. Plans run out when nobody renews them: a dead controller means canary weight 0.
"""

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy.orm import Session, sessionmaker

from hone import metrics
from hone.records import TrafficPlan
from hone.rollout import FINAL, Phase, Policy, Transition
from hone.settings import Settings
from hone.store.leases import Lease, release_lease, renew_lease, require_lease, take_lease
from hone.store.models import STABLE, get_alias
from hone.store.rollout_duels import list_duels
from hone.store.rollout_units import arm_health, close_units, count_assignments, list_units
from hone.store.rollouts import (
    count_transitions,
    last_ended,
    live_rollout,
    lock_rollout,
    mark_applied,
    model_directories,
    policy_of,
    save_evidence,
    start_watch,
    transition,
)
from hone.store.switches import FREEZE, is_on
from hone.store.tables import RolloutRow
from serving.duels import describe_duels
from serving.rollout import decide, intended_plan
from serving.rollout_evidence import Evidence, Rollout
from serving.rollout_metrics import announce, show_no_rollout, show_rollout
from serving.tally import (
    Tally,
    assignment_log_e,
    canary_users,
    describe,
    fold,
    propensity_log_e,
    start_tally,
)
from serving.traffic.backend import ObservedTraffic, RouterView, TrafficBackend

logger = logging.getLogger(__name__)

LEASE = "rollout-controller"
ACTOR = "controller"
MIN_LEASE_S = 10.0
CLOCK_SLACK_S = 30.0
"""How much longer than its plan a silent router is waited for: three times what a clock may be off."""
FENCE_BITS = 32
MAX_STEPS = 8
"""Rounds of one look: enough to go from created to the first stage, or from a verdict to its end."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What the stored rows ask of the platform."""

    plan: TrafficPlan | None
    directories: Mapping[str, str]
    "Versions that must be loaded, and where their weights are."
    surplus: str | None
    "A version that lost its rollout and may be unloaded."
    again: bool
    "A transition was made, or the platform is about to change: look again at once."


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a live rollout found, and the transition that it made."""

    before: Rollout
    tally: Tally
    shown: dict[str, Any]
    change: Transition | None


def fence_of(lease: Lease, num_transitions: int) -> int:
    """Return the number that orders plans: lease epoch, then the transitions of all rollouts so far.

    A new holder of the lease outranks every plan of the one before; within one lease each transition outranks the
    plans before it. Renewals keep the number.
    """
    return lease.epoch << FENCE_BITS | num_transitions


class Controller:
    """Keeps rollouts going. One instance acts at a time: the holder of the lease."""

    def __init__(self, sessions: sessionmaker[Session], backend: TrafficBackend, settings: Settings) -> None:
        """`backend` stays the caller's to close."""
        self.sessions, self.backend, self.settings = sessions, backend, settings
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.lease: Lease | None = None
        self._tally: tuple[UUID, Tally] | None = None
        "Of units that are committed."

    def look(self, now: datetime) -> bool:
        """Bring the platform to what the evidence asks for; return False where another controller holds the lease.

        Raises:
            Fenced: another controller took over; the next look starts anew.
            Retryable: a router or the runtime did not do as asked; the next look tries again.
        """
        if not self.hold_lease(now):
            return False
        for step in range(MAX_STEPS):
            desired = self.judge(self.backend.observe(), now, first=step == 0)
            self.carry_out(desired)
            if not desired.again:
                break
        return True

    def hold_lease(self, now: datetime) -> bool:
        """Take or extend the lease; return whether it is ours."""
        ttl_s = max(MIN_LEASE_S, 3 * self.settings.rollout.interval_s)
        with self.sessions.begin() as session:
            if self.lease is None:
                self.lease = take_lease(session, LEASE, self.holder, ttl_s=ttl_s, now=now)
            else:
                renew_lease(session, self.lease, ttl_s=ttl_s, now=now)
        metrics.CONTROLLER_LEADER.set(self.lease is not None)
        return self.lease is not None

    def drop_lease(self, now: datetime) -> None:
        """Let another controller take over at once."""
        if self.lease is not None:
            with self.sessions.begin() as session:
                release_lease(session, self.lease, now=now)
            self.lease = None

    def judge(self, observed: ObservedTraffic, now: datetime, *, first: bool = True) -> Desired:
        """In one transaction: close units, weigh the evidence, write the transition if one follows.

        Only the first judgement of a look counts a router that left its plan: later ones see what this look just sent.
        """
        assert self.lease is not None
        with self.sessions.begin() as session:
            require_lease(session, self.lease)
            row = live_rollout(session)
            look = None if row is None else self.advance(session, row, observed, now, first)
            desired = self.desire(session, observed, look is not None and look.change is not None, now)
        if look is None:
            show_no_rollout()
        else:
            self._tally = (look.before.rollout_id, look.tally)
            show_rollout(look.before, look.shown, observed)
            if look.change is not None:
                announce(look.before, look.change)
        return desired

    def advance(self, session: Session, row: RolloutRow, observed: ObservedTraffic, now: datetime, first: bool) -> Look:
        """Make the transition that the evidence asks for; a promotion that ends starts its reverse watch."""
        row = lock_rollout(session, row.rollout_id)
        before, policy = as_rollout(row), policy_of(row)
        tally = self.tally(session, row, policy, now)
        evidence, shown = self.weigh(session, row, tally, policy, observed, now, first)
        change = decide(before, evidence, policy, now)
        if evidence.in_force and row.applied_epoch < row.epoch:
            mark_applied(session, row.rollout_id, epoch=row.epoch, now=now)
        if change is None:
            save_evidence(session, row.rollout_id, epoch=row.epoch, evidence=shown)
        else:
            after = transition(
                session, row.rollout_id, epoch=row.epoch, change=change, actor=ACTOR, now=now, evidence=shown
            )
            if change.phase in FINAL:  # its plan is what was just seen
                mark_applied(session, row.rollout_id, epoch=after, now=now)
            if change.phase is Phase.PROMOTED and policy.bake_s > 0:
                start_watch(session, row, ACTOR, now)
        return Look(before, tally, shown, change)

    def tally(self, session: Session, row: RolloutRow, policy: Policy, now: datetime) -> Tally:
        """Close units and return the tally of all closed ones; what was folded before is kept in memory."""
        close_units(session, row.rollout_id, policy, since=row.created_at, now=now)
        known = self._tally
        tally = known[1] if known is not None and known[0] == row.rollout_id else start_tally(policy)
        return fold(tally, list_units(session, row.rollout_id, after=tally.position), policy)

    def weigh(
        self,
        session: Session,
        row: RolloutRow,
        tally: Tally,
        policy: Policy,
        observed: ObservedTraffic,
        now: datetime,
        first: bool,
    ) -> tuple[Evidence, dict[str, Any]]:
        """Return the evidence for the verdict, and the same for people."""
        counts = count_assignments(session, row.rollout_id)
        shown = describe(tally, counts, policy)
        if policy.duel_share > 0:  # for people; no verdict reads it
            until = now - timedelta(seconds=policy.outcome_window_s)
            shown["duels"] = describe_duels(list_duels(session, row.rollout_id, until=until), policy.alpha_harm)
        alias = get_alias(session, STABLE)
        compared = row.canary_version if row.phase == Phase.PROMOTING else row.stable_version
        ready = row.canary_version in observed.models
        since = None if ready else row.evidence.get("unready_since") or now.isoformat()
        plan = self.plan(session, row, now)
        given_up = observed.resource is not None and not observed.resource.effective
        strayed = given_up or (
            plan is not None and any(view.reachable and not follows(view, plan) for view in observed.routers)
        )
        drift = count_drift(row, strayed, first)
        rated_at = max(row.stage_started_at, tally.last_rated_at or row.stage_started_at)
        evidence = Evidence(
            num_pairs=tally.up.num,
            log_up=shown["log_wealth_up"],
            log_down=shown["log_wealth_down"],
            canary_users=canary_users(tally, policy),
            sample_ratio_log_e=assignment_log_e(counts),
            propensity_log_e=propensity_log_e(tally),
            health=arm_health(session, row.rollout_id, since=now - timedelta(seconds=policy.guardrails.window_s)),
            ready=ready,
            unready_s=0.0 if since is None else (now - datetime.fromisoformat(since)).total_seconds(),
            in_force=plan is not None and self.is_in_force(observed, plan),
            withdrawn=observed.resource_is_without(row.canary_version)
            and all(self.is_withdrawn(view, row, now) for view in observed.routers),
            held=self.is_held(session),
            broken_glass=row.rollout_id in observed.broken_glass,
            stable_moved=alias is None or alias.model_version != compared,
            guards=shown["guards"],
            approved=row.approved_at is not None,
            drift_looks=drift,
            silent_s=(now - rated_at).total_seconds(),
        )
        past = past_gateways(observed)
        return evidence, shown | {"unready_since": since, "drift": [row.epoch, drift], "past_gateways": past}

    def is_held(self, session: Session) -> bool:
        """Return whether nothing may move forward: the platform is frozen, or only observes."""
        return self.settings.mode == "observe" or is_on(session, FREEZE)

    def is_in_force(self, observed: ObservedTraffic, plan: TrafficPlan) -> bool:
        """Return whether every router, and the resource that splits the rest, was seen to follow the plan."""
        step = self.backend.capabilities().min_step
        return all(follows(view, plan) for view in observed.routers) and observed.resource_carries(plan, step)

    def is_withdrawn(self, view: RouterView, row: RolloutRow, now: datetime) -> bool:
        """Return whether this router cannot send the rollout's canary traffic; a silent one, once its plan ran out."""
        if not view.reachable:
            wait_s = self.settings.rollout.plan_ttl_s + CLOCK_SLACK_S
            return now >= row.stage_started_at + timedelta(seconds=wait_s)
        return view.plan is None or view.expired or view.plan.rollout_id != row.rollout_id

    def plan(self, session: Session, row: RolloutRow | None, now: datetime) -> TrafficPlan | None:
        """Return the plan that follows from the stored rows, or None while no model is stable."""
        assert self.lease is not None
        alias = get_alias(session, STABLE)
        stable = alias.model_version if alias else self.settings.stable_model
        if stable is None:
            return None
        return intended_plan(
            None if row is None else as_rollout(row),
            canary=None if row is None else row.canary_version,
            stable=stable,
            held=self.is_held(session),
            fence=fence_of(self.lease, count_transitions(session)),
            expires_at=now + timedelta(seconds=self.settings.rollout.plan_ttl_s),
            reverse=row is not None and row.watches is not None,
            duel_share=0.0 if row is None else row.policy.get("duel_share", 0.0),
        )

    def desire(self, session: Session, observed: ObservedTraffic, moved: bool, now: datetime) -> Desired:
        """Return what the platform shall do now, from the rows as this transaction leaves them."""
        row, ended = live_rollout(session), last_ended(session)
        plan = self.plan(session, row, now)
        needed = {plan.stable} if plan else set()
        if row is not None and row.phase not in (*FINAL, Phase.ROLLING_BACK):
            needed.add(row.canary_version)
        loser = None
        if ended is not None:
            loser = ended.stable_version if ended.phase == Phase.PROMOTED else ended.canary_version
        surplus = loser if loser in observed.models - needed and not moved else None
        directories = model_directories(session, sorted(needed - observed.models))
        in_force = plan is None or self.is_in_force(observed, plan)
        return Desired(plan, directories, surplus, moved or not in_force or bool(directories))

    def carry_out(self, desired: Desired) -> None:
        """Send the plan, load what is missing, unload what lost. Traffic first: loading may take minutes."""
        if desired.plan is None:
            logger.warning("no model is stable yet: add one with `hone models add DIR --stable`")
            return
        self.backend.apply(desired.plan)
        for model_version, directory in desired.directories.items():
            logger.info("loading %s from %s", model_version, directory)
            self.backend.prepare(model_version, directory)
        if desired.surplus is not None:
            logger.info("unloading %s", desired.surplus)
            self.backend.teardown(desired.surplus)


def as_rollout(row: RolloutRow) -> Rollout:
    """Return the row as the record that verdicts read."""
    return Rollout(
        rollout_id=row.rollout_id,
        phase=Phase(row.phase),
        stage=row.stage,
        weight=row.weight,
        epoch=row.epoch,
        reason=row.reason,
        created_at=row.approved_at or row.created_at,
        stage_started_at=row.stage_started_at,
    )


def count_drift(row: RolloutRow, strayed: bool, first: bool) -> int:
    """Return in how many looks in a row a router that answers was on another plan than this epoch's, sent before."""
    epoch, looks = row.evidence.get("drift", (row.epoch, 0))
    if epoch != row.epoch:
        looks = 0
    if not first:
        return int(looks)
    return int(looks) + 1 if strayed and epoch == row.epoch and "drift" in row.evidence else 0


def past_gateways(observed: ObservedTraffic) -> dict[str, Any] | None:
    """Return, for people, how requests past the gateways are split and how many came; no verdict reads it."""
    seen = observed.resource
    if seen is None or not seen.reachable:
        return None
    return {"weights": dict(seen.weights), "requests": None if seen.unkeyed is None else dict(seen.unkeyed)}


def follows(view: RouterView, plan: TrafficPlan) -> bool:
    """Return whether the router has this plan in force, whatever its fence and time."""
    seen = view.plan
    if seen is None or view.expired:
        return False
    return msgspec.structs.replace(seen, fence=plan.fence, expires_at=plan.expires_at) == plan
