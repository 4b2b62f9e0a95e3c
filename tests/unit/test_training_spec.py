"""A run's spec: overrides are merged table by table, and what is wrong is named."""

from pathlib import Path
from typing import Any

import pytest

from hone.errors import ConfigError
from training.jobs import check_complete
from training.method_tables import Rewards
from training.spec import KINDS, Job, RunSpec, load_job, load_spec

ROOT = Path(__file__).parents[2]
CONFIGS = [path for method in KINDS for path in sorted((ROOT / "configs").glob(f"{method}*.toml"))]
DPO = ROOT / "configs" / "dpo.toml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configurations_are_valid_and_named_by_their_method(path: Path) -> None:
    assert load_spec(path).method == path.name.split(".")[0]


def test_each_method_has_a_default_engine_of_its_own() -> None:
    assert RunSpec().engine == "native"
    assert RunSpec(method="sft").engine == "trl"


def test_overrides_of_a_request_replace_single_keys(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("learning_rate = 1e-4\n[lora]\nrank = 8\nalpha = 16\n")
    spec = load_spec(path, {"sft_weight": 0, "lora": {"rank": 4}})
    assert (spec.learning_rate, spec.sft_weight, spec.lora.rank, spec.lora.alpha) == (1e-4, 0, 4, 16)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param({"learning_rat": 1}, "learning_rat = 1", id="an unknown key"),
        pytest.param({"beta": -1}, "beta = -1", id="out of range"),
        pytest.param({"lora": {"rnk": 4}}, "lora.rnk = 4 .* did you mean rank", id="an unknown key of a table"),
        pytest.param({"gates": {"min_pears": 4}}, "gates.min_pears", id="an unknown threshold"),
        pytest.param({"method": "sft"}, "no engine 'native': use trl", id="an engine that the method has not"),
        pytest.param({"reward": {"margin": 1}}, r"dpo does not read \[reward\]", id="a table of another method"),
        pytest.param({"preference": {"label_smoothing": 0.1}}, "does nothing", id="smoothing that sigmoid ignores"),
        pytest.param({"micro_batch_size": 3}, "no multiple", id="batches that do not add up"),
        pytest.param({"optimizer": "adafactor"}, "no adafactor", id="what the native engine lacks"),
        pytest.param(
            {"engine": "trl", "adapter": "qlora", "launcher": "accelerate", "launch": {"sharding": "fsdp2"}},
            "not split by fsdp2",
            id="4-bit weights in parts",
        ),
        pytest.param({"method": "kto", "engine": "trl", "batch_size": 2}, "batches of 4", id="a KTO batch too small"),
        pytest.param(
            {"method": "rloo", "engine": "trl", "samples": {"per_prompt": 1}}, "compares", id="nothing to compare with"
        ),
        pytest.param(
            {"method": "ppo", "samples": {"per_prompt": 3}}, "no multiple of samples", id="a prompt that is cut short"
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_spec(DPO, overrides)


def test_a_job_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    job = Job(run_id="r-1", spec=RunSpec(), base_version="m-0", base_directory=tmp_path, directory=tmp_path / "run")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert load_job(tmp_path / "job.json") == job


def test_a_job_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read job"):
        load_job(tmp_path / "none.json")


def test_a_method_that_learns_from_rewards_must_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a reward"):
        check_complete(RunSpec(method="ppo"))
    check_complete(RunSpec(method="ppo", rewards=Rewards(functions={"a:b": 1})))
    with pytest.raises(ConfigError, match="train a reward model first"):
        check_complete(RunSpec(method="rloo", rewards=Rewards(models={str(tmp_path / "none"): 1})))
