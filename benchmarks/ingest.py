"""What ingest costs beside other ways and beside the floors: `python -m benchmarks.ingest --json [--full] [--parts …]`.

On a real broker and a real, durable Postgres. Costs are CPU of the client and of its Postgres backend, the broker's
excluded; every figure is the median of several rounds, and a round runs all loops, so that ratios share their moment.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import ingest_jdbc
from benchmarks import ingest_loops as loops
from benchmarks.ingest_flow import latency, scaling
from benchmarks.ingest_growth import Growth, measure
from benchmarks.ingest_world import SHORT_BOTH, SHORT_FEEDBACK, Cost, Messages, World, describe, produce, world
from benchmarks.result import Target, report, say
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback
from ingest.consumer import spare_collector

SEED = 1
SMALL = 1_000
FEW, TRANSACTIONS = (1, 20, 50), 500
PARTS = ("loops", "few", "growth", "flow", "jdbc")
Loop = Callable[[sessionmaker[Session]], Cost]


def loops_of(servers: World, messages: Messages, num_short: int) -> dict[str, Loop]:
    """Return every loop by name; each gets an empty database."""
    feedback, num_both = messages.feedback, len(messages.feedback) + len(messages.responses)
    bodies = [msgspec.json.encode(record) for record in feedback]
    return {
        "append": lambda sessions: loops.append_loop(servers, sessions, len(feedback)),
        "naive": lambda sessions: loops.naive_loop(servers, sessions, num_short),
        "execute_values": lambda sessions: loops.pages_loop(servers, sessions, len(feedback)),
        "full": lambda sessions: loops.full_loop(servers, sessions, num_both),
        "full_naive": lambda sessions: loops.naive_loop(servers, sessions, num_short, full=True),
        "staged_copy_alone": lambda sessions: loops.staged_copy(sessions, feedback),
        "look_and_copy_alone": lambda sessions: loops.look_and_copy(sessions, feedback, loops.ROWS),
        "plain_copy_alone": lambda sessions: loops.plain_copy(sessions, feedback),
        "execute_values_alone": lambda sessions: loops.pages_write(sessions, feedback),
        "consume_alone": lambda sessions: loops.consume_floor(servers, len(feedback)),
        "decode_alone": lambda sessions: loops.decode_floor(bodies),
        "encode_alone": lambda sessions: loops.encode_floor(feedback),
        "encode_by_hand_alone": lambda sessions: loops.encode_by_hand(feedback),
    }


def run_rounds(servers: World, messages: Messages, num_short: int, rounds: int) -> dict[str, list[Cost]]:
    """Run every loop in every round."""
    found: dict[str, list[Cost]] = {}
    chosen = loops_of(servers, messages, num_short)
    spare_collector()  # for all loops alike; the messages that this process holds are no part of any
    for number in range(rounds):
        for name, loop in chosen.items():
            with servers.database() as sessions:
                cost = loop(sessions)
            found.setdefault(name, []).append(cost)
            say(f"round {number + 1}: {name} {cost.total_us:.1f} us of CPU an event, {cost.events} events")
    return found


def ratio(costs: dict[str, list[Cost]], above: Callable[[dict[str, Cost]], float]) -> dict[str, float]:
    """Return the median over the rounds, and the extremes, of something that is computed within each round."""
    rounds = [dict(zip(costs, row, strict=True)) for row in zip(*costs.values(), strict=True)]
    values = [above(found) for found in rounds]
    return {"median": median(values), "min": min(values), "max": max(values)}


def per_event(cost: Cost, seconds: float) -> float:
    """Return microseconds for each event."""
    return seconds / cost.events * 1e6


def client(cost: Cost) -> float:
    """Return this process's CPU for each event."""
    return per_event(cost, cost.client_s)


def postgres(cost: Cost) -> float:
    """Return the backend's CPU for each event."""
    return per_event(cost, cost.postgres_s)


def floor(found: dict[str, Cost]) -> float:
    """Return the CPU of the process that cannot be avoided in Python: consume, decode, encode."""
    return sum(client(found[name]) for name in ("consume_alone", "decode_alone", "encode_alone"))


def ratios_of(costs: dict[str, list[Cost]]) -> dict[str, dict[str, float]]:
    """Return every ratio."""
    return {
        "vs_naive": ratio(costs, lambda c: c["naive"].total_us / c["append"].total_us),
        "vs_execute_values": ratio(costs, lambda c: c["execute_values"].total_us / c["append"].total_us),
        "share_of_copy_floor": ratio(costs, lambda c: c["staged_copy_alone"].total_us / c["append"].total_us),
        "process_cpu_over_floor": ratio(costs, lambda c: client(c["append"]) / floor(c)),
        "postgres_cpu_over_plain_copy": ratio(costs, lambda c: postgres(c["append"]) / postgres(c["plain_copy_alone"])),
        "full_vs_naive": ratio(costs, lambda c: c["full_naive"].total_us / c["full"].total_us),
        "look_and_copy_over_staged_postgres": ratio(
            costs, lambda c: postgres(c["look_and_copy_alone"]) / postgres(c["staged_copy_alone"])
        ),
        "write_alone_vs_execute_values": ratio(
            costs, lambda c: c["execute_values_alone"].total_us / c["staged_copy_alone"].total_us
        ),
    }


