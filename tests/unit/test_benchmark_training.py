"""The training benchmark's arithmetic, and its GPU mode on the shape that a CPU can run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.training import promises
from benchmarks.training_dpo import Seconds, describe
from benchmarks.training_gpu import measure_model, random_model, small_tokenizer, write_job


def test_ratios_are_of_medians_with_and_without_what_is_computed_before() -> None:
    seconds = {
        "trl": Seconds([0.30, 0.20, 0.90], [1.0]),
        "trl_precomputed": Seconds([0.20, 0.20, 0.20], [4.0]),
        "native": Seconds([0.10, 0.05, 0.10], [2.0, 2.0, 2.0]),
    }
    found = describe(seconds, num_steps=20)
    assert found["vs_trl"] == pytest.approx(3.0)
    assert found["vs_trl_precomputed"] == pytest.approx(2.0)
    assert found["vs_trl_with_reference"] == pytest.approx(6.0 / 4.0)
    assert found["vs_trl_precomputed_with_reference"] == pytest.approx((4.0 + 3.0) / 4.0)


def test_every_promise_of_the_cpu_reads_its_figure() -> None:
    speeds = {"vs_trl": 1.0, "vs_trl_precomputed": 9.0}
    targets = promises({"short": speeds, "long": speeds, "generation": {"vs_plain": 2.0}})
    holds = {name: target.as_dict()["holds"] for name, target in targets.items()}
    assert holds == {
        "dpo_vs_trl_short": False,
        "dpo_vs_trl_long": False,
        "dpo_vs_trl_precomputed_short": True,
        "dpo_vs_trl_precomputed_long": True,
        "ppo_generation_vs_plain": True,
    }


def test_the_gpu_mode_measures_all_three_ways() -> None:
    torch.set_num_threads(1)
    found = measure_model("tiny", steps=1, seed=0, device="cpu")
    assert all(found[way]["tokens_per_s"] > 0 for way in ("trl", "trl_precomputed", "native"))
    best = max(found[way]["tokens_per_s"] for way in ("trl", "trl_precomputed"))
    assert found["vs_trl_best"] == pytest.approx(found["native"]["tokens_per_s"] / best)


@pytest.mark.parametrize(("name", "billions"), [("0.5b", 0.494), ("1.5b", 1.544), ("3b", 3.086), ("8b", 8.030)])
def test_the_shapes_have_the_published_number_of_weights(name: str, billions: float) -> None:
    """Counted without making them."""
    with torch.device("meta"):
        model = random_model(name, 0, "meta")
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_the_killed_run_is_a_job_that_the_program_reads(tmp_path: Path, adapter: str) -> None:
    job = write_job(tmp_path / "run", tmp_path / "base", small_tokenizer(0), "tiny", adapter, 0)
    assert type(job).model_validate_json((tmp_path / "run" / "job.json").read_text()) == job
    rows = (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()
    assert len(rows) == job.spec.batch_size * (job.spec.steps or 0)
    assert set(json.loads(rows[0])) == {"prompt", "chosen", "rejected"}
