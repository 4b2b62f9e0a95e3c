"""Trains the demo's base model from nothing on the support corpus: `python -m examples.support.pretrain --out DIR`.

A Llama of 0.6 M parameters; its answers are right about as often as the corpus is. The same seed, code, libraries and
thread count give the same weights on the same machine.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from examples.support.base_model import Recipe, write_manifest
from examples.support.chat_model import build_model, save_model, train_tokenizer
from examples.support.corpus import pretraining_rows

IGNORED = -100
POOL_BATCHES = 32
"""Rows are sorted by length within pools of this many batches: little padding, and still a random order."""


@dataclass(frozen=True, slots=True)
class Row:
    """One chat as token ids; a loss is put on those from `answer_at` on."""

    ids: list[int]
    answer_at: int


def encode(chats: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """Chats of one question and one answer, through the chat template."""
    prompts = tokenizer.apply_chat_template([chat[:1] for chat in chats], tokenize=False, add_generation_prompt=True)
    wholes = tokenizer.apply_chat_template(chats, tokenize=False)
    answers = [whole.removeprefix(prompt) for prompt, whole in zip(prompts, wholes, strict=True)]
    prompt_ids, answer_ids = tokenizer(prompts)["input_ids"], tokenizer(answers)["input_ids"]
    return [Row(before + after, len(before)) for before, after in zip(prompt_ids, answer_ids, strict=True)]


def batches(rows: list[Row], batch_size: int, rng: random.Random) -> Iterator[list[Row]]:
    """Endless batches of rows of like length, in a random order, each row once per round."""
    while True:
        order = rng.sample(rows, len(rows))
        pool = batch_size * POOL_BATCHES
        pools = [sorted(order[at : at + pool], key=lambda row: len(row.ids)) for at in range(0, len(order), pool)]
        cut = [rows[at : at + batch_size] for rows in pools for at in range(0, len(rows), batch_size)]
        rng.shuffle(cut)
        yield from cut


def answer_loss(model: LlamaForCausalLM, batch: list[Row]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, end token included; logits are made for these tokens only."""
    length = max(len(row.ids) for row in batch)
    ids_BT = torch.zeros(len(batch), length, dtype=torch.long)
    labels_BT = torch.full((len(batch), length), IGNORED)
    for k, row in enumerate(batch):
        ids_BT[k, : len(row.ids)] = torch.tensor(row.ids)
        labels_BT[k, row.answer_at : len(row.ids)] = ids_BT[k, row.answer_at : len(row.ids)]
    # Padding stands on the right, where causal attention never looks, so no attention mask is needed.
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
    wanted_BT = labels_BT[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden_BTH[wanted_BT]), labels_BT[:, 1:][wanted_BT])


def make_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982) for the matrices, AdamW for embeddings and norms.

    On this corpus it needs less than half of AdamW's steps.
    """
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a cosine to 0."""
    return min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))


def train(
    model: LlamaForCausalLM,
    rows: list[Row],
    recipe: Recipe,
    rng: random.Random,
    on_step: Callable[[int, float], None],
) -> None:
    """Run all steps of the recipe on `model` in place; `on_step(number of steps done, loss)` follows each of them."""
    optimizers = make_optimizers(model, recipe)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate(step, recipe)) for each in optimizers]
    model.train()
    for step, batch in zip(range(recipe.num_steps), batches(rows, recipe.batch_size, rng), strict=False):
        loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        on_step(step + 1, loss.item())
    model.eval()


def pretrain(out: Path, recipe: Recipe, seed: int, on_step: Callable[[int, float], None]) -> dict[str, float]:
    """Write the trained model and its manifest to `out`; returns the seconds it took."""
    started, cpu_started = time.perf_counter(), time.process_time()
    torch.set_num_threads(recipe.num_threads)
    chats = pretraining_rows(recipe.num_rows, seed)
    tokenizer = train_tokenizer(message["content"] for chat in chats for message in chat)
    model = build_model(tokenizer, hidden=recipe.hidden, layers=recipe.layers, heads=recipe.heads, seed=seed)
    train(model, encode(chats, tokenizer), recipe, random.Random(seed), on_step)
    save_model(model, tokenizer, out)
    figures = {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "num_parameters": float(model.num_parameters()),
    }
    write_manifest(out, recipe, seed, figures)
    return figures


def print_steps(num_steps: int) -> Callable[[int, float], None]:
    """Progress for a program: a line "step num_steps" on stdout every tenth step."""

    def on_step(step: int, _loss: float) -> None:
        if step % 10 == 0 or step == num_steps:
            print(step, num_steps, flush=True)

    return on_step


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON object of fields that differ")
    parser.add_argument("--progress", choices=["bar", "lines"], default="bar")
    args = parser.parse_args()
    recipe = Recipe(**args.recipe)
    transformers_logging.disable_progress_bar()
    if args.progress == "lines":
        pretrain(args.out, recipe, args.seed, print_steps(recipe.num_steps))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("pretraining", total=recipe.num_steps)
        figures = pretrain(
            args.out,
            recipe,
            args.seed,
            lambda step, loss: progress.update(task, completed=step, description=f"pretraining, loss {loss:.3f}"),
        )
    print(json.dumps(figures), file=sys.stderr)


if __name__ == "__main__":
    main()
