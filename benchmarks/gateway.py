"""The gateway's promises, all in one run: CPU of feedback, what chat adds to a model server, memory, and no loss.

`python -m benchmarks.gateway --json`. Servers, load and broker are processes of their own on loopback; what is compared
is measured in turns, and the ratio is taken within a turn. CPU is that of the server's process, all its threads.
"""

import argparse
import statistics
import sys
from itertools import chain
from typing import Any

from benchmarks.gateway_loss import lost
from benchmarks.gateway_world import World, chat_job, feedback_job, install_litellm, world
from benchmarks.result import Target, report, say

PARTS = ("feedback", "latency", "chunks", "memory", "loss")
CHUNKS = 256
"""Of one answer where chunks are counted."""
LENGTHS = (CHUNKS, 4 * CHUNKS)
"""Two of them, so that what a request costs can be told from what one more chunk costs (`_more_cpu_us`)."""


def cpu_us(world: World, name: str, number: int) -> float:
    """Return the CPU microseconds of one feedback request."""
    job = feedback_job(number)
    before = world.cpu_s(name)
    done = world.load(name, job)
    return (world.cpu_s(name) - before) / done.number * 1e6


def feedback(world: World, rounds: int, number: int) -> dict[str, Any]:
    """Return CPU of one feedback request of each server, and the medians of the ratios."""
    names = ["floor", "feedback", "fastapi", "gateway"]
    for name in names:
        world.gateway() if name == "gateway" else world.server(name)
        world.load(name, feedback_job(2000))
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            found[name].append(cpu_us(world, name, number * 2 if name == "floor" else number))
        say(f"feedback, turn {turn + 1} of {rounds}: " + ", ".join(f"{n} {found[n][-1]:.1f} µs" for n in names))
    figures: dict[str, Any] = {f"{name}_cpu_us": round(statistics.median(found[name]), 1) for name in names}
    figures["over_floor"] = median_ratio(found["feedback"], found["floor"])
    figures["vs_fastapi"] = median_ratio(found["feedback"], found["fastapi"])
    figures["with_kafka_over_floor"] = median_ratio(found["gateway"], found["floor"])
    return figures


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over the turns of ours ÷ theirs."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which this share lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def raw_and_usual(world: World) -> None:
    """Start the model server and the proxies over it that only pass on."""
    world.server("upstream")
    for name in ("raw", "aiohttp", "starlette"):
        world.server(name, world.url("upstream"))


def proxies(world: World) -> list[str]:
    """Start everything that passes chats on to the model server; return the names, the server itself first."""
    install_litellm()
    raw_and_usual(world)
    names = [
        "upstream",
        "raw",
        "aiohttp",
        world.gateway(),
        world.gateway("rewriting", "foreign"),
        "starlette",
        world.litellm(),
    ]
    for name in names:
        world.load(name, chat_job(60, chunks=8))
        world.load(name, chat_job(20, chunks=8, stream=False))
    return names


