"""Speed of training beside TRL and of sampling beside transformers: `python -m benchmarks.training --json`.

Medians of five in one run, CPU seconds, one thread, fp32, LoRA of rank 16, batches of 8, the demo's model of 0.6 M
parameters. TRL runs at its best on a CPU. With `--gpu`: models of 0.5 to 8 B parameters on the GPU that is here.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.result import Target, report, say

QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "PASSIVE"}
SEED = 0
PROMPT_TOKENS = {"short": 10, "long": 150}
GENERATION = {"num_prompts": 128, "samples": 4, "batch_size": 64}


def measure_cpu(repeats: int, num_pairs: int) -> dict[str, Any]:
    """Return all figures of the CPU."""
    import torch

    from benchmarks import training_dpo, training_generation
    from benchmarks.training_world import small_world
    from training.spec import RunSpec

    torch.set_num_threads(1)
    spec = RunSpec(batch_size=8, learning_rate=1e-4, max_length=1024, seed=SEED)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, tokens in PROMPT_TOKENS.items():
            say(f"DPO, prompts of {tokens} tokens")
            world = small_world(num_pairs, tokens, SEED)
            seconds = training_dpo.measure(world, spec, repeats, Path(scratch) / name)
            figures[name] = {
                **training_dpo.describe(seconds, num_pairs // spec.batch_size),
                "trl_default_settings_ms_per_step": training_dpo.default_settings_ms(
                    world, spec, Path(scratch) / f"{name}-default", world.pairs[: 3 * spec.batch_size]
                ),
                "mean_tokens": world.mean_lengths,
            }
    say("sampling")
    figures["generation"] = training_generation.measure(**GENERATION, repeats=repeats, seed=SEED)
    return figures


def promises(figures: dict[str, Any]) -> dict[str, Target]:
    """Return the targets: ratios of CPU seconds a step, and of tokens a CPU second."""
    return {
        "dpo_vs_trl_short": Target(figures["short"]["vs_trl"], ">=", 2.3),
        "dpo_vs_trl_long": Target(figures["long"]["vs_trl"], ">=", 3.0),
        "dpo_vs_trl_precomputed_short": Target(figures["short"]["vs_trl_precomputed"], ">=", 1.6),
        "dpo_vs_trl_precomputed_long": Target(figures["long"]["vs_trl_precomputed"], ">=", 2.2),
        "ppo_generation_vs_plain": Target(figures["generation"]["vs_plain"], ">=", 2.0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--full", action="store_true", help="all pairs of an epoch four times as many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=240, help="of an epoch")
    parser.add_argument("--gpu", action="store_true", help="large models on the GPU, beside TRL; on a CPU only `tiny`")
    parser.add_argument("--models", default="0.5b,1.5b,3b,8b", help="with --gpu: which, by name")
    parser.add_argument("--steps", type=int, default=10, help="with --gpu: measured steps of each way")
    arguments = parser.parse_args()
    os.environ.update({**QUIET, **{key: value for key, value in os.environ.items() if key in QUIET}})
    if arguments.gpu:
        from benchmarks.training_gpu import measure as measure_gpu

        figures, targets = measure_gpu(arguments.models.split(","), arguments.steps, SEED)
        return report(figures, targets, seeds=[SEED])
    figures = measure_cpu(arguments.repeats, arguments.pairs * (4 if arguments.full else 1))
    return report(figures, promises(figures), seeds=[SEED])


if __name__ == "__main__":
    sys.exit(main())
