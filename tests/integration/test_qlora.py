"""QLoRA: trained over 4 bits, served on the base as it was; for every method, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hone.errors import ConfigError
from tests.integration.test_training_methods import POLICIES
from tests.support.training import make_job, make_task, row
from training.__main__ import main, prepare_imports
from training.adapter import trainable
from training.generate import Decoding, generate
from training.policy import load_model
from training.progress import Progress
from training.quantized import check_quantized, load_quantized, onto, probes, rounding_cost
from training.reward_set import load_objectives
from training.spec import RunSpec

pytestmark = pytest.mark.slow

QLORA = {
    name: {**POLICIES[method], "adapter": "qlora", **fields}
    for name, method, fields in [
        ("sft, 8-bit optimiser", "sft", {"optimizer": "adamw_8bit"}),
        ("dpo", "dpo robust", {}),
        ("dpo in bf16", "dpo robust", {"precision": "bf16"}),
        ("lora in bf16", "dpo robust", {"precision": "bf16", "adapter": "lora"}),
        ("kto", "kto", {}),
        ("ppo", "ppo", {}),
        ("rloo", "rloo", {}),
    ]
}


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return RunSpec(adapter="qlora", lora={"rank": 4, "alpha": 8})  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", QLORA.values(), ids=list(QLORA))
def test_a_policy_is_trained_over_few_bits_and_served_on_the_whole_base(
    tiny_base: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    make_job(tmp_path / "run", tiny_base, [row(k) for k in range(12)], **recipe)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    rounding = report["training"]["rounding"]
    assert 0 < rounding["kl"] < 1e-3, "fewer bits differ, and a little only"
    assert rounding["kl_learnt"] > 0, "something was learnt, and served"
    model, tokenizer = load_model(tmp_path / "run" / "model")
    head = "model.embed_tokens.weight"
    assert torch.equal(model.state_dict()[head], load_model(tiny_base)[0].state_dict()[head]), (
        "not even rounded to bf16"
    )
    assert not hasattr(model.config, "quantization_config")
    decoding = Decoding(temperature=0.0, max_new_tokens=4, batch_size=2)
    (answer,) = generate(model, tokenizer, [row(0)["prompt"]], decoding, Progress(tmp_path / "p.json"))
    assert answer.num_tokens


def test_the_adapter_is_merged_into_the_unquantised_weights(tiny_base: Path, tmp_path: Path) -> None:
    make_job(tmp_path / "run", tiny_base, [row(k) for k in range(12)], **POLICIES["dpo trl"], adapter="qlora")
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    kept = load_file(tmp_path / "run" / "trl" / "checkpoint-6" / "adapter_model.safetensors")
    whole = load_model(tmp_path / "run" / "model")[0].state_dict()
    base = load_model(tiny_base)[0].state_dict()
    name = "model.layers.0.self_attn.q_proj"
    down, up = (kept[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert down.dtype == torch.float32, "the optimiser steps on fp32"
    assert torch.allclose(whole[f"{name}.weight"], base[f"{name}.weight"] + 2 * up @ down, atol=1e-6)


def test_reward_models_are_trained_over_4_bits_with_a_whole_head(tiny_base: Path, tmp_path: Path) -> None:
    rows = [row(k) for k in range(8)]
    recipe = {"method": "reward_model", "reward": {"min_accuracy": 0.9}, "learning_rate": 1e-2, "steps": 12}
    make_job(tmp_path / "run", tiny_base, rows, adapter="qlora", precision="bf16", **recipe)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    (objective,) = load_objectives(tmp_path / "run").values()
    assert {weight.dtype for weight in objective.model.parameters()} == {torch.float32}
    chosen, rejected = (
        objective([r["prompt"] for r in rows], [r[side] for r in rows]) for side in ("chosen", "rejected")
    )
    assert all(a > b for a, b in zip(chosen, rejected, strict=True))
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())["measured"]["reward"]
    assert 0 < measured["rounding"] < 0.5, "scores of trained and served model differ by a part of their deviation"


def test_what_4_bits_cost_is_told_from_what_was_learnt(tiny_base: Path, tmp_path: Path, spec: RunSpec) -> None:
    policy = trainable(load_quantized(tiny_base, spec), spec)
    served = onto(load_model(tiny_base)[0], policy)
    task = make_task(load_model(tiny_base), tmp_path, [row(k) for k in range(4)])
    cost = rounding_cost(policy, served, probes(task))
    assert cost["kl_learnt"] == 0, "a fresh adapter changes nothing"
    assert cost["kl"] == pytest.approx(cost["kl_bases"])
    assert cost["kl"] > 0
    same = rounding_cost(served, served, probes(task))
    assert same == {"kl": 0.0, "kl_bases": 0.0, "kl_learnt": 0.0, "same_token": 1.0}


def test_layers_that_are_not_as_asked_are_refused(tiny_base: Path, spec: RunSpec) -> None:
    with pytest.raises(ConfigError, match="q_proj is not in 4 bits"):
        check_quantized(load_model(tiny_base)[0])
    other = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True)
    with pytest.raises(ConfigError, match="not as nf4"):
        check_quantized(AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=other))
    partly = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["down_proj", "lm_head"],
    )
    with pytest.raises(ConfigError, match="down_proj is not in 4 bits"):
        check_quantized(AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=partly))


def test_no_kernel_without_gradients_is_taken_on_any_cpu(tiny_base: Path, spec: RunSpec) -> None:
    from bitsandbytes.nn import Linear4bit

    layers = [part for part in load_quantized(tiny_base, spec).modules() if isinstance(part, Linear4bit)]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_without_the_package_the_run_is_refused_before_it_starts(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type]
    make_job(tmp_path / "run", tiny_base, [row(k) for k in range(4)], adapter="qlora")
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 2
    assert "install the extra `qlora`" in capsys.readouterr().err


def test_a_run_that_does_not_need_the_package_never_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, is_hidden in [
        (RunSpec(), True),
        (RunSpec(adapter="qlora"), False),
        (RunSpec(method="sft", engine="trl", optimizer="adamw_8bit"), False),
    ]:
        monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
        prepare_imports(spec)
        assert ("bitsandbytes" in sys.modules) == is_hidden
