"""An adapter that is kept: named with its base, the same model to gates and runtime, merged before a run on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hone.errors import ConfigError
from hone.weights import model_version_of, read_base, weights_digest
from serving.runtime.model import load_model as load_to_serve
from serving.runtime.vllm import rank_of
from tests.support.training import make_job, row
from training.generate import Decoding, generate
from training.policy import load_model
from training.preflight import prepare_base
from training.progress import Progress
from training.run import run_job
from training.spec import Job, RunSpec, parse

ROWS = [row(k) for k in range(12)]
IDS = torch.tensor([[5, 9, 3, 40, 7, 11]])


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """The same training twice, whose base is at a place of its own; only what is kept differs."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("export")
    base = Path(shutil.copytree(tiny_base, place / "base"))
    jobs = {kept: make_job(place / kept, base, ROWS, export=kept) for kept in ("merged", "adapter")}
    for job in jobs.values():
        run_job(job)
    return jobs


def logits(directory: Path) -> Any:
    with torch.inference_mode():
        return load_model(directory)[0](input_ids=IDS).logits


def test_the_adapter_on_its_base_is_the_merged_model(runs: dict[str, Job], tmp_path: Path) -> None:
    merged, kept = (runs[name].directory / "model" for name in ("merged", "adapter"))
    assert not list(kept.glob("model*.safetensors")), "no whole weights are kept"
    assert (logits(kept) - logits(merged)).abs().max() < 1e-5
    assert (logits(kept) - logits(runs["adapter"].base_directory)).abs().max() > 1e-3, "something was learnt"
    decoding = Decoding(temperature=0.0, max_new_tokens=6, batch_size=2)
    answers = [
        generate(*load_model(place), [row(0)["prompt"]], decoding, Progress(tmp_path / "p.json"))
        for place in (kept, merged)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0].num_tokens


def test_gates_see_the_same_model_and_its_name_holds_the_base(runs: dict[str, Job]) -> None:
    reports = {name: json.loads((job.directory / "evaluation.json").read_text()) for name, job in runs.items()}
    assert reports["adapter"]["measured"] == reports["merged"]["measured"]
    job = runs["adapter"]
    kept = job.directory / "model"
    base, digest = read_base(kept), weights_digest(job.base_directory)
    assert base is not None
    assert (base.digest, base.directory) == (digest, job.base_directory)
    assert reports["adapter"]["digest"] == weights_digest(kept) != reports["merged"]["digest"]
    certificate = json.loads((job.directory / "birth_certificate.json").read_text())
    assert certificate["adapter_on"] == model_version_of(digest)
    assert f"rank 4, on {model_version_of(digest)}" in (job.directory / "MODEL_CARD.md").read_text()
    assert rank_of("m-1", kept) == 4, "as vLLM is told"


def test_the_runtime_serves_base_and_adapter_under_one_digest(runs: dict[str, Job]) -> None:
    kept = runs["adapter"].directory / "model"
    served = load_to_serve("m-1", kept)
    assert served.digest == weights_digest(kept)
    with torch.inference_mode():
        assert (served.model(input_ids=IDS).logits - logits(kept)).abs().max() < 1e-5


def test_a_run_on_an_adapter_merges_it_first(runs: dict[str, Job], tmp_path: Path) -> None:
    kept = runs["adapter"].directory / "model"
    prepared = prepare_base(kept, tmp_path / "next")
    assert not list(prepared.glob("adapter*"))
    assert (logits(prepared) - logits(kept)).abs().max() < 1e-5


def test_another_base_under_the_adapter_is_refused_and_another_name(runs: dict[str, Job], tmp_path: Path) -> None:
    kept = Path(shutil.copytree(runs["adapter"].directory / "model", tmp_path / "kept"))
    facts = json.loads((kept / "base.json").read_text())
    (kept / "base.json").write_text(json.dumps({**facts, "directory": str(runs["merged"].directory / "model")}))
    for load in (load_model, lambda place: load_to_serve("m-1", place), lambda place: prepare_base(place, tmp_path)):
        with pytest.raises(ConfigError, match=f"lies on {facts['model_version']}, but .* put that base back"):
            load(kept)
    name = weights_digest(kept)
    (kept / "base.json").write_text(json.dumps({**facts, "digest": "0" * 64}))
    assert weights_digest(kept) != name
    (kept / "base.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not name a base"):
        weights_digest(kept)


@pytest.mark.parametrize("fields", [{"adapter": "full"}, {"method": "reward_model"}], ids=["full", "reward model"])
def test_only_a_policy_that_was_trained_as_an_adapter_is_kept_as_one(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a policy that was trained as one"):
        parse(RunSpec, {"export": "adapter", **fields}, "here")
