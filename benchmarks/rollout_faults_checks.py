"""The invariants of a rollout, checked from outside on stored rows, routers and the data plane; numbers as in
docs/rollout.md.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.rollout_faults_world import NAME, World
from hone.records import Track
from hone.rollout import FINAL, Phase, parse_policy
from hone.store.models import STABLE, get_alias
from hone.store.rollout_units import list_units
from hone.store.rollouts import get_rollout, list_transitions, policy_of
from hone.store.tables import RolloutOutcomeRow, RolloutRow, RolloutTransitionRow
from serving.router import Router
from serving.tally import fold, start_tally

PANEL = range(200)
CONTROLLER = "controller"


def breaches_now(world: World) -> list[str]:
    """Return what is wrong at this moment."""
    with world.sessions() as session:
        row = get_rollout(session, world.rollout_id)
        decided = max((step.weight for step in list_transitions(session, world.rollout_id)), default=0.0)
        return [*traffic_breaches(world, row, decided), *panel_breaches(world)]


def traffic_breaches(world: World, row: RolloutRow, decided: float) -> Iterator[str]:
    """I1, I6, I7: weights stay within what was decided, end with the rollout, and only reach models that are there."""
    for router, weight in zip(world.routers, world.weights(), strict=True):
        if weight > decided:
            yield f"I1: weight {weight} at a router, at most {decided} was ever decided"
        if weight > 0 and row.phase in FINAL:
            yield f"I6: weight {weight} at a router of a rollout that is {row.phase}"
        if weight > 0 and row.rollout_id in router.broken:
            yield "I10: weight above 0 behind broken glass"
    if world.broken_arms:
        yield f"I7: {world.broken_arms} users were sent to a model that does not answer"
        world.broken_arms = 0


def panel_breaches(world: World) -> Iterator[str]:
    """I2: whoever gets the canary at a weight gets it at every larger one, at every router and time."""
    for router, weight in zip(world.routers, world.weights(), strict=True):
        if weight == 0:
            continue
        chosen = frozenset(n for n in PANEL if is_canary(router, world, UUID(int=n)))
        if world.nested.setdefault(weight, chosen) != chosen:
            yield f"I2: another part of the panel gets the canary at the same weight {weight}"
    ordered = [world.nested[weight] for weight in sorted(world.nested)]
    if any(not small <= large for small, large in pairwise(ordered)):
        yield "I2: somebody lost the canary when its weight grew"


def is_canary(router: Router, world: World, user: UUID) -> bool:
    """Say whether a member of the panel gets the canary."""
    decision = router.decide(user, world.now)
    return decision is not None and decision.track == Track.CANARY


def breaches_at_the_end(world: World) -> list[str]:
    """Return what is wrong once everything is calm."""
    with world.sessions() as session:
        row = get_rollout(session, world.rollout_id)
        steps = list_transitions(session, world.rollout_id)
        found = [
            *step_breaches(row, steps),
            *advance_breaches(session, row, steps),
            *credit_breaches(world, session),
            *replay_breaches(session, row),
            *end_breaches(world, session, row),
        ]
    return found


def step_breaches(row: RolloutRow, steps: Sequence[RolloutTransitionRow]) -> Iterator[str]:
    """I5, I6, I9: one transition an epoch, none after the end, and none forward while a person holds."""
    if [step.epoch for step in steps] != list(range(1, row.epoch + 1)):
        yield f"I5: epochs {[step.epoch for step in steps]} of a rollout at {row.epoch}"
    if any(step.from_phase in FINAL for step in steps):
        yield "I6: a transition after the end"
    for before, after in pairwise(steps):
        held = before.to_phase == Phase.PAUSED and before.actor != CONTROLLER
        if held and after.actor == CONTROLLER and after.to_phase != Phase.ROLLING_BACK:
            yield f"I9: the controller went to {after.to_phase} while a person held the rollout"


def advance_breaches(session: Session, row: RolloutRow, steps: Sequence[RolloutTransitionRow]) -> Iterator[str]:
    """I8: every step forward had the users that its stage asks for, and every proof its wealth."""
    policy = policy_of(row)
    rated = Counter(
        session.scalars(
            select(RolloutOutcomeRow.stage).where(
                RolloutOutcomeRow.rollout_id == row.rollout_id,
                RolloutOutcomeRow.track == "canary",
                RolloutOutcomeRow.value.is_not(None),
            )
        )
    )
    for step in steps:
        if step.reason.startswith("advance") and rated[step.stage - 1] < policy.stages[step.stage - 1].min_users:
            yield f"I8: stage {step.stage} began with {rated[step.stage - 1]} rated canary users"
        if step.to_phase == Phase.PROMOTING and sum(rated.values()) < policy.min_canary_users:
            yield f"I8: promoted with {sum(rated.values())} rated canary users"


def credit_breaches(world: World, session: Session) -> Iterator[str]:
    """I3: each closed user is in the arm that answered, once, and in no order with gaps."""
    rows = session.execute(
        select(RolloutOutcomeRow.user_id, RolloutOutcomeRow.track, RolloutOutcomeRow.position)
        .where(RolloutOutcomeRow.rollout_id == world.rollout_id)
        .order_by(RolloutOutcomeRow.position)
    ).all()
    for user, track, _ in rows:
        told = world.truth.get(user)
        if told is None or told.track != track or (told.model_version == "new") != (track == "canary"):
            yield f"I3: user {user} is credited to {track}, answered by {told}"
    if [position for _, _, position in rows] != list(range(1, len(rows) + 1)):
        yield "I3: positions have gaps"


def replay_breaches(session: Session, row: RolloutRow) -> Iterator[str]:
    """I4: the stored rows give the stored evidence, bit for bit."""
    if "position" not in row.evidence:
        return
    policy = parse_policy(row.policy)
    units = [unit for unit in list_units(session, row.rollout_id) if unit.position <= row.evidence["position"]]
    tally = fold(start_tally(policy), units, policy)
    for name, bets in (("up", tally.up), ("down", tally.down)):
        if float(bets.log_wealth()[0]) != row.evidence[f"log_wealth_{name}"]:
            yield f"I4: replayed wealth {name} is another than the one that decided"


def end_breaches(world: World, session: Session, row: RolloutRow) -> Iterator[str]:
    """The rollout ends, `stable` says how, and every router and the data plane follow."""
    if row.phase not in FINAL:
        yield f"the rollout did not end: {row.phase}, {row.reason}"
        return
    alias = get_alias(session, STABLE)
    stable = alias.model_version if alias else None
    if stable != ("new" if row.phase == Phase.PROMOTED else "old"):
        yield f"stable is {stable} after a rollout that is {row.phase}"
    for router in world.routers:
        if router.plan is None or router.plan.stable != stable or router.weight(world.now) > 0:
            yield f"a router does not serve {stable} alone at the end: {router.plan}"
    split = None if world.cluster is None else world.cluster.split_of(NAME)
    if world.cluster is not None and split is not None:
        served = {world.cluster.version_of(arm) for arm, share in split.shares if share > 0}
        if served != {stable}:
            yield f"the data plane serves {served} at the end, stable is {stable}"
