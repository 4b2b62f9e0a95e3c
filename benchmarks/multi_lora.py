"""What two adapters in one vLLM engine cost beside one, none, and an engine of merged weights.

`python -m benchmarks.multi_lora --json`, after `sh deploy/vllm.sh`. Two real vLLM servers on this machine's CPU, up at
once; each round gives every way the same prompts, in an order of its own, and ratios are taken within a round. CPU
seconds are those of the servers' process trees. Weights are random: the work is that of trained ones.

On a CPU, vLLM compiles a model without adapters and none with them. To compare the same, the merged weights are not
compiled either; with `--compiled` they are, as such an engine is by default.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from benchmarks.result import report, say
from examples.support.chat_model import build_model, save_model, train_tokenizer
from hone.local.processes import Supervisor
from hone.local.usage import cpu_seconds, pss_bytes
from serving.runtime.vllm import command
from tests.support.tiny_model import sentences
from tests.support.vllm_live import SMALL, vllm_program

SEED = 7
RANK = 16
ADAPTERS = ("m-one", "m-two")


@dataclass(frozen=True)
class Size:
    """Of the model and of the load; `tokens` are those of one answer."""

    hidden: int = 1024
    layers: int = 12
    requests: int = 16
    tokens: int = 48
    rounds: int = 4


@dataclass(frozen=True)
class Engine:
    """A running server and its processes."""

    url: str
    process: psutil.Process

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(cpu_seconds(member) for member in self.family())

    def memory_mb(self) -> float:
        return sum(pss_bytes(member) for member in self.family()) / 1e6


Way = Sequence[tuple[str, str]]
"""(engine, model) of the requests, one after the other and over again."""
WAYS: Mapping[str, Way] = {
    "base": [("shared", "m-base")],
    "one_adapter": [("shared", "m-one")],
    "two_adapters": [("shared", "m-one"), ("shared", "m-two")],
    "merged": [("merged", "m-one")],
}
HALF = "merged_at_half_the_load"
"""Each of two engines that share the requests does what this one does."""


def make_models(root: Path, size: Size) -> dict[str, Path]:
    """Write the base, two adapters of it, and the first merged into the base."""
    tokenizer = train_tokenizer(sentences(), vocab_size=1024)
    model = build_model(tokenizer, hidden=size.hidden, layers=size.layers, heads=size.hidden // 64, seed=SEED)
    save_model(model, tokenizer, root / "base")
    for seed, name in enumerate(ADAPTERS, SEED + 1):
        make_adapter(root / "base", root / name, seed)
    merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(root / "base"), root / ADAPTERS[0])
    save_model(merged.merge_and_unload(), tokenizer, root / "merged")
    return {path.name: path for path in root.iterdir()}


def make_adapter(base: Path, directory: Path, seed: int) -> None:
    """Write a random adapter of every matrix, neither of whose halves is zero."""
    torch.manual_seed(seed)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    model.save_pretrained(directory)


def start(supervisor: Supervisor, root: Path, models: Mapping[str, Path], *, compiled: bool) -> dict[str, Engine]:
    """Start the engine that shares the base, and one of the merged weights."""
    adapters = {name: models[name] for name in ADAPTERS}
    shared = command(("m-base", models["base"]), adapters, "127.0.0.1", 0)
    merged = ["vllm", "serve", str(models["merged"]), "--served-model-name", ADAPTERS[0], "--host", "127.0.0.1"]
    programs = {
        "shared": vllm_program("shared", root, shared, SMALL),
        "merged": vllm_program("merged", root, merged, SMALL if compiled else (*SMALL, "--enforce-eager")),
    }
    supervisor.start_together(list(programs.values()))
    pids = {program.name: program.process.pid for program in supervisor.running}
    return {name: Engine(program.address, psutil.Process(pids[name])) for name, program in programs.items()}


def prompts(size: Size, round_: int) -> list[str]:
    """Questions that no engine has seen, of one length."""
    rng = random.Random(f"{SEED} {round_}")
    words = [word for text in sentences() for word in text.split()]
    return [" ".join(rng.choice(words) for _ in range(24)) for _ in range(size.requests)]


def answer(client: httpx.Client, url: str, model: str, prompt: str, tokens: int) -> str:
    """Return the text of an answer of exactly so many tokens."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    found = client.post(f"{url}/v1/chat/completions", json=body)
    found.raise_for_status()
    document = found.json()
    if document["usage"]["completion_tokens"] != tokens:
        raise RuntimeError(f"{model} wrote {document['usage']['completion_tokens']} tokens, not {tokens}")
    return str(document["choices"][0]["message"]["content"])


