"""Error rates and speed of the rollout's test, and of rules that others use, on the same simulated users:
`python -m benchmarks.rollout --json [--scale S] [--workers N] [--parts bare,whole,ledger,duels]`.

Votes are Bernoulli with a stable share of 60 %. The bare test compares pairs of a 50/50 split and is looked at after
every pair; whole rollouts run the shipped policy with the product's own fold and verdict.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.result import Target, report, say
from benchmarks.rollout_duels import duels_beside_the_test
from benchmarks.rollout_policy import SCENARIOS, Ending, clustered_votes, run_rollout, shipped_policy
from benchmarks.rollout_rules import (
    Stops,
    Votes,
    betting,
    boundary,
    differs_from_bets,
    fixed_horizon_pairs,
    group_sequential,
    peeked_z,
    stops_of,
    tensorzero,
    threshold_rules,
)
from hone import rollout_ledger
from hone.rollout import Ledger
from hone.rollout_plan import simulate, wealth_paths
from hone.stats import LAMBDAS_BETTER, Floats, wilson_interval

SEED = 20_260_301
CHUNK = 25
"""Runs whose paths are held in memory at once."""
POLICY_CHUNK = 250
NUM_REPLAYED = 4
"""Chunks of each lift of which one run is replayed with the controller's own bets."""


@dataclass(frozen=True)
class Plan:
    """How many runs of how many pairs a lift gets."""

    lift: float
    runs: int
    pairs: int


BARE = (
    Plan(0.0, 10_000, 20_000),
    Plan(-0.02, 10_000, 20_000),
    Plan(-0.05, 10_000, 8_000),
    Plan(0.02, 2_000, 24_000),
    Plan(0.05, 2_000, 8_000),
    Plan(0.10, 2_000, 3_000),
)
WHOLE = dict.fromkeys(SCENARIOS, 100) | {"-5": 2_000, "drift": 2_000, "clustered": 2_000}
PARTS = ("bare", "whole", "ledger", "duels")
SIMULATED_RUNS = 10_000
CLUSTERED_PEOPLE = 1_500


def bare_chunk(plan: Plan, number: int) -> dict[str, Stops]:
    """Return where each rule stops in one chunk of runs."""
    votes = Votes.draw(plan.lift, CHUNK, plan.pairs, (SEED, BARE.index(plan), number))
    promote, harm = betting(votes)
    replayed = slice(0, 1 if number < NUM_REPLAYED else 0)
    planned = plan.lift if plan.lift > 0 else 0.05
    return {
        "hone": promote,
        "hone_harm": harm,
        "peeked_z_every_10": peeked_z(votes, 10),
        "peeked_z_every_1000": peeked_z(votes, 1000),
        "tensorzero": tensorzero(votes),
        "obrien_fleming": group_sequential(votes, boundary(0.5), planned),
        "pocock": group_sequential(votes, boundary(0.0), planned),
        "replay_errors": np.array([differs_from_bets(votes.differences[replayed], promote[replayed])]),
    }


def bare(pool: Executor, plan: Plan, scale: float) -> dict[str, Stops]:
    """Return where each rule stops in every run of the plan."""
    num_chunks = max(NUM_REPLAYED, round(plan.runs * scale / CHUNK))
    chunks = list(pool.map(partial(bare_chunk, plan), range(num_chunks), chunksize=4))
    say(f"bare test, {plan.lift:+.0%}: {num_chunks * CHUNK} runs of {plan.pairs} pairs")
    return {rule: np.concatenate([chunk[rule] for chunk in chunks]) for rule in chunks[0]}


def describe_bare(plan: Plan, stops: dict[str, Stops]) -> dict[str, Any]:
    """Return share of promotions of each rule, and the pairs that it took beside those of a fixed horizon."""
    fixed = fixed_horizon_pairs(plan.lift) if plan.lift else None
    rules = {rule: describe_stops(found, fixed) for rule, found in stops.items() if rule != "replay_errors"}
    return {"runs": len(stops["hone"]), "pairs": plan.pairs, "fixed_horizon_pairs": fixed, "rules": rules}


