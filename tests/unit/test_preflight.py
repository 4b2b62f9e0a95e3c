"""What is made sure of before a run starts."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from hone.errors import ConfigError
from tests.support.training import QUICK, make_job, make_task, row, write_rows
from training import preflight
from training.adapter import lora_config
from training.fit import fit
from training.method_tables import Lora
from training.policy import load_model
from training.preflight import check_apart, check_run, inspect, load_tokenizer, prepare_base, tokenizer_hash


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("pad", [None, "<|end|>"], ids=["no pad token", "pad is the end token"])
def test_a_base_without_a_pad_token_of_its_own_gets_a_reserved_one(
    copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, pad: str | None
) -> None:
    change_json(copied / "tokenizer_config.json", pad_token=pad)
    assert not preflight.has_own_pad(load_tokenizer(copied))
    with caplog.at_level(logging.WARNING):
        prepared = prepare_base(copied, tmp_path / "run")
    model, tokenizer = load_model(prepared)
    assert tokenizer.pad_token == "<|pad|>"
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert "no pad token of its own" in caplog.text
    assert prepare_base(copied, tmp_path / "run") == prepared, "once is enough"


def test_a_vocabulary_without_a_reserved_token_gets_a_new_one_with_a_row_of_its_own(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_json(copied / "tokenizer_config.json", pad_token=None)
    monkeypatch.setattr(preflight, "RESERVED", ())
    monkeypatch.setattr(preflight, "NEW_PAD", "<|made up|>")
    before = load_model(copied)[0].get_input_embeddings().weight
    model, tokenizer = load_model(prepare_base(copied, tmp_path / "run"))
    after = model.get_input_embeddings().weight
    assert len(after) == len(before) + 1 == tokenizer.pad_token_id + 1
    assert torch.equal(after[: len(before)], before)


def test_a_base_that_is_ready_is_taken_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    assert prepare_base(tiny_base, tmp_path / "run") == tiny_base
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_merged_first_so_that_the_runs_own_is_the_only_one(tiny_base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_base)
    policy = get_peft_model(model, lora_config(Lora(rank=2)))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    policy.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    prepared = prepare_base(tmp_path / "adapter", tmp_path / "run")
    assert not (prepared / "adapter_config.json").exists()
    loaded = load_model(prepared)
    ids = torch.tensor([[5, 9, 12]])
    with torch.no_grad():
        assert torch.allclose(loaded[0](ids).logits, policy(ids).logits, atol=1e-5)
    result = fit(make_task(loaded, tmp_path / "run", [row(k) for k in range(6)], engine="trl", steps=1))
    assert result.history[0]["margin"] == pytest.approx(0, abs=1e-5), "the reference is the merged model"


def split(directory: Path, **rows: list[dict[str, Any]]) -> Path:
    for name, found in rows.items():
        write_rows(directory / f"{name}.jsonl", found)
    return directory


def test_rows_that_are_apart_pass(tmp_path: Path) -> None:
    check_apart(split(tmp_path, train=[row(0), row(1)], test=[row(2)], dev=[row(3)]))


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        pytest.param(row(7, user_id=row(0)["user_id"]), "1 people have rows", id="a person on both sides"),
        pytest.param(row(7, prompt=[{"role": "user", "content": "how do i RENAME my invoice"}]), "near", id="a prompt"),
    ],
)
def test_training_and_held_out_rows_that_touch_are_refused(
    tmp_path: Path, held_out: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_apart(split(tmp_path, train=[row(0)], test=[held_out]))


def other_template(base: Path) -> None:
    path = base / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>", "<|assistant|> "))


def other_token(base: Path) -> None:
    path = base / "tokenizer.json"
    path.write_text(path.read_text().replace("<|system|>", "<|sysTem|>"))


@pytest.mark.parametrize("change", [other_template, other_token], ids=["template", "vocabulary"])
def test_a_base_that_reads_otherwise_than_the_served_model_is_refused(
    tiny_base: Path, copied: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    job = make_job(tmp_path / "run", tiny_base, [row(0)], job={"served_directory": copied})
    check_run(job, load_tokenizer(tiny_base), tiny_base)
    change(copied)
    assert tokenizer_hash(load_tokenizer(copied)) != tokenizer_hash(load_tokenizer(tiny_base))
    with pytest.raises(ConfigError, match='set tokenizer = "any"'):
        check_run(job, load_tokenizer(tiny_base), tiny_base)
    spec = job.spec.model_copy(update={"tokenizer": "any"})
    check_run(job.model_copy(update={"spec": spec}), load_tokenizer(tiny_base), tiny_base)


def test_the_pad_token_alone_makes_no_other_tokenizer(tiny_base: Path, copied: Path, tmp_path: Path) -> None:
    change_json(copied / "tokenizer_config.json", pad_token=None)
    prepared = prepare_base(copied, tmp_path / "run")
    assert tokenizer_hash(load_tokenizer(prepared)) == tokenizer_hash(load_tokenizer(tiny_base))


def test_a_dry_run_counts_what_would_be_used_and_dropped(tiny_base: Path, tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2, chosen="page " * 90)]
    job = make_job(tmp_path / "run", tiny_base, rows, **{**QUICK, "max_length": 64})
    found = inspect(job)
    assert (found["num_usable"], found["dropped"]["too_long"]) == (2, 1)
