"""The demo's numbers, from the platform's own rows and the hidden comparison."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from examples.demo import watch
from examples.demo.scenario import Story
from examples.demo.seldon import arms
from examples.demo.show import Timing
from examples.demo.world import World
from hone.local.usage import Usage
from hone.rollout import Phase, parse_policy
from hone.stats import wilson_interval
from hone.store.rollout_units import list_units
from hone.store.rollouts import get_rollout
from hone.store.tables import FeedbackEventRow, FeedbackStateRow, ResponseRow, RolloutRow
from serving.tally import fold, start_tally

GATHERING = "gathering to the threshold"
TOTAL = "last feedback to promotion"


def findings(world: World, story: Story, timings: list[Timing], usage: Usage, backend: str = "local") -> dict[str, Any]:
    """Return everything that `report.json` holds."""
    assert story.good_rollout and story.comparison and story.bad_rollout and story.good and story.bad
    comparison = story.comparison
    read = world.watcher.read
    return {
        "promoted": story.good_rollout.phase == Phase.PROMOTED,
        "harmful_stopped_by_gates": story.harmful_stopped_by_gates,
        "harmful_rolled_back": story.bad_rollout.phase == Phase.ROLLED_BACK,
        "win_rate": comparison.win_rate.estimate,
        "win_rate_low": comparison.win_rate.low,
        "win_rate_high": comparison.win_rate.high,
        "hidden_reward": {"before": asdict(comparison.reward_a), "after": asdict(comparison.reward_b)},
        "correct": {"before": asdict(comparison.correct_a), "after": asdict(comparison.correct_b)},
        "thumbs_up": read(lambda session: thumbs(session, story.good_rollout)),
        "num_judge_prompts": comparison.num_prompts,
        "events_sent": story.num_events_sent,
        "events_stored": read(watch.num_stored),
        "dead_letters": read(watch.num_dead),
        "preference_pairs": read(watch.num_pairs),
        "feedback_to_serving_seconds": read(lambda session: feedback_to_serving(session, story)),
        "demo_seconds": sum(timing.actual_s for timing in timings),
        "stages": [asdict(timing) for timing in timings],
        "cpu_seconds": usage.cpu_seconds,
        "cpu_seconds_by_program": usage.cpu_seconds_by_program,
        "peak_pss_mb": usage.peak_pss_mb,
        "broker": f"{world.broker.kind} {world.broker.version}".strip(),
        "broker_is_durable": world.broker.durable,
        "airflow": "dag.test",
        "backend": backend,
        "arms": arms(world),
        "failed_answers": read(watch.num_failed),
        "verdicts": verdicts(story),
        "models": {
            "base": story.base_version,
            "promoted": story.good.model_version,
            "harmful": story.bad.model_version,
        },
        "e_process": {
            "promoted": read(lambda session: e_process(session, story.good_rollout)),
            "harmful": read(lambda session: e_process(session, story.bad_rollout)),
        },
    }


def verdicts(story: Story) -> list[dict[str, str]]:
    """Return what each judge said of each challenger, and why."""
    assert story.good_rollout and story.bad_rollout
    rows = [{"challenger": "good", **row} for row in story.good_gates]
    rows.append({"challenger": "good", "gate": "rollout", **ending(story.good_rollout)})
    rows += [{"challenger": "harmful", **row} for row in story.bad_gates]
    rows.append({"challenger": "harmful", "gate": "rollout", **ending(story.bad_rollout)})
    return rows


def ending(row: RolloutRow) -> dict[str, str]:
    """Return how a rollout ended."""
    return {"verdict": row.phase.replace("_", " "), "reason": row.reason}


def thumbs(session: Session, rollout: RolloutRow | None) -> dict[str, dict[str, float]]:
    """Return the share of thumbs up in the first rollout: stable (before), canary (after), with 95 % intervals."""
    assert rollout is not None
    query = (
        select(ResponseRow.track, func.count(), func.count().filter(FeedbackStateRow.value > 0))
        .join(FeedbackStateRow, FeedbackStateRow.subject_id == ResponseRow.response_id)
        .where(
            ResponseRow.rollout_id == rollout.rollout_id, FeedbackStateRow.slot == "thumbs", FeedbackStateRow.value != 0
        )
        .group_by(ResponseRow.track)
    )
    names = {"stable": "before", "canary": "after"}
    return {names[track]: share(ups, num) for track, num, ups in session.execute(query) if track in names}


def share(successes: int, num: int) -> dict[str, float]:
    """Return an estimate with its Wilson interval."""
    low, high = wilson_interval(successes, num)
    return {"estimate": successes / num, "low": low, "high": high, "num": num}


def feedback_to_serving(session: Session, story: Story) -> dict[str, float]:
    """Return the seconds of each step from the last feedback that a dataset used to the promoted model in traffic."""
    assert story.good_request and story.good_rollout and story.good
    request = session.get_one(type(story.good_request), story.good_request.request_id)
    run = watch.run_of(session, request.request_id)
    rollout = get_rollout(session, story.good_rollout.rollout_id)
    assert run and run.finished_at and request.claimed_at and rollout.ended_at
    first, last = session.execute(
        select(func.min(FeedbackEventRow.received_at), func.max(FeedbackEventRow.received_at)).where(
            FeedbackEventRow.stored_at <= request.claimed_at
        )
    ).one()
    marks: list[tuple[str, datetime]] = [
        ("first feedback", first),
        (GATHERING, request.created_at),
        ("claim", request.claimed_at),
        ("freeze", run.started_at),
        ("train and evaluate", run.finished_at),
        ("judge and register", story.good.created_at),
        ("start of rollout", rollout.created_at),
        ("promotion", rollout.ended_at),
    ]
    seconds = {name: (later - earlier).total_seconds() for (_, earlier), (name, later) in pairwise(marks)}
    return {**seconds, TOTAL: (rollout.ended_at - last).total_seconds()}


def e_process(session: Session, row: RolloutRow | None) -> list[tuple[int, float, float]]:
    """Return (pairs, log10 upward wealth, log10 downward wealth) after each pair, replayed from the rows."""
    assert row is not None
    policy = parse_policy(row.policy)
    tally = start_tally(policy)
    points = [(0, 0.0, 0.0)]
    for unit in list_units(session, UUID(str(row.rollout_id))):
        tally = fold(tally, [unit], policy)
        if tally.up.num > points[-1][0]:
            up, down = float(tally.up.log_wealth()[0]), float(tally.down.log_wealth()[0])
            points.append((tally.up.num, up / math.log(10), down / math.log(10)))
    return points


def failures(report: dict[str, Any]) -> Iterable[str]:
    """Yield each promise of the demo that the numbers do not keep."""
    for key in ("promoted", "harmful_stopped_by_gates", "harmful_rolled_back"):
        if not report[key]:
            yield f"{key} is false"
    if report["win_rate_low"] <= 0.5:
        yield f"win_rate_low is {report['win_rate_low']:.3f}, not above 0.5"
    accounted = report["events_stored"] + report["dead_letters"]
    if report["events_sent"] != accounted:
        yield f"{report['events_sent']} events were sent, {accounted} are accounted for"
    if report["backend"] != "local" and not {arm["version"] for arm in report["arms"]} >= set(
        report["models"].values()
    ):
        yield "not every version answered people through Seldon"
    if report["backend"] != "local" and report["failed_answers"]:
        yield f"{report['failed_answers']} people got no whole answer"
    for arm in report["arms"]:
        if arm["spoken_by_its_weights"] != arm["answers"]:
            foreign = arm["answers"] - arm["spoken_by_its_weights"]
            yield f"{foreign} of {arm['answers']} answers of {arm['version']} were not spoken by its weights"
    if report["events_sent"] <= 1000:
        yield f"only {report['events_sent']} events were sent"
