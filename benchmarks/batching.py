"""Continuous batches against static ones, on one small random model: `python -m benchmarks.batching --json`.

Time is counted in forward passes of the model, which is what both ways spend: requests of mixed lengths arrive every
few passes. A static batch takes what waits when the one before has ended; a continuous one lets requests join and
leave at any token. CPU seconds are those of the whole run.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.result import Target, report, say
from serving.runtime.generation import Row, Running, Sampling

MAX_ROWS = 16
SEED = 5


def make_model() -> Any:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def requests(number: int, every: int) -> list[tuple[int, Row]]:
    """Return (arrival in passes, row); a fifth of the answers is long."""
    rng = random.Random(SEED)
    found = []
    for i in range(number):
        length = rng.randint(80, 160) if rng.random() < 0.2 else rng.randint(5, 30)
        prompt = [rng.randrange(512) for _ in range(rng.randint(8, 60))]
        found.append((i * every, Row(prompt, Sampling(length, temperature=1.0, seed=i), lambda ids: str(ids))))
    return found


def serve(model: Any, arrivals: list[tuple[int, Row]], admits: Callable[[Running], bool]) -> dict[str, float]:
    """Serve all requests; waiting ones may join whenever `admits` says so."""
    now, waits, first = 0, list(arrivals), dict[Row, int]()

    def emit(rows: Any) -> None:
        for row in rows:
            first.setdefault(row, now)

    running, ended, began = Running(model, pad=0, ends=frozenset(), emit=emit), dict[Row, int](), time.process_time()
    live: list[Row] = []
    while waits or running.rows:
        ready = [row for at, row in waits if at <= now]
        if ready and admits(running):
            joining = ready[: MAX_ROWS - len(running.rows)]
            waits = [(at, row) for at, row in waits if row not in joining]
            live += joining
            now += 1
            running.admit(joining)
        elif running.rows:
            now += 1
            running.step()
        else:
            now += 1
        ended |= {row: now for row in live if row.finish_reason and row not in ended}
    waited = [ended[row] - at for at, row in arrivals]
    return {
        "passes": now,
        "mean_passes_to_end": round(statistics.mean(waited), 1),
        "p95_passes_to_end": sorted(waited)[int(0.95 * len(waited))],
        "mean_passes_to_first_token": round(statistics.mean(first[row] - at for at, row in arrivals), 1),
        "cpu_s": round(time.process_time() - began, 2),
    }


def main() -> int:
    """Run both ways; exit code 1 where continuous batches do not halve the time to an answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the object (it is always printed)")
    parser.add_argument("--number", type=int, default=120, help="requests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, figures = make_model(), dict[str, Any]()
    ways: dict[str, Callable[[Running], bool]] = {
        "static": lambda running: not running.rows,
        "continuous": lambda running: len(running.rows) < MAX_ROWS,
    }
    for name, admits in ways.items():
        figures[name] = serve(model, requests(options.number, every=4), admits)
        say(f"{name}: {figures[name]}")
    ratio = figures["continuous"]["mean_passes_to_end"] / figures["static"]["mean_passes_to_end"]
    return report(figures, {"passes_to_end_over_static": Target(round(ratio, 3), "<=", 0.5)}, [SEED])


if __name__ == "__main__":
    sys.exit(main())