def promises(ratios: dict[str, dict[str, float]]) -> dict[str, Target]:
    """Return the targets of the loops."""
    bounds = {
        "vs_naive": (">=", 36.0),
        "vs_execute_values": (">=", 1.7),
        "share_of_copy_floor": (">=", 0.57),
        "process_cpu_over_floor": ("<=", 1.9),
        "postgres_cpu_over_plain_copy": ("<=", 1.2),
        "full_vs_naive": (">=", 15.0),
    }
    return {name: Target(ratios[name]["median"], op, bound) for name, (op, bound) in bounds.items()}


def growth_promises(growth: Sequence[Sequence[Growth]]) -> dict[str, Target]:
    """Return the targets of growth, that of the largest size over the smallest."""

    def grew(name: str) -> float:
        small, large = (median(float(getattr(found, name)) for found in rounds) for rounds in growth)
        return large / small

    return {
        "buffer_touches_growth": Target(grew("touches_per_event"), "<=", 1.3),
        "pair_worker_growth": Target(grew("pair_us"), "<=", 1.2),
    }


def few_rows(servers: World, messages: Messages) -> dict[str, dict[str, float]]:
    """Return microseconds of CPU for a transaction of few rows, by each way to write them."""
    ways: dict[str, Callable[[sessionmaker[Session], list[Feedback], int], Cost]] = {
        "look_and_copy": loops.look_and_copy,
        "insert": loops.pages_write,
        "plain_copy": loops.plain_copy,
        "staged_copy": loops.staged_copy,
    }
    found: dict[str, dict[str, float]] = {}
    for rows, (name, way) in product(FEW, ways.items()):
        feedback = messages.feedback[: rows * TRANSACTIONS]
        with servers.database() as sessions:
            cost = way(sessions, feedback, rows)
        client_us, postgres_us = client(cost) * rows, postgres(cost) * rows
        found[f"{name}_{rows}"] = {"rows": rows, "client_us": client_us, "postgres_us": postgres_us}
        say(f"{rows} rows a transaction, {name}: {client_us:.0f} us client, {postgres_us:.0f} us Postgres")
    return found


def jdbc(servers: World, messages: Messages, rounds: int) -> dict[str, Any]:
    """Return what a JDBC sink connector takes for each event, round by round, or why it cannot run here."""
    reason = ingest_jdbc.obstacle()
    if reason:
        say(f"jdbc: left out, {reason}")
        return {"left_out": reason}
    with tempfile.TemporaryDirectory(prefix="hone-jdbc-", ignore_cleanup_errors=True) as folder:
        costs = ingest_jdbc.measure(servers, messages, rounds, Path(folder))
    return {"rounds": [cost.as_dict() for cost in costs]}


def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    messages, parts = Messages.make(arguments.events, SEED), set(arguments.parts)
    figures: dict[str, Any] = {}
    targets: dict[str, Target] = {}
    with world() as servers:
        figures["servers"] = describe(servers)
        produce(servers.broker, FEEDBACK_TOPIC, messages.feedback)
        produce(servers.broker, RESPONSES_TOPIC, messages.responses)
        if "loops" in parts:
            found = measure_loops(servers, messages, arguments.rounds)
            figures |= found
            targets |= promises(found["ratios"])
        if "few" in parts:
            figures["few_rows_a_transaction"] = few_rows(servers, messages)
        if "growth" in parts:
            large = arguments.stored or (5_000_000 if arguments.full else 1_000_000)
            growth = [measure(servers, size, arguments.rounds, SEED) for size in (SMALL, large)]
            figures["growth"] = [asdict(found) for rounds in growth for found in rounds]
            targets |= growth_promises(growth)
        if "flow" in parts:
            figures["messages_per_s_by_processes"] = scaling(servers, len(messages.feedback) + len(messages.responses))
            figures["latency"] = latency(servers, messages.responses)
        if "jdbc" in parts:
            figures["jdbc_sink"] = jdbc(servers, messages, arguments.rounds)
    return report(figures, targets, seeds=[SEED])


def measure_loops(servers: World, messages: Messages, rounds: int) -> dict[str, Any]:
    """Return the costs of all loops, and their ratios."""
    num_short = max(200, len(messages.feedback) // 20)
    produce(servers.broker, SHORT_FEEDBACK, messages.feedback[:num_short])
    produce(servers.broker, SHORT_BOTH, messages.both()[:num_short])
    costs = run_rounds(servers, messages, num_short, rounds)
    return {
        "loops": {name: [cost.as_dict() for cost in found] for name, found in costs.items()},
        "ratios": ratios_of(costs),
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--events", type=int, default=60_000, help="feedback events of the fast loops")
    parser.add_argument("--rounds", type=int, default=3, help="an odd number; figures are medians")
    parser.add_argument("--full", action="store_true", help="growth up to 5 million stored events instead of 1 million")
    parser.add_argument("--stored", type=int, help="growth up to so many stored events")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS[:-1],
        help="what to measure; jdbc, which fetches 85 MB of jars once, only when it is named",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
