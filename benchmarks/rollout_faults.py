"""Random faults against the rollout's controller: `python -m benchmarks.rollout_faults --json [--schedules N]`.

Each schedule is a rollout whose controllers crash (at four points), split, read what is stale, meet conflicts, lose
counts and rows, jump in time and are cut off from routers. After every step and at the end the invariants are checked.
"""

import argparse
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.result import Target, report, say
from benchmarks.rollout_faults_checks import breaches_at_the_end
from benchmarks.rollout_faults_clean import clean_rollback
from benchmarks.rollout_faults_play import MAX_STEPS, Play, calm, ended, phase_of
from benchmarks.rollout_faults_world import LIKES, LINES, Stage
from hone.local.postgres import SERVER_SETTINGS, create_database, start_postgres
from hone.local.processes import Supervisor
from hone.store.engine import make_engine, make_sessions, migrate

SEED = 20_261_124
CLEAN_RUNS = 20
"""Rollbacks without faults, for each backend."""


@dataclass
class Result:
    """What one schedule showed."""

    seed: int
    line: str
    ending: str
    faults: Counter[str]
    breaches: list[str]
    misattributed: int
    steps: int


def run_schedule(stage: Stage, seed: int) -> Result:
    """Run one schedule: faults at random, then calm until the rollout has ended."""
    rng = random.Random(seed)
    line, likes = rng.choice(LINES), rng.choice(list(LIKES))
    with stage.new_world(line, seed) as world:
        play = Play(world, rng, likes)
        play.controllers = [world.controller(), world.controller()]
        steps = 0
        while steps < MAX_STEPS and not ended(world):
            play.step()
            steps += 1
        play.mend()
        calm(play)
        play.breaches += breaches_at_the_end(world)
        wrong = sum(breach.startswith("I3") for breach in play.breaches)
        ending = phase_of(world)
        return Result(seed, line, ending, play.faults, play.breaches, wrong, steps)


@contextmanager
def stage_on(database_url: str) -> Iterator[Stage]:
    """Give the routers over a migrated database."""
    engine = make_engine(database_url, pool_size=2)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        yield Stage(make_sessions(engine), Path(folder), stack, schemas=None)
    engine.dispose()


def work(
    database_url: str, seeds: Sequence[int], lines: Sequence[str] = ()
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Run schedules, and clean rollbacks on `lines`, on a database of this worker's own."""
    quiet()
    results: list[Result] = []
    with stage_on(database_url) as stage:
        clean = [
            {"line": line} | clean_rollback(stage, line, SEED + run) for line in lines for run in range(CLEAN_RUNS)
        ]
        for line in lines:
            say(f"rollbacks without faults, {line}: {worst_of([row for row in clean if row['line'] == line])}")
        for seed in seeds:
            results.append(run_schedule(stage, seed))
            if len(results) % 20 == 0:
                found = sum(len(result.breaches) for result in results)
                say(f"worker {seeds[0] - SEED}: {len(results)} of {len(seeds)} schedules, {found} violations")
    return results, clean


def quiet() -> None:
    """Keep logs of thousands of expected failures away."""
    logging.disable(logging.CRITICAL)


def measure(schedules: int, workers: int) -> tuple[list[Result], list[dict[str, Any]]]:
    """Run everything on an embedded Postgres."""
    with tempfile.TemporaryDirectory(prefix="hone-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        with Supervisor(directory / "stack.json") as supervisor:
            settings = {**SERVER_SETTINGS, "fsync": "off", "full_page_writes": "off"}
            server = start_postgres(directory / "postgres", settings=settings)
            supervisor.adopt(server.running())
            urls = [create_database(server.url, f"faults_{number}") for number in range(workers)]
            for url in urls:
                migrate(url)
            shares = [range(SEED + number, SEED + schedules, workers) for number in range(workers)]
            lines = [LINES[number::workers] for number in range(workers)]
            with ProcessPoolExecutor(workers) as pool:
                found = list(pool.map(work, urls, shares, lines))
    return list(chain.from_iterable(r for r, _ in found)), list(chain.from_iterable(c for _, c in found))


def figures_of(results: Sequence[Result], clean: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what happened."""
    breaches = [f"seed {result.seed}: {breach}" for result in results for breach in result.breaches]
    return {
        "schedules": len(results),
        "looks_and_acts": dict(sum((result.faults for result in results), Counter()).most_common()),
        "backends": dict(Counter(result.line for result in results)),
        "endings": dict(Counter(result.ending for result in results)),
        "breaches": breaches[:20],
        "clean": {line: worst_of([row for row in clean if row["line"] == line]) for line in LINES},
    }


def worst_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the largest value of each figure."""
    names = ("seconds", "reconciles", "glass_seconds")
    return {f"max_{name}": max((row[name] for row in rows), default=float("inf")) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    results, clean = measure(arguments.schedules, arguments.workers)
    figures = figures_of(results, clean)
    fake = [figures["clean"][line]["max_reconciles"] for line in LINES if line != "local"]
    targets = {
        "schedules": Target(len(results), ">=", 1_000),
        "violations": Target(sum(len(result.breaches) for result in results), "==", 0),
        "misattributed": Target(sum(result.misattributed for result in results), "==", 0),
        "rollback_seconds_local": Target(
            max(figures["clean"]["local"]["max_seconds"], figures["clean"]["local"]["max_glass_seconds"]), "<=", 1.0
        ),
        "rollback_reconciles_fake": Target(max(fake), "<=", 2),
    }
    return report(figures, targets, seeds=[SEED])


if __name__ == "__main__":
    sys.exit(main())
