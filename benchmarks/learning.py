"""Does feedback make answers better, round after round? `python -m benchmarks.learning --json [--full]`.

Simulated users ask, judge with noise, correct and choose; the product's rules make pairs; the demo's recipe trains; the
hidden taste, which only the simulation knows, measures answers to 160 held-out questions. The oracle is DPO with the
same recipe and number of steps on the same samples, labelled by the hidden taste itself without noise.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.learning_runs import (
    Arm,
    Chain,
    Outcome,
    Trial,
    make_base,
    run_chain,
    run_trial,
)
from benchmarks.result import Target, report, say

CONFIDENCE = 0.95
NUM_USERS = 50
"""Of a round, with 8 questions each."""
NUM_TRIAL_USERS = 120
"""Of the round that the gates judge: as many as they need to be sure."""
OTHER_ARMS: tuple[Arm, ...] = ("kto", "ppo", "rloo")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run."""

    num_rounds: int
    num_seeds: int
    families: tuple[str, ...]
    noise: float
    num_bases: int
    "Base models of different seeds; worlds take them in turn."

    def chains(self) -> list[Chain]:
        """Return all chains, the longest first; KTO, PPO and RLOO get one round of the first seed in each family."""
        arms: tuple[Arm, ...] = ("dpo", "oracle")
        seeds = range(self.num_seeds)
        long = [
            self._chain(arm, family, seed, self.num_rounds) for seed, family, arm in product(seeds, self.families, arms)
        ]
        return long + [self._chain(arm, family, 0, 1) for arm, family in product(OTHER_ARMS, self.families)]

    def trials(self) -> list[Trial]:
        """Return a bad and a good recipe for each seed, the families in turn."""
        return [
            Trial(
                is_bad,
                self.families[seed % len(self.families)],
                seed,
                NUM_TRIAL_USERS,
                self.noise,
                seed % self.num_bases,
            )
            for seed in range(self.num_seeds)
            for is_bad in (True, False)
        ]

    def _chain(self, arm: Arm, family: str, seed: int, num_rounds: int) -> Chain:
        return Chain(arm, family, seed, num_rounds, NUM_USERS, self.noise, seed % self.num_bases)


DEFAULT = Plan(num_rounds=3, num_seeds=5, families=("guided", "terse"), noise=0.18, num_bases=1)
FULL = Plan(num_rounds=10, num_seeds=10, families=("guided", "terse", "thorough"), noise=0.3, num_bases=3)


def gain(outcome: Outcome, number: int) -> float:
    """Return how much more hidden reward an answer earns after a number of rounds than the base's."""
    return float((outcome.models[number].reward - outcome.models[0].reward).mean())