def describe_stops(stops: Stops, fixed: float | None) -> dict[str, Any]:
    """Return how often and when a rule stops; quantiles are over all runs, null where too few stop."""
    stopped = np.sort(stops[stops > 0])
    low, high = wilson_interval(len(stopped), len(stops))
    found: dict[str, Any] = {"share": len(stopped) / len(stops), "share_low": low, "share_high": high}
    for name, level in (("median_pairs", 0.5), ("p80_pairs", 0.8)):
        index = int(np.ceil(level * len(stops))) - 1
        found[name] = int(stopped[index]) if index < len(stopped) else None
        if fixed and found[name]:
            found[name.replace("pairs", "ratio")] = found[name] / fixed
    return found


def whole_chunk(scenario: str, seeds: Sequence[int]) -> list[Ending]:
    """Run some rollouts of a scenario."""
    return [run_rollout(scenario, seed) for seed in seeds]


def whole(pool: Executor, scenario: str, runs: int) -> list[Ending]:
    """Run rollouts of a scenario with the product's fold and verdict."""
    start = SEED + 1_000_000 * list(SCENARIOS).index(scenario)
    parts = [range(start + i, start + min(i + 25, runs)) for i in range(0, runs, 25)]
    endings = list(chain.from_iterable(pool.map(partial(whole_chunk, scenario), parts)))
    say(f"whole rollouts, {scenario}: {len(endings)} runs {dict(Counter(e.verdict for e in endings))}")
    return endings


def describe_whole(endings: Sequence[Ending]) -> dict[str, Any]:
    """Return how the rollouts ended, and what they cost."""
    promoted = sum(ending.verdict == "better" for ending in endings)
    low, high = wilson_interval(promoted, len(endings))
    harmed = [ending.canary_users for ending in endings if ending.verdict == "harm"]
    return {
        "runs": len(endings),
        "verdicts": {name: num / len(endings) for name, num in Counter(e.verdict for e in endings).most_common()},
        "promoted": promoted / len(endings),
        "promoted_low": low,
        "promoted_high": high,
        "median_canary_users": float(np.median([ending.canary_users for ending in endings])),
        "median_canary_users_until_harm": float(np.median(harmed)) if harmed else None,
        "median_total_users": float(np.median([ending.total_users for ending in endings])),
        "median_days": float(np.median([ending.days for ending in endings])),
        "naive_pooled_z_promotes": float(np.mean([ending.pooled_z >= 1.6449 for ending in endings])),
    }


def simulated_chunk(lift: float, seed: int) -> tuple[int, list[int]]:
    """Return promotions, and canary users until harm was found, of runs as `hone rollout plan` simulates them."""
    outcomes = simulate(shipped_policy(), lift=lift, base_rate=0.6, runs=POLICY_CHUNK, seed=seed)
    return int(outcomes.promoted.sum()), outcomes.num_canary_users[outcomes.rolled_back].tolist()


def simulated_policy(pool: Executor, lift: float, scale: float) -> dict[str, Any]:
    """Return how runs of the shipped policy end that are looked at after every pair and never lack a partner."""
    num_chunks = max(1, round(SIMULATED_RUNS * scale / POLICY_CHUNK))
    chunks = list(pool.map(partial(simulated_chunk, lift), range(SEED, SEED + num_chunks)))
    promoted, runs = sum(found for found, _ in chunks), num_chunks * POLICY_CHUNK
    harmed = list(chain.from_iterable(users for _, users in chunks))
    low, high = wilson_interval(promoted, runs)
    say(f"shipped policy, {lift:+.0%}: {runs} runs, {promoted} promoted")
    return {
        "runs": runs,
        "promoted": promoted / runs,
        "promoted_low": low,
        "promoted_high": high,
        "median_canary_users_until_harm": float(np.median(harmed)) if harmed else None,
    }


