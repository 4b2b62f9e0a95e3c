"""What `hone plan --write` writes is a spec that runs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hone.cli import cli
from tests.support.tiny_model import make_tiny_model
from tests.support.training import QUICK, row, write_rows
from training.__main__ import main
from training.spec import load_spec


def write_plan(path: Path, *words: str) -> None:
    result = CliRunner().invoke(cli, ["plan", *words, "--write", str(path)])
    assert result.exit_code == 0, result.output


def test_the_written_spec_trains_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = make_tiny_model(tmp_path / "base")
    write_rows(tmp_path / "rows" / "train.jsonl", [row(number) for number in range(12)])
    write_plan(tmp_path / "spec.toml", "--model", str(base), "--pairs", "12", "--max-length", "128")
    small = [f"evaluation.{key}={value}" for key, value in QUICK["evaluation"].items()]
    changes = [f'base="{base}"', f'dataset="{tmp_path / "rows"}"', "steps=2", *small]
    code = main(["run", str(tmp_path / "spec.toml"), *(word for change in changes for word in ("--set", change))])
    assert code == 0
    (run,) = (tmp_path / "var" / "runs").glob("r-*")
    assert (run / "model" / "model.safetensors").exists()
    assert json.loads((run / "job.json").read_text())["spec"]["lora"]["rank"] == 16


@pytest.mark.parametrize("method", ["sft", "reward_model", "dpo", "kto", "ppo", "rloo", "grpo"])
@pytest.mark.parametrize("gpus", ["0", "1", "8"])
def test_every_method_and_size_of_machine_gives_a_valid_spec(method: str, gpus: str, tmp_path: Path) -> None:
    counts = ["--pairs", "9000", "--demonstrations", "2000", "--thumbs-up", "900", "--thumbs-down", "500"]
    size = ["--model", "0.5b" if gpus == "0" else "8b", "--gpus", gpus, "--noise", "0.1"]
    write_plan(
        tmp_path / "spec.toml", *size, *counts, "--method", method, "--reason", "the test's", "--max-length", "256"
    )
    spec = load_spec(tmp_path / "spec.toml")
    assert spec.method == method
    assert spec.precision == ("bf16" if int(gpus) else "fp32")
    assert spec.launch.processes == max(1, int(gpus))
    if method == "dpo":
        assert (spec.preference.loss, spec.preference.label_smoothing) == ("robust", 0.1)
        assert spec.engine == ("trl" if spec.launch.sharding in ("zero2", "fsdp2", "zero3") else "native")


def test_each_stage_gets_a_file_of_its_own(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.toml", "--model", "8b", "--gpus", "1", "--pairs", "4000", "--edits", "3000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan-1-sft.toml", "plan-2-dpo.toml"]
    assert load_spec(tmp_path / "plan-1-sft.toml").learning_rate == 2e-4
