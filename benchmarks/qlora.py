"""What 4 bits cost a trained model: `python -m benchmarks.qlora --json`.

The demo's base model and one round of its simulated users, as in `benchmarks.learning`; DPO by the demo's recipe, once
with LoRA and once with QLoRA. The hidden taste measures three models of each seed: LoRA's, QLoRA's as it was trained
(over 4 bits), and QLoRA's as it is served (its adapter merged into the unquantised base).
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from benchmarks.learning_runs import Chain, Measured, Silent, measure, one_round, prepare, spec_of
from benchmarks.learning_world import Row
from benchmarks.result import Target, report, say
from benchmarks.training_world import BASES
from examples.support.base_model import ensure_base
from examples.support.corpus import as_prompt, judge_questions
from examples.support.taste import TASTES
from training.fit import Task, fit
from training.policy import load_model
from training.quantized import load_quantized, onto, probes, rounding_cost
from training.result import TrainResult
from training.spec import RunSpec

FAMILY = "guided"
NUM_SEEDS = 3


def main() -> int:
    """Measure all seeds; return 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="accepted; the last line is always one JSON object")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    num_seeds = parser.parse_args().seeds
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    prepare()
    found = [run(seed) for seed in range(num_seeds)]
    figures = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    targets = {
        "served_gain_over_lora": Target(figures["gain_served"] / figures["gain_lora"], ">=", 0.9),
        "served_gain_over_trained": Target(figures["gain_served"] / figures["gain_trained"], ">=", 0.9),
        "kl_over_bases": Target(figures["kl"] / figures["kl_bases"], "<=", 1.5),
    }
    return report({**figures, "seeds": found}, targets, list(range(num_seeds)))


def run(seed: int) -> dict[str, float]:
    """Return the figures of one seed."""
    base = ensure_base(BASES, seed=0)
    model, tokenizer = load_model(base)
    rows = one_round(model, tokenizer, Chain("dpo", FAMILY, seed, 1, 50, 0.18, 0), 0).rows
    before = reward_of(model, tokenizer, seed)
    lora, lora_s = trained(model, tokenizer, rows, seed, "lora")
    lora_reward = reward_of(lora.model.merge_and_unload().eval(), tokenizer, seed)
    spec = spec_of({"seed": seed, "adapter": "qlora"})
    qlora, qlora_s = trained(load_quantized(base, spec), tokenizer, rows, seed, "qlora")
    trained_reward = reward_of(qlora.model, tokenizer, seed)
    served = onto(load_model(base)[0], qlora.model)
    asked = [
        {"prompt": as_prompt(question), "chosen": row["chosen"]}
        for question, row in zip(judge_questions(), rows, strict=False)
    ]
    cost = rounding_cost(qlora.model, served, probes(task_of(model, tokenizer, asked, spec, Path())))
    served_reward = reward_of(served.merge_and_unload().eval(), tokenizer, seed)
    found = {
        "gain_lora": mean_gain(lora_reward, before),
        "gain_trained": mean_gain(trained_reward, before),
        "gain_served": mean_gain(served_reward, before),
        "correct_base": float(before.correct.mean()),
        "correct_lora": float(lora_reward.correct.mean()),
        "correct_served": float(served_reward.correct.mean()),
        "step_cpu_over_lora": qlora_s / lora_s,
        **cost,
    }
    say(f"seed {seed}: {found}")
    return found


def trained(model: Any, tokenizer: Any, rows: list[Row], seed: int, adapter: str) -> tuple[TrainResult, float]:
    """Return the trained policy, its adapter not merged, and the CPU seconds of the run."""
    with tempfile.TemporaryDirectory() as scratch:
        task = task_of(model, tokenizer, rows, spec_of({"seed": seed, "adapter": adapter}), Path(scratch))
        started = process_time()
        return fit(task), process_time() - started


def task_of(model: Any, tokenizer: Any, rows: list[Row], spec: RunSpec, directory: Path) -> Task:
    """Return a training of these rows."""
    return Task(model, tokenizer, rows, [], spec, directory, "r-bench", Silent())


def reward_of(model: Any, tokenizer: Any, seed: int) -> Measured:
    """Return what the hidden taste says of the model's answers to the held-out questions."""
    return measure(model, tokenizer, TASTES[FAMILY], seed)


def mean_gain(after: Measured, before: Measured) -> float:
    """Return how much more an answer earns."""
    return float((after.reward - before.reward).mean())


if __name__ == "__main__":
    sys.exit(main())