def ledger_figures(pool: Executor, scale: float) -> dict[str, Any]:
    """Return what the shipped policy does at the levels that a ledger gives to the tenth rollout of a month."""
    rules = shipped_policy()
    levels = {
        "first, fixed": rules.alpha,
        "first, e-lond": rollout_ledger.level(Ledger.E_LOND, rules.alpha, number=1, num_promoted=0),
        "tenth, e-lond, 5 promoted": rollout_ledger.level(Ledger.E_LOND, rules.alpha, number=10, num_promoted=5),
        "tenth, e-lond, none promoted": rollout_ledger.level(Ledger.E_LOND, rules.alpha, number=10, num_promoted=0),
        "tenth, monthly": rollout_ledger.level(Ledger.MONTHLY, rules.alpha, number=10, num_promoted=0),
    }
    runs = max(50, round(400 * scale))
    cases = [(name, alpha, lift) for name, alpha in levels.items() for lift in (0.02, 0.05, 0.10)]
    rows = list(pool.map(at_level, [(alpha, lift, runs) for _, alpha, lift in cases]))
    figures: dict[str, Any] = {name: {"alpha": alpha, "needs": 1 / alpha} for name, alpha in levels.items()}
    for (name, _, lift), row in zip(cases, rows, strict=True):
        figures[name][f"{round(lift * 100):+d}"] = row
    say("ledger: " + ", ".join(f"{name} needs {found['needs']:.0f}" for name, found in figures.items()))
    return figures


def at_level(case: tuple[float, float, int]) -> dict[str, float | None]:
    """Return how often, and after how many canary users, the shipped policy promotes at another level."""
    alpha, lift, runs = case
    outcomes = simulate(shipped_policy(alpha=alpha), lift=lift, base_rate=0.6, runs=runs, seed=SEED)
    users = np.sort(outcomes.num_canary_users[outcomes.promoted])
    middle = int(np.ceil(runs / 2)) - 1
    median = float(users[middle]) if middle < len(users) else None
    return {"promoted": len(users) / runs, "median_canary_users": median}


def duel_figures(pool: Executor) -> dict[str, Any]:
    """Return users needed by duels beside the ordinary test, by lift and by how much answers of a turn share."""
    cases = [(lift, shared) for lift in (0.0, 0.05, 0.10) for shared in (0.2, 0.5, 0.8)]
    rows = list(pool.map(duels_beside_the_test, *zip(*cases, strict=True), [SEED] * len(cases)))
    say(f"duels: {len(rows)} worlds")
    return {f"{round(lift * 100):+d}, shared {shared}": row for (lift, shared), row in zip(cases, rows, strict=True)}


def vote_level_chunk(contiguous: bool, seed: int) -> int:
    """Return how many of CHUNK runs promote when each vote, rather than each person, is taken as independent."""
    rng = np.random.default_rng(seed)
    rows = [differences_of_votes(rng, contiguous) for _ in range(CHUNK)]
    shortest = min(map(len, rows))
    paths = wealth_paths(np.array([row[:shortest] for row in rows]), 0.0, LAMBDAS_BETTER)
    return int((stops_of(paths >= 20.0) > 0).sum())


def differences_of_votes(rng: np.random.Generator, contiguous: bool) -> Floats:
    """Return canary minus stable, vote by vote, of two crowds of people without any effect."""
    arms = []
    for _ in range(2):
        votes, ups = clustered_votes(rng, CLUSTERED_PEOPLE)
        cast = [(np.arange(n) < up).astype(float) for n, up in zip(votes, ups, strict=True)]
        arm = np.concatenate([rng.permutation(person) for person in cast])
        arms.append(arm if contiguous else rng.permutation(arm))
    length = min(map(len, arms))
    differences: Floats = arms[0][:length] - arms[1][:length]
    return differences


