"""What is made sure of before a run starts: a base that can be trained on, the served tokenizer, rows kept apart."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hone.canonical import canonical_json, sha256_hex
from hone.datasets import prompt_text
from hone.errors import ConfigError
from hone.near_duplicates import overlapping
from hone.records import Message
from hone.weights import checked_base
from training.checkpoint import publish
from training.completions import answers_of, encode_answers, labels_of
from training.estimate import Length, estimate, num_steps
from training.pairs import Row, check_tokenizer, encode_pairs, ids_of, read_rows
from training.spec import Job, RunSpec, needs_bitsandbytes
from training.trackers import check_trackers

logger = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
RESERVED = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|reserved_special_token_0|>", "<|endofpad|>")
"""Tokens that models keep for such a use; the first that the vocabulary has is taken."""
NEW_PAD = "<|pad|>"


def prepare_base(base: Path, directory: Path) -> Path:
    """Return the directory to start from: the base, or in `directory` a copy that a trainer can use.

    An adapter that lies on a base is merged, so that the run's own is the only one. A tokenizer without a pad token, or
    whose pad token is the end token, gets one that stands for nothing else: trainers mask padding out of the loss, and
    a model that never learns from its end token never stops.

    Raises:
        ConfigError: base or tokenizer cannot be loaded.
    """
    target = directory / "base"
    if target.exists():
        return target
    is_adapter = (base / ADAPTER).exists()
    tokenizer = load_tokenizer(base)
    if not is_adapter and has_own_pad(tokenizer):
        return base
    model = merged(base) if is_adapter else load_weights(base)
    if not has_own_pad(tokenizer):
        give_pad(model, tokenizer)
    scratch = directory / f".base.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    publish(scratch, target)
    return target


def load_tokenizer(base: Path) -> Any:
    """Return the tokenizer. Raises ConfigError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{base} holds no tokenizer that can be loaded: {error}") from None


def load_weights(base: str | Path) -> Any:
    """Return the model in fp32. Raises ConfigError where there is none."""
    try:
        return AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{base} is no loadable transformers model: {error}") from None


def merged(directory: Path) -> Any:
    """Return the model that an adapter's directory names, with the adapter merged into it, in fp32."""
    base = checked_base(directory)
    under = base.directory if base else json.loads((directory / ADAPTER).read_text())["base_model_name_or_path"]
    logger.warning("%s is an adapter of %s: it is merged first", directory, under)
    return PeftModel.from_pretrained(load_weights(under), directory).merge_and_unload()


def has_own_pad(tokenizer: Any) -> bool:
    """Say whether padding is a token that stands for nothing else."""
    return tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id


def give_pad(model: Any, tokenizer: Any) -> None:
    """Give the tokenizer a reserved token as its pad token, or a new one with a row of its own in the embeddings."""
    vocabulary = tokenizer.get_vocab()
    reserved = next((token for token in RESERVED if token in vocabulary and token != tokenizer.eos_token), None)
    tokenizer.add_special_tokens({"pad_token": reserved or NEW_PAD})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    logger.warning("the base has no pad token of its own: %s (%d) is used", tokenizer.pad_token, tokenizer.pad_token_id)


def inspect(job: Job) -> dict[str, Any]:
    """Return what a run would train on: rows that can be used, and dropped ones by reason. Nothing is trained.

    Raises:
        ConfigError, NotEnoughData: the run could not start.
    """
    base = prepare_base(job.base_directory, job.directory)
    tokenizer = load_tokenizer(base)
    check_run(job, tokenizer, base)
    rows = read_rows(job.directory / "data" / "train.jsonl")
    usable, dropped = encoded(rows, tokenizer, job.spec)
    expected = estimate(job.spec, base, usable)
    return {
        "num_usable": len(usable),
        "steps": num_steps(job.spec, usable),
        "dropped": dropped,
        "tokenizer": tokenizer_hash(tokenizer),
        "estimate": expected._asdict() if expected else None,
    }


def check_run(job: Job, tokenizer: Any, base: Path) -> None:
    """Raise ConfigError where tokenizer, serving and rows do not fit together, or a package is missing."""
    check_trackers(job.spec.report_to)
    check_packages(job.spec)
    check_tokenizer(tokenizer, end_tokens_of(base))
    check_served(job, tokenizer)
    check_apart(job.directory / "data")