def play(engines: Mapping[str, Engine], way: Way, asked: Sequence[str], tokens: int) -> dict[str, Any]:
    """Ask everything at once; return CPU and wall seconds a token, and what was said."""
    used = [engines[name] for name in {name for name, _ in way}]
    before, began = sum(engine.cpu_s() for engine in used), time.perf_counter()
    with httpx.Client(timeout=600, trust_env=False) as client, ThreadPoolExecutor(len(asked)) as pool:
        jobs = [
            pool.submit(answer, client, engines[name].url, model, prompt, tokens)
            for prompt, (name, model) in zip(asked, [*way] * len(asked), strict=False)
        ]
        texts = [job.result() for job in jobs]
    number = len(asked) * tokens
    wall = time.perf_counter() - began
    cpu = sum(engine.cpu_s() for engine in used) - before
    return {"cpu_ms": 1e3 * cpu / number, "tokens_per_s": number / wall, "texts": texts}


def measure(engines: Mapping[str, Engine], size: Size) -> list[dict[str, dict[str, Any]]]:
    """Return what each way took in each round; the first is for warming up and not returned."""
    found = []
    for round_ in range(size.rounds + 1):
        asked = prompts(size, round_)
        plays = {name: (way, asked) for name, way in WAYS.items()} | {HALF: (WAYS["merged"], asked[::2])}
        order = list(plays)
        random.Random(round_).shuffle(order)
        played = {name: play(engines, *plays[name], size.tokens) for name in order}
        costs = ", ".join(f"{name} {played[name]['cpu_ms']:.1f}" for name in plays)
        say(f"round {round_}: {costs} CPU ms a token")
        found.append(played)
    return found[1:]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def figures(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return each way's cost, the ratios, and the share of answers that are those of the merged weights."""
    pairs = {
        "one_adapter_over_base": ("one_adapter", "base"),
        "base_over_merged": ("base", "merged"),
        "one_adapter_over_merged": ("one_adapter", "merged"),
        "two_adapters_over_one": ("two_adapters", "one_adapter"),
        "two_adapters_over_two_merged_engines": ("two_adapters", HALF),
    }
    same = [
        text == merged
        for played in rounds
        for text, merged in zip(played["one_adapter"]["texts"], played["merged"]["texts"], strict=True)
    ]
    return {
        "cpu_ms_per_token": {name: spread([played[name]["cpu_ms"] for played in rounds]) for name in rounds[0]},
        "tokens_per_s": {name: spread([played[name]["tokens_per_s"] for played in rounds]) for name in rounds[0]},
        "cpu_ratio": {
            name: spread([played[over]["cpu_ms"] / played[under]["cpu_ms"] for played in rounds])
            for name, (over, under) in pairs.items()
        },
        "same_text_as_merged": round(statistics.mean(same), 3),
    }


def weigh(engines: Mapping[str, Engine]) -> dict[str, float]:
    """Return the memory of an engine, in MB, and what one with two adapters takes of two with merged weights."""
    shared, merged = engines["shared"].memory_mb(), engines["merged"].memory_mb()
    return {
        "one_engine_two_adapters_mb": round(shared),
        "one_merged_engine_mb": round(merged),
        "one_over_two_merged_engines": round(shared / (2 * merged), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="as all benchmarks print")
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile the merged weights")
    parser.add_argument("--hidden", type=int, default=Size.hidden, help="width of the model")
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    chosen = parser.parse_args()
    size = Size(hidden=chosen.hidden, rounds=chosen.rounds)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hone-multi-lora-")))
        (root / "models").mkdir()
        say("making the models")
        models = make_models(root / "models", size)
        supervisor = stack.enter_context(Supervisor(root / "stack.json", stop_timeout_s=30))
        say("starting two engines: a minute or more")
        engines = start(supervisor, root, models, compiled=chosen.compiled)
        found = figures(measure(engines, size))
        weights = {f"{name}_weights_mb": round(weights_mb(models[name]), 1) for name in ("base", "m-one")}
        return report(found | {"memory": weigh(engines) | weights, "compiled": chosen.compiled}, {}, [SEED])


def weights_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors")) / 1e6


if __name__ == "__main__":
    sys.exit(main())