def vote_level(pool: Executor, scale: float) -> dict[str, float]:
    """Return false promotions of the same bets when votes are the unit, as a warning of what the unit is for."""
    num_chunks = max(1, round(400 * scale / CHUNK))
    seeds, found = range(SEED, SEED + num_chunks), {}
    for name, contiguous in (("votes_interleaved", False), ("votes_of_a_person_together", True)):
        promoted = sum(pool.map(partial(vote_level_chunk, contiguous), seeds))
        found[name] = promoted / (num_chunks * CHUNK)
    say(f"clustered votes taken one by one: {found}")
    return found


def measure(pool: Executor, scale: float, parts: Collection[str]) -> dict[str, Any]:
    """Return the figures of the parts; `replay_errors` counts replays in which the controller's bets disagreed."""
    figures: dict[str, Any] = {}
    if "bare" in parts:
        figures |= measure_bare(pool, scale)
    if "whole" in parts:
        figures["whole"] = {
            scenario: describe_whole(whole(pool, scenario, max(25, round(runs * scale))))
            for scenario, runs in WHOLE.items()
        }
        figures["clustered_by_vote"] = vote_level(pool, scale)
    if "ledger" in parts:
        figures["ledger"] = ledger_figures(pool, scale)
    if "duels" in parts:
        figures["duels"] = duel_figures(pool)
    return figures


def measure_bare(pool: Executor, scale: float) -> dict[str, Any]:
    """Return the figures of the bare test, the shipped policy and other people's rules."""
    figures: dict[str, Any] = {"bare": {}, "shipped_policy": {}, "threshold_rules": {}, "replay_errors": 0}
    for plan in BARE:
        stops = bare(pool, plan, scale)
        name = f"{round(plan.lift * 100):+d}"
        figures["replay_errors"] += int(stops["replay_errors"].sum())
        figures["bare"][name] = describe_bare(plan, stops)
        if plan.lift <= 0:
            figures["shipped_policy"][name] = simulated_policy(pool, plan.lift, scale)
            figures["threshold_rules"][name] = threshold_rules(plan.lift, max(100, round(10_000 * scale)), SEED)
    return figures


def promises(figures: dict[str, Any]) -> dict[str, Target]:
    """Return the targets of the parts that ran; where bare test and shipped policy both speak, the worse counts."""
    targets: dict[str, Target] = {}
    if "bare" in figures:
        targets |= bare_promises(figures)
    if "whole" in figures:
        whole = figures["whole"]
        harm = whole["-5"]["median_canary_users_until_harm"]
        targets |= {
            "clustered_false_promotion": Target(whole["clustered"]["promoted"], "<=", 0.05),
            "drift_false_promotion": Target(whole["drift"]["promoted"], "<=", 0.05),
            "harm5_median_users": Target(harm or float("inf"), "<=", 850),
        }
    return targets


def bare_promises(figures: dict[str, Any]) -> dict[str, Target]:
    """Return the targets of error rates and speed."""

    def worst(name: str, bound: str) -> float:
        of_bare = figures["bare"][name]["rules"]["hone"]["share" + bound]
        return float(max(of_bare, figures["shipped_policy"][name]["promoted" + bound]))

    def ratio(name: str) -> float:
        return float(figures["bare"][name]["rules"]["hone"].get("median_ratio", "inf"))

    return {
        "false_promotion_high": Target(worst("+0", "_high"), "<=", 0.05),
        "promotes_minus2": Target(worst("-2", ""), "<=", 0.01),
        "promotes_minus5": Target(worst("-5", ""), "<=", 0.001),
        "ratio_plus2": Target(ratio("+2"), "<=", 1.10),
        "ratio_plus5": Target(ratio("+5"), "<=", 1.22),
        "ratio_plus10": Target(ratio("+10"), "<=", 1.23),
        "replay_errors": Target(figures["replay_errors"], "==", 0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs, for a quick look")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to run, separated by commas")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.workers) as pool:
        figures = measure(pool, arguments.scale, arguments.parts.split(","))
    return report(figures, promises(figures), seeds=[SEED])


if __name__ == "__main__":
    sys.exit(main())