def latency(world: World, names: list[str], rounds: int, number: int) -> dict[str, Any]:
    """Return what each proxy adds to one request at a time: to a paced stream's first byte, and to a whole answer."""
    first: dict[str, list[list[float]]] = {name: [] for name in names}
    whole: dict[str, list[list[float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            few = number // 4 if name in ("starlette", "litellm") else number
            first[name].append(world.load(name, chat_job(few, chunks=12, pause_us=2000)).first_ms)
            whole[name].append(world.load(name, chat_job(few, chunks=0, stream=False)).total_ms)
        say(f"latency, turn {turn + 1} of {rounds}: " + ", ".join(f"{n} {median(first[n][-1]):.2f} ms" for n in names))
    figures: dict[str, Any] = {}
    for name in names:
        figures[name] = {
            "first_byte_p50_ms": round(median(list(chain(*first[name]))), 3),
            "whole_p50_ms": round(median(list(chain(*whole[name]))), 3),
            "added_first_byte_p50_ms": added(first[name], first["upstream"], 0.5),
            "added_first_byte_p99_ms": added(first[name], first["upstream"], 0.99),
            "added_whole_p50_ms": added(whole[name], whole["upstream"], 0.5),
        }
    figures["added_ttft_over_raw_proxy"] = ratio_of_added(first, "gateway", "raw")
    figures["added_ttft_over_aiohttp_proxy"] = ratio_of_added(first, "gateway", "aiohttp")
    figures["rewriting_over_raw_proxy"] = ratio_of_added(first, "rewriting", "raw")
    figures["overhead_vs_litellm"] = ratio_of_added(whole, "gateway", "litellm")
    figures["ttft_vs_litellm"] = ratio_of_added(first, "gateway", "litellm")
    return figures


def median(values: list[float]) -> float:
    return quantile(values, 0.5)


def added(turns: list[list[float]], direct: list[list[float]], share: float) -> float:
    """Return the median over the turns of the time that a proxy adds to this quantile."""
    gaps = [quantile(a, share) - quantile(b, share) for a, b in zip(turns, direct, strict=True)]
    return round(statistics.median(gaps), 3)


def ratio_of_added(turns: dict[str, list[list[float]]], ours: str, theirs: str) -> float:
    """Return the median over the turns of what ours adds ÷ what theirs adds, at the median."""
    ratios = []
    for mine, other, direct in zip(turns[ours], turns[theirs], turns["upstream"], strict=True):
        ratios.append((median(mine) - median(direct)) / (median(other) - median(direct)))
    return round(statistics.median(ratios), 3)


def chunks(world: World, rounds: int) -> dict[str, Any]:
    """Return CPU of one chunk of long answers that come as fast as they can, sixteen at a time."""
    raw_and_usual(world)
    world.gateway()
    world.gateway("rewriting", "foreign")
    numbers = {"raw": 320, "aiohttp": 320, "gateway": 320, "rewriting": 160, "starlette": 64}
    found: dict[str, dict[int, list[float]]] = {name: {length: [] for length in LENGTHS} for name in numbers}
    for turn in range(rounds):
        for name, number in numbers.items():
            for length in LENGTHS:
                answers = number * CHUNKS // length
                before = world.cpu_s(name)
                world.load(name, chat_job(answers, chunks=length, connections=16))
                found[name][length].append((world.cpu_s(name) - before) / answers * 1e6)
        say(f"chunks, turn {turn + 1} of {rounds}: " + ", ".join(f"{n} {found[n][CHUNKS][-1]:.0f} µs" for n in numbers))
    figures: dict[str, Any] = {}
    for name in numbers:
        short, long = (statistics.median(found[name][length]) for length in LENGTHS)
        figures[f"{name}_cpu_us"] = round(short / CHUNKS, 2)
        figures[f"{name}_more_cpu_us"] = round((long - short) / (LENGTHS[1] - LENGTHS[0]), 2)
    usual = found["starlette"]
    for name in ("raw", "gateway", "rewriting"):
        figures[f"{name}_vs_httpx_proxy"] = median_ratio(usual[CHUNKS], found[name][CHUNKS])
    figures["long_vs_httpx_proxy"] = median_ratio(usual[LENGTHS[1]], found["gateway"][LENGTHS[1]])
    return figures


def memory(world: World, number: int) -> dict[str, Any]:
    """Return the growth of the gateway's memory over `number` requests, half chats and half feedback."""
    name = world.gateway()

    def spend(requests: int) -> float:
        for _ in range(10):
            world.load(name, chat_job(requests // 20, chunks=8, connections=8))
            world.load(name, feedback_job(requests // 20))
        return world.process(name).memory_info().rss / 1e6

    before = spend(max(20_000, number // 5))
    say(f"memory: {before:.1f} MB after the warm-up")
    after = spend(number)
    return {"before_mb": round(before, 1), "after_mb": round(after, 1), "growth": round(after / before - 1, 4)}


def targets(figures: dict[str, Any]) -> dict[str, Target]:
    """Return the promises of the parts that ran."""
    promises = {
        "feedback_cpu_over_floor": ("feedback", "over_floor", "<=", 6.5),
        "feedback_vs_fastapi": ("feedback", "vs_fastapi", "<=", 0.30),
        "added_ttft_over_raw_proxy": ("latency", "added_ttft_over_raw_proxy", "<=", 1.5),
        "chunks_vs_httpx_proxy": ("chunks", "gateway_vs_httpx_proxy", ">=", 20),
        "overhead_vs_litellm": ("latency", "overhead_vs_litellm", "<=", 0.15),
        "rss_growth": ("memory", "growth", "<=", 0.02),
        "acknowledged_lost": ("loss", "lost", "==", 0),
    }
    return {
        name: Target(figures[part][key], op, bound)
        for name, (part, key, op, bound) in promises.items()
        if part in figures
    }


def main() -> int:
    """Run all of it; exit code 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the object (it is always printed)")
    parser.add_argument("--full", action="store_true", help="more turns")
    parser.add_argument("--small", action="store_true", help="a hundredth, to see that it runs")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas (default: all in one run)")
    options = parser.parse_args()
    rounds, scale = (9 if options.full else 2 if options.small else 5), (0.02 if options.small else 1)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts {','.join(unknown)}: choose out of {','.join(PARTS)}")
    figures: dict[str, Any] = {}
    with world() as servers:
        work = {
            "feedback": lambda: feedback(servers, rounds, 2000 if options.small else 20_000),
            "latency": lambda: latency(servers, proxies(servers), rounds, max(20, int(200 * scale))),
            "chunks": lambda: chunks(servers, rounds),
            "memory": lambda: memory(servers, int(100_000 * scale)),
            "loss": lambda: lost(servers, int(100_000 * scale)),
        }
        for part in parts:
            figures[part] = work[part]()
    return report(figures, targets(figures), [])


if __name__ == "__main__":
    sys.exit(main())
