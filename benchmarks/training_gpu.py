"""Large models on the GPU that is here, with random weights: speed beside TRL, and a whole run with kill and resume.

Without a GPU the same code runs the shape `tiny` on the CPU, so that it is known to work; its figures mean nothing.
Tokens of a pair are those of two separate sequences, whoever computes the prompt once. Model FLOPs utilisation counts
what a LoRA step must compute of the tokens that go through the model (forward 2, backward 2 a weight and token).
"""

import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.result import Target, say
from benchmarks.training_dpo import trl_settings
from benchmarks.training_world import make_pairs
from examples.support.chat_model import train_tokenizer
from examples.support.corpus import pretraining_rows
from hone.weights import weights_digest
from training.adapter import peft_config, trainable
from training.dpo import Run, plan_batches
from training.fast_lora import fast_lora
from training.pairs import TokenPair
from training.policy import attends_to_all
from training.precision import prepare
from training.progress import Progress
from training.reference import reference_logps
from training.spec import Job, RunSpec
from training.trl_dpo import chat_row

ROOT = Path(__file__).resolve().parents[1]
KILLED_STEPS = 6


def shape(
    kind: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> dict[str, Any]:
    """Return a public configuration's numbers in transformers' words."""
    return {
        "kind": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": kind == "qwen2",
    }


SHAPES = {
    "tiny": shape("llama", 64, 168, 2, 4, 2, 1024),
    "0.5b": shape("qwen2", 896, 4864, 24, 14, 2, 151_936),
    "1.5b": shape("qwen2", 1536, 8960, 28, 12, 2, 151_936),
    "3b": shape("qwen2", 2048, 11_008, 36, 16, 2, 151_936),
    "8b": shape("llama", 4096, 14_336, 32, 32, 8, 128_256),
}
"""Qwen2.5's 0.5, 1.5 and 3 B, and Llama 3's 8 B; `tiny` is no one's."""
BATCH = {"tiny": (4, 4, 64, 32), "0.5b": (16, 16, 512, 256), "1.5b": (16, 8, 512, 256), "3b": (16, 8, 512, 256)}
"""Pairs of a step, pairs at once, tokens of a prompt and of an answer."""
LARGE_BATCH = (16, 4, 512, 256)
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16, as the maker states it."""


def measure(names: list[str], steps: int, seed: int) -> tuple[dict[str, Any], dict[str, Target]]:
    """Return figures of each model, and of the killed run of the largest; targets only where a GPU ran them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        say("no GPU here: only the shape `tiny` is run, to see that the code works")
        names = ["tiny"]
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    for name in names:
        figures[name] = measure_model(name, steps, seed, device)
    figures["killed"] = {adapter: killed_run(names[-1], adapter, seed) for adapter in ("lora", "qlora")}
    return figures, promises(figures, names) if device == "cuda" else {}


def promises(figures: dict[str, Any], names: list[str]) -> dict[str, Target]:
    """Return the goals for each model."""
    found = {}
    for name in names:
        found[f"vs_trl_best_{name}"] = Target(figures[name]["vs_trl_best"], ">=", 1.5)
        found[f"mfu_{name}"] = Target(figures[name]["native"]["mfu"] or 0.0, ">=", 0.45)
    for adapter, killed in figures["killed"].items():
        found[f"killed_{adapter}_same_weights"] = Target(float(killed["same_weights"]), "==", 1.0)
    return found


def measure_model(name: str, steps: int, seed: int, device: str) -> dict[str, Any]:
    """Return tokens a second, utilisation and peak memory of TRL, TRL precomputed and us."""
    batch, at_once, prompt, answer = BATCH.get(name, LARGE_BATCH)
    spec = RunSpec(
        batch_size=batch,
        micro_batch_size=at_once,
        precision="bf16",
        gradient_checkpointing=name not in ("tiny", "0.5b"),
        learning_rate=1e-6,
        max_length=4 * (prompt + answer),
        seed=seed,
    )
    tokenizer = small_tokenizer(seed)
    pairs = make_pairs(tokenizer, batch * (steps + 1), prompt, seed, answer_tokens=answer)
    ways: dict[str, Callable[[Any, Path], float]] = {
        "trl": lambda model, scratch: trl_step_s(model, tokenizer, pairs, spec, scratch),
        "trl_precomputed": lambda model, scratch: trl_step_s(model, tokenizer, pairs, spec, scratch, precompute=True),
        "native": lambda model, scratch: native_step_s(model, pairs, spec, tokenizer.pad_token_id, scratch),
    }
    found = {way: measured(name, run, pairs, spec, seed, device, shares=way == "native") for way, run in ways.items()}
    best = max(found["trl"]["tokens_per_s"], found["trl_precomputed"]["tokens_per_s"])
    return {**found, "vs_trl_best": found["native"]["tokens_per_s"] / best}


def measured(
    name: str,
    run: Callable[[Any, Path], float],
    pairs: list[TokenPair],
    spec: RunSpec,
    seed: int,
    device: str,
    shares: bool,
) -> dict[str, Any]:
    """Return one way's figures on a fresh model, whose memory is given back."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = random_model(name, seed, device)
    num_weights = sum(weight.numel() for weight in model.parameters())
    with tempfile.TemporaryDirectory() as scratch:
        step_s = run(model, Path(scratch))
    answers = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs) / len(pairs) * spec.batch_size
    prompts = sum(len(pair.prompt) for pair in pairs) / len(pairs) * spec.batch_size
    computed = answers + prompts * (1 if shares else 2)
    peak = next(
        (flops for key, flops in PEAK_FLOPS.items() if device == "cuda" and key in torch.cuda.get_device_name()), None
    )
    found = {
        "step_s": step_s,
        "tokens_per_s": (answers + 2 * prompts) / step_s,
        "mfu": 4 * num_weights * computed / step_s / peak if peak else None,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }
    say(f"{name}: {found}")
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def small_tokenizer(seed: int) -> Any:
    """Return a tokenizer of a few hundred words; the models' vocabularies are larger, as their head's cost asks."""
    return train_tokenizer(message["content"] for chat in pretraining_rows(3000, seed) for message in chat)


def random_model(name: str, seed: int, device: str) -> Any:
    """Return a model of a public shape with random weights, in bf16."""
    numbers = dict(SHAPES[name])
    torch.manual_seed(seed)
    config = AutoConfig.for_model(numbers.pop("kind"), **numbers)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def native_step_s(model: Any, pairs: list[TokenPair], spec: RunSpec, pad: int, scratch: Path) -> float:
    """Return the median wall seconds of our steps, the first left out."""
    shared = attends_to_all(model)
    prepare(model, spec, shared=shared)
    plan = plan_batches([pair.length for pair in pairs], spec)
    wanted = set(range(len(pairs)))
    reference = reference_logps(model, pairs, wanted, pad, Progress(scratch / "progress.json"), shared=shared)
    run = Run(trainable(model, spec), spec, "r-bench", scratch, shared=shared)
    seconds = []
    with fast_lora(run.model):
        for batch in plan:
            started = time.perf_counter()
            run.train_step([(pairs[k], reference[k]) for k in batch], len(plan), pad)
            synchronise()
            seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def trl_step_s(
    model: Any, tokenizer: Any, pairs: list[TokenPair], spec: RunSpec, scratch: Path, *, precompute: bool = False
) -> float:
    """Return the same by TRL's trainer."""
    clock = WallClock()
    size = spec.micro_batch_size or spec.batch_size
    settings = trl_settings(spec, len(pairs), scratch) | {
        "bf16": True,
        "activation_checkpointing": spec.gradient_checkpointing,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": spec.batch_size // size,
        "use_cpu": not torch.cuda.is_available(),
    }
    DPOTrainer(
        model,
        None,
        DPOConfig(precompute_ref_log_probs=precompute, **settings),
        train_dataset=Dataset.from_list([chat_row(pair.row) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=peft_config(spec),
        callbacks=[clock],
    ).train()
    return median(clock.seconds[1:])


class WallClock(TrainerCallback):  # type: ignore[misc]
    """Wall seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Read it, once the device is done."""
        synchronise()
        self.seconds.append(time.perf_counter() - self._started)


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def killed_run(name: str, adapter: str, seed: int) -> dict[str, Any]:
    """Train a model of this shape in a process that is killed after its first checkpoint, and again undisturbed."""
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as place:
        base = Path(place) / "base"
        tokenizer = small_tokenizer(seed)
        model = random_model(name, seed, "cpu")
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(**ends)
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        del model
        digests, seconds = {}, {}
        for kind in ("killed", "whole"):
            job = write_job(Path(place) / kind, base, tokenizer, name, adapter, seed)
            started = time.perf_counter()
            if kind == "killed":
                kill_after_first_checkpoint(job)
            finish(job)
            seconds[kind] = time.perf_counter() - started
            digests[kind] = weights_digest(job.directory / "model")
        return {"same_weights": digests["killed"] == digests["whole"], "seconds": seconds}


def write_job(directory: Path, base: Path, tokenizer: Any, name: str, adapter: str, seed: int) -> Job:
    """Write a short run's job file."""
    batch, at_once, prompt, answer = BATCH.get(name, LARGE_BATCH)
    (directory / "data").mkdir(parents=True)
    pairs = make_pairs(tokenizer, batch * KILLED_STEPS, prompt, seed, answer_tokens=answer)
    (directory / "data" / "train.jsonl").write_text("".join(json.dumps(pair.row) + "\n" for pair in pairs))
    spec = RunSpec.model_validate(
        {
            "adapter": adapter,
            "engine": "native",
            "batch_size": batch,
            "micro_batch_size": at_once,
            "precision": "bf16",
            "gradient_checkpointing": True,
            "steps": KILLED_STEPS,
            "checkpoint_steps": 2,
            "max_length": 4 * (prompt + answer),
            "evaluation": {"num_prompts": 4, "num_samples": 1, "max_new_tokens": 16},
        }
    )
    job = Job(run_id="r-bench", spec=spec, base_version="m-base", base_directory=base, directory=directory)
    (directory / "job.json").write_text(job.model_dump_json())
    return job


def start(job: Job) -> "subprocess.Popen[bytes]":
    """Begin or go on with the run in a process of its own."""
    command = [sys.executable, "-m", "training", "run", str(job.directory / "job.json")]
    with (job.directory / "train.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def kill_after_first_checkpoint(job: Job) -> None:
    """Kill the run once a checkpoint is whole."""
    process = start(job)
    while not [*job.directory.glob("checkpoints/step-*"), *job.directory.glob("trl/checkpoint-*/DONE")]:
        if process.poll() is not None:
            raise RuntimeError((job.directory / "train.log").read_text()[-2000:])
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def finish(job: Job) -> None:
    """Run to the end. Raises RuntimeError with the end of the log."""
    if start(job).wait() != 0:
        raise RuntimeError((job.directory / "train.log").read_text()[-2000:])
