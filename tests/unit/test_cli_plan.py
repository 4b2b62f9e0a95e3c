"""`hone plan` without a database: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hone.cli import cli


def plan(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli, ["plan", *words])


def test_it_prints_the_arithmetic_and_why() -> None:
    result = plan("--model", "8b", "--gpus", "1", "--pairs", "12000", "--noise", "0.12")
    assert result.exit_code == 0, result.output
    for text in (
        "weights of the base",
        "16.1 GB",
        "of 80 GB",
        "robust, 0.12 flipped",
        "lora, rank 16",
        "1 to 7 large GPUs",
    ):
        assert text in result.output


def test_json_holds_the_whole_plan() -> None:
    found = json.loads(plan("--model", "70b", "--gpus", "8", "--pairs", "9000", "--json").stdout)
    (stage,) = found["stages"]
    assert found["ok"]
    assert stage["adapter"] == "lora"
    assert stage["fit"]["setup"]["sharding"] == "fsdp2"
    terms = {name: value for name, value in stage["fit"]["memory"].items() if name != "total"}
    assert stage["fit"]["memory"]["total"] == pytest.approx(sum(terms.values()))
    assert {option["sharding"] for option in stage["options"]} >= {"fsdp2", "tensor_pipeline"}


def test_what_does_not_fit_ends_with_code_1_and_says_what_would() -> None:
    result = plan("--model", "70b", "--gpus", "1", "--gpu", "l4", "--pairs", "5000")
    assert result.exit_code == 1
    assert "such GPUs would do" in result.output


@pytest.mark.parametrize("words", [(), ("--model", "8b"), ("--pairs", "100")], ids=["bare", "no labels", "no model"])
def test_without_a_database_it_says_in_one_line_what_to_type(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    result = plan(*words)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "without one: `hone plan --model 8b --gpus 1 --pairs 5000`" in line
    assert plan("--model", "8b", "--gpus", "1", "--pairs", "5000").exit_code == 0, "what it says to type"


def test_a_model_directory_gives_its_shape(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
    found = json.loads(plan("--model", str(tmp_path), "--pairs", "10", "--json").stdout)
    assert found["parameters"] == 2 * (4 * 64 * 64 + 3 * 64 * 96) + 2 * 100 * 64 + 5 * 64
    assert found["stages"][0]["below_minimum"]


def test_a_file_that_is_no_shape_is_explained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = plan("--model", str(tmp_path), "--pairs", "10")
    assert result.exit_code == 1
    assert "hidden_size" in result.output
    assert "neither a directory nor a size" in plan("--model", "nine", "--pairs", "10").output
    assert "not in the tables" in plan("--model", "8b", "--gpus", "1", "--gpu", "abacus", "--pairs", "1").output
    assert "not in the tables" in plan("--model", "8b", "--gpu", "abacus", "--pairs", "1").output
    assert "leave --gpu out" in plan("--model", "8b", "--gpu", "l4", "--gpus", "0", "--pairs", "1").output


def test_a_gpu_that_is_named_without_a_number_is_one() -> None:
    assert "on 1 × l4" in plan("--model", "1b", "--gpu", "l4", "--pairs", "5000").stdout
    assert "this machine's CPU" in plan("--model", "demo", "--pairs", "5000").stdout


def test_after_a_fallback_every_text_is_of_what_is_planned() -> None:
    shown = " ".join(plan("--model", "32b", "--gpus", "1", "--gpu", "a100", "--pairs", "5000").output.split())
    assert "trains qlora, rank 16" in shown
    assert "qlora, since lora does not fit; the tables wished lora: 1 to 7 large GPUs hold the base" in shown
    assert "2 such GPUs would do with FSDP2: qlora is planned instead" in shown
    assert "0.00002, 1 pass " in shown.replace("2e-05", "0.00002")