def check_packages(spec: RunSpec) -> None:
    """Raise ConfigError where the spec needs a package of an extra that is not installed."""
    asks = 'adapter = "qlora"' if spec.adapter == "qlora" else f'optimizer = "{spec.optimizer}"'
    if needs_bitsandbytes(spec) and find_spec("bitsandbytes") is None:
        raise ConfigError(f"{asks} needs bitsandbytes, which is not installed: install the extra `qlora`")


def end_tokens_of(base: Path) -> list[int]:
    """Return the ids at which the model stops, without loading its weights."""
    for name in ("generation_config.json", "config.json"):
        path = base / name
        found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def check_served(job: Job, tokenizer: Any) -> None:
    """Raise ConfigError unless the model that serves now reads and writes the same tokens in the same template."""
    if job.served_directory is None or job.spec.tokenizer == "any" or not job.served_directory.is_dir():
        return
    served, ours = tokenizer_hash(load_tokenizer(job.served_directory)), tokenizer_hash(tokenizer)
    if served != ours:
        raise ConfigError(
            f"the base's tokenizer or chat template ({ours[:12]}) is not that of the model that serves now "
            f"({served[:12]}, {job.served_directory}): people judged other text than would be trained on. If the base "
            'is to change, set tokenizer = "any"'
        )


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the SHA-256 over what decides how a chat becomes tokens; the pad token is not part of it."""
    ids = {token: number for token, number in tokenizer.get_vocab().items() if token != tokenizer.pad_token}
    probe = [{"role": "user", "content": "Probe: naïve  tokens\n1 2 3"}, {"role": "assistant", "content": "Yes."}]
    written = tokenizer.apply_chat_template(probe, tokenize=False) if tokenizer.chat_template else ""
    read = tokenizer(written, add_special_tokens=False)["input_ids"]
    return sha256_hex(canonical_json([sorted(ids.items()), tokenizer.chat_template, read, tokenizer.eos_token]))


def check_apart(data: Path) -> None:
    """Raise ConfigError where rows to train on share a person or a near-duplicate prompt with held-out ones."""
    trained, held_out = (
        [row for split in splits for row in read_rows(data / f"{split}.jsonl")]
        for splits in (("train",), ("dev", "test"))
    )
    people = {row["user_id"] for row in trained if row.get("user_id")}
    shared = people & {row["user_id"] for row in held_out if row.get("user_id")}
    if shared:
        raise ConfigError(
            f"{len(shared)} people have rows to train on and held-out ones, such as {min(shared)}: split anew"
        )
    seen = overlapping([text_of(row) for row in held_out], [text_of(row) for row in trained])
    if any(seen):
        example = text_of(held_out[seen.index(True)])[:80]
        raise ConfigError(f"{sum(seen)} held-out prompts are near ones to train on, such as {example!r}: split anew")


def text_of(row: Row) -> str:
    """Return what near-duplicates are found by."""
    return prompt_text([Message(role=message["role"], content=message["content"]) for message in row["prompt"]])


def encoded(rows: Sequence[Row], tokenizer: Any, spec: RunSpec) -> tuple[list[Length], dict[str, int]]:
    """Return the lengths of the sequences that the method could use, row by row, and rows dropped by reason."""
    if spec.method in ("dpo", "reward_model"):
        pairs, dropped = encode_pairs(rows, tokenizer, spec.max_length)
        return [Length(len(p.prompt), (len(p.chosen) + len(p.rejected)) / 2) for p in pairs], dropped
    if spec.method in ("sft", "kto"):
        answers = answers_of(rows) if spec.method == "sft" else labels_of(rows)
        found, dropped = encode_answers(answers, tokenizer, spec.max_length)
        return [Length(len(a.prompt), len(a.answer)) for a in found], dropped
    prompts = {str(row["prompt"]): row["prompt"] for row in rows}.values()
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    return [Length(len(ids), spec.samples.max_new_tokens) for ids in ids_of(texts, tokenizer)], {}