def interval(values: Iterable[float], confidence: float = CONFIDENCE) -> dict[str, float]:
    """Return mean and Student interval of independent values."""
    found = np.array(list(values), dtype=float)
    mean, num = float(found.mean()), len(found)
    if num < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan")}
    half = float(stats.t.ppf((1 + confidence) / 2, num - 1) * found.std(ddof=1) / num**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def round_changes(outcome: Outcome, confidence: float) -> list[dict[str, float]]:
    """Return for each round the change of hidden reward against the round before, with its interval over questions."""
    steps = zip(outcome.models, outcome.models[1:], strict=False)
    return [interval(after.reward - before.reward, confidence) for before, after in steps]


def describe_family(outcomes: Sequence[Outcome], oracles: Sequence[Outcome]) -> dict[str, Any]:
    """Return one family's figures over its seeds."""
    num_rounds = outcomes[0].chain.num_rounds
    events = sum(sum(one.num_events) for one in outcomes)
    last = [gain(one, num_rounds) for one in outcomes]
    return {
        "base_reward": float(np.mean([one.models[0].reward.mean() for one in outcomes])),
        "gain_by_round": [float(np.mean([gain(one, k) for one in outcomes])) for k in range(1, num_rounds + 1)],
        "oracle_gain_by_round": [float(np.mean([gain(one, k) for one in oracles])) for k in range(1, num_rounds + 1)],
        "gain": interval(last),
        "lowest_gain": min(last),
        "gain_over_oracle": float(np.sum(last) / np.sum([gain(one, num_rounds) for one in oracles])),
        "gain_per_1000_events": 1000 * float(np.sum(last)) / events,
        "events_a_round": events / len(outcomes) / num_rounds,
        "pairs_a_round": sum(sum(one.num_pairs) for one in outcomes) / len(outcomes) / num_rounds,
        "correct_by_round": [
            float(np.mean([one.models[k].correct.mean() for one in outcomes])) for k in range(num_rounds + 1)
        ],
        "characters_by_round": [
            float(np.mean([one.models[k].num_characters for one in outcomes])) for k in range(num_rounds + 1)
        ],
        "stop_rules_fired": sum(bool(fired) for one in outcomes for fired in one.fired),
    }


def describe_arm(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of an arm with one round."""
    return {
        one.chain.family: {
            "gain": gain(one, 1),
            "correct_change": float((one.models[1].correct - one.models[0].correct).mean()),
            "gain_per_1000_events": 1000 * gain(one, 1) / one.num_events[0],
            "num_rows": one.num_pairs[0],
            "fired": one.fired[0],
            "cpu_s": one.cpu_s,
        }
        for one in outcomes
    }


def describe(outcomes: Sequence[Outcome], trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return all figures."""
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.chain.arm, []).append(outcome)
    ours, oracles = by_arm["dpo"], by_arm["oracle"]
    families = sorted({one.chain.family for one in ours})
    num_rounds = ours[0].chain.num_rounds
    num_tests = len(ours) * num_rounds
    # As many looks as there are rounds of all chains: without a correction one in forty flat rounds would look worse.
    corrected = 1 - (1 - CONFIDENCE) / num_tests
    drops = [-float((one.models[-1].correct - one.models[0].correct).mean()) for one in ours]
    return {
        "families": {
            family: describe_family(*([o for o in some if o.chain.family == family] for some in (ours, oracles)))
            for family in families
        },
        "gain_over_oracle": sum(gain(o, num_rounds) for o in ours) / sum(gain(o, num_rounds) for o in oracles),
        "correctness_drop": interval(drops),
        "rounds_down_uncorrected": sum(c["high"] < 0 for o in ours for c in round_changes(o, CONFIDENCE)),
        "rounds_significantly_down": sum(c["high"] < 0 for o in ours for c in round_changes(o, corrected)),
        "num_round_tests": num_tests,
        "other_arms_one_round": {arm: describe_arm(by_arm[arm]) for arm in OTHER_ARMS if arm in by_arm},
        "dpo_one_round": describe_arm([one for one in ours if one.chain.seed == ours[0].chain.seed]),
        "gates": list(trials),
    }


def promises(figures: dict[str, Any]) -> dict[str, Target]:
    """Return the targets; of several families the worst counts."""
    bad = [trial for trial in figures["gates"] if trial["is_bad"]]
    return {
        "gain_over_oracle": Target(figures["gain_over_oracle"], ">=", 0.7),
        "round3_gain_low": Target(min(one["gain"]["low"] for one in figures["families"].values()), ">", 0.0),
        "rounds_significantly_down": Target(figures["rounds_significantly_down"], "==", 0),
        "correctness_drop_high": Target(figures["correctness_drop"]["high"], "<=", 0.05),
        "bad_recipe_caught": Target(sum(one["verdict"] == "fail" for one in bad) / len(bad), "==", 1.0),
    }


def measure(plan: Plan, workers: int) -> dict[str, Any]:
    """Run everything, one process for each worker, and return the figures."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for seed in pool.map(make_base, range(plan.num_bases)):
            say(f"base model of seed {seed} is there")
        outcomes, verdicts = [], []
        for outcome in pool.map(run_chain, plan.chains()):
            outcomes.append(outcome)
            gains = [round(gain(outcome, k), 3) for k in range(1, len(outcome.models))]
            say(f"{outcome.chain.arm} {outcome.chain.family} {outcome.chain.seed}: {gains}, {outcome.cpu_s:.0f} CPU s")
        for trial, verdict in zip(plan.trials(), pool.map(run_trial, plan.trials()), strict=True):
            verdicts.append(verdict)
            say(f"{'bad' if trial.is_bad else 'good'} recipe {trial.seed}: {verdict}")
    return describe(outcomes, verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--full", action="store_true", help="10 rounds, 10 seeds, 3 families, 30 %% noise: hours")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    plan = FULL if arguments.full else DEFAULT
    plan = replace(plan, num_seeds=arguments.seeds or plan.num_seeds, num_rounds=arguments.rounds or plan.num_rounds)
    figures = measure(plan, arguments.workers)
    return report(figures, promises(figures), seeds=list(range(plan.num_seeds)))


if __name__ == "__main__":
    sys.exit(main())
