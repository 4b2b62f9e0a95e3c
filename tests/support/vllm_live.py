"""The real vLLM server, started by the command that hone prints, and a small family of models for it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from examples.support.chat_model import build_model, save_model, train_tokenizer
from hone.local.ports import free_ports
from hone.local.processes import Program, Supervisor
from hone.weights import AdapterBase, weights_digest
from serving.runtime.vllm import ENVIRONMENT, command
from tests.support.speaking_model import batch, example
from tests.support.tiny_model import OBJECTS, VERBS, sentences

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-vllm" / "bin"
SMALL = ("--dtype", "float32", "--gpu-memory-utilization", "0.1")
"""What hone's runtime computes in, and little memory (the flag means the machine's own on a CPU)."""


@contextmanager
def running_engine(
    directory: Path,
    base: tuple[str, Path],
    adapters: Mapping[str, Path],
    options: Sequence[str] = SMALL,
) -> Iterator[str]:
    """The address of an engine that serves these; a minute until it answers, on two cores."""
    program = vllm_program("vllm", directory, command(base, adapters, "127.0.0.1", 0), options)
    with Supervisor(directory / "vllm.json", stop_timeout_s=30) as supervisor:
        supervisor.start(program)
        yield program.address


def vllm_program(name: str, directory: Path, argv: Sequence[str], options: Sequence[str]) -> Program:
    """How to start an engine, on a port that is free now."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    return Program(
        name=name,
        argv=(*argv, *options, "--port", str(port)),
        env=ENVIRONMENT
        | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        },
        log_path=directory / f"{name}.log",
        address=url,
        health_url=f"{url}/health",
        deadline_s=400,
    )


def make_family(root: Path, answers: Mapping[str, str]) -> dict[str, Path]:
    """Write a base that says the first answer, and for each other answer an adapter of it that says that; 8 CPU s.

    The base has heard all answers: an adapter cannot teach a word that the embeddings know nothing of.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(sentences(), vocab_size=512)
    (first, spoken), *others = answers.items()
    model = build_model(tokenizer, hidden=64, layers=2, heads=2, max_length=256)
    for _ in range(12):
        for _, answer in others:
            teach(model, tokenizer, answer, steps=5, rate=3e-3)
    teach(model, tokenizer, spoken, steps=120, rate=3e-3)
    save_model(model.eval(), tokenizer, root / first)
    for name, answer in others:
        save_adapter(root / first, root / name, tokenizer, answer)
    return {name: root / name for name in answers}


def save_adapter(base: Path, directory: Path, tokenizer: Any, answer: str) -> None:
    """Leave an adapter as a run with `export = "adapter"` does."""
    from transformers import LlamaForCausalLM

    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    teach(model.train(), tokenizer, answer, steps=250, rate=3e-3)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    AdapterBase(weights_digest(base), base).write(directory)


def teach(model: Any, tokenizer: Any, answer: str, *, steps: int, rate: float = 1e-2) -> None:
    """Train what is trainable to give this answer to every question."""
    rows = [example(tokenizer, f"How do I {verb} my {thing}?", answer) for verb in VERBS for thing in OBJECTS]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        ids, labels = batch(rows[step % 6 :: 6])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
