"""`python -m benchmarks.planner --json`: the planner's memory arithmetic beside the peaks of real training on this CPU.

Each case is a process of its own that builds a random model, trains it by hone's own `fit` for two steps, and watches
how far its anonymous memory (no mapped files, which the system takes away and brings back as it likes) rises above what
it was before the model was built. The plan is an upper bound, so a case holds where the measured peak is between half
of the planned sum and a tenth above it.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from benchmarks.result import Target, report, say
from hone.plan.facts import Shape
from hone.plan.memory import LOGIT_COPIES, LOGIT_COPIES_TRL_CPU, Adapter, Setup, memory_of

LOWEST, HIGHEST = 0.5, 1.1
ENVIRONMENT_MMAP = "65536"
"""Tensors are given back to the system at once, so that resident memory is what is in use."""
STEPS = 2
LOOK_S = 0.002


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    method: str
    engine: str
    adapter: Adapter
    hidden: int
    layers: int
    batch: int
    words: int
    checkpointing: bool = False

    @property
    def shape(self) -> Shape:
        """The model."""
        return Shape(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=self.hidden * 11 // 4,
            vocab_size=8192,
        )


CASES = (
    Case("dpo_lora", "dpo", "native", "lora", 512, 8, 4, 200),
    Case("dpo_lora_wide", "dpo", "native", "lora", 1024, 4, 4, 200),
    Case("dpo_full", "dpo", "native", "full", 512, 8, 4, 200),
    Case("dpo_full_small_batch", "dpo", "native", "full", 1024, 6, 1, 60),
    Case("dpo_trl_lora", "dpo", "trl", "lora", 512, 8, 4, 200),
    Case("sft_lora", "sft", "trl", "lora", 512, 8, 8, 200),
    Case("sft_full", "sft", "trl", "full", 512, 8, 8, 200),
    Case("sft_lora_checkpointing", "sft", "trl", "lora", 512, 12, 8, 200, True),
)


def main() -> int:
    """Measure every case; return 1 where the arithmetic is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="accepted; the last line is always one JSON object")
    parser.add_argument("--only", help="the name of one case")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(next(case for case in CASES if case.name == options.child))))
        return 0
    figures, targets = {}, {}
    for case in CASES:
        if options.only in (None, case.name):
            found = figures[case.name] = run_case(case)
            say(f"{case.name}: planned {found['planned_mb']:.0f} MB, measured {found['measured_mb']:.0f} MB")
    ratios = [found["ratio"] for found in figures.values()]
    targets["highest_measured_over_planned"] = Target(max(ratios), "<=", HIGHEST)
    targets["lowest_measured_over_planned"] = Target(min(ratios), ">=", LOWEST)
    return report(figures, targets, [0])


def run_case(case: Case) -> dict[str, Any]:
    """Return what one case took, measured in a process of its own, beside the plan."""
    import os

    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": ENVIRONMENT_MMAP, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.planner", "--child", case.name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    planned = planned_memory(case, found["tokens"])
    terms = {name: round(value / 1e6, 1) for name, value in planned.items() if value}
    total = sum(planned.values())
    return {
        "planned_mb": round(total / 1e6, 1),
        "measured_mb": round(found["peak"] / 1e6, 1),
        "ratio": round(found["peak"] / total, 3),
        "tokens": found["tokens"],
        "terms_mb": terms,
    }


def planned_memory(case: Case, tokens: int) -> dict[str, float]:
    """Return the planner's terms for the tokens that a sequence really has."""
    sequences = case.batch * (2 if case.method == "dpo" else 1)
    setup = Setup(
        adapter=case.adapter,
        rank=16,
        precision="fp32",
        sequences=sequences,
        tokens=tokens,
        logit_tokens=min(4096, sequences * tokens),
        logit_copies=LOGIT_COPIES if case.engine == "native" else LOGIT_COPIES_TRL_CPU,
        checkpointing=case.checkpointing,
        is_gpu=False,
    )
    return asdict(memory_of(case.shape, setup))


def measure(case: Case) -> dict[str, Any]:
    """Train here, and return the rise of the resident memory in bytes and the tokens of a sequence."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from examples.support.chat_model import train_tokenizer
    from training.fit import TRAINERS, Task, fit
    from training.pairs import encode_pairs
    from training.progress import Progress
    from training.spec import RunSpec

    torch.set_num_threads(1)
    words = [f"w{number:03}" for number in range(100)]
    tokenizer = train_tokenizer([" ".join(words)] * 3, vocab_size=1024)
    text = " ".join(words * 3)
    answers = [" ".join(text.split()[at : at + case.words]) for at in range(0, 40, 2)]
    rows = [
        {
            "prompt": [{"role": "user", "content": words[k]}],
            "chosen": a,
            "rejected": a[5:],
            "weight": 1.0,
        }
        for k, a in enumerate(answers)
    ]
    tokens = encode_pairs(rows, tokenizer, 4096)[0][0].length
    spec = RunSpec.model_validate(
        {
            "method": case.method,
            "engine": case.engine,
            "adapter": case.adapter,
            "steps": STEPS,
            "batch_size": case.batch,
            "max_length": 4096,
            "gradient_checkpointing": case.checkpointing,
            "checkpoint_steps": 100,
        }
    )
    # Imported before the baseline: TRL and what it needs take some hundred megabytes, which no plan is about.
    module, _, _ = TRAINERS[spec.method, spec.engine].partition(":")
    import_module(module)
    torch.ones(512, 512).matmul(torch.ones(512, 512)).sum().item()
    gc.collect()
    before = anonymous_bytes()
    config = LlamaConfig(**case.shape.model_dump(exclude_none=True), max_position_embeddings=4096)
    with Peak() as peak, tempfile.TemporaryDirectory() as folder:
        model = LlamaForCausalLM(config)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        progress = Progress(Path(folder) / "progress.json")
        fit(Task(model, tokenizer, rows, [], spec, Path(folder), "r-planner", progress))
    return {"peak": peak.bytes - before, "tokens": tokens}


class Peak:
    """The highest anonymous memory of this process while it is open, looked at all the time by a thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            self.bytes = max(self.bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    """Return this process' resident memory that is no file's."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
