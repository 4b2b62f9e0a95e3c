"""A model in several safetensors files, from its training to the runtime that serves it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError
from hone.store.models import get_model, import_model
from hone.weights import INDEX, weights_digest
from serving.runtime.app import runtime_app
from tests.support.training import make_job, row
from tests.support.web import serving
from training.__main__ import main
from training.policy import load_model
from training.reward_set import load_objectives

pytestmark = pytest.mark.slow
SMALL = 3e-5
"""Gigabytes: the tiny model has five times as many."""


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training, written whole and in shards."""
    found = {}
    for name, size in (("whole", 5.0), ("shards", SMALL)):
        found[name] = tmp_path_factory.mktemp(name) / "run"
        make_job(found[name], tiny_base, [row(k) for k in range(8)], steps=2, max_shard_gb=size)
        assert main(["run", str(found[name] / "job.json")]) == 0
    return found


def files_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


def test_a_large_model_is_written_in_shards_that_load_to_the_same_weights(runs: dict[str, Path]) -> None:
    shards = files_of(runs["shards"] / "model")
    assert len(shards) > 2
    assert set(json.loads((runs["shards"] / "model" / INDEX).read_text())["weight_map"].values()) == set(shards)
    whole, parts = (load_model(runs[name] / "model")[0].state_dict() for name in ("whole", "shards"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_digest_covers_every_shard_and_names_a_missing_one(runs: dict[str, Path], tmp_path: Path) -> None:
    report = json.loads((runs["shards"] / "evaluation.json").read_text())
    model = runs["shards"] / "model"
    assert report["digest"] == weights_digest(model)
    assert set(files_of(model)) < set(json.loads((model.parent / "birth_certificate.json").read_text())["files"])
    for name in [*files_of(model), INDEX]:
        (tmp_path / name).write_bytes((model / name).read_bytes())
    last = tmp_path / files_of(model)[-1]
    changed = bytearray(last.read_bytes())
    changed[-1] ^= 1
    last.write_bytes(bytes(changed))
    assert weights_digest(tmp_path) != report["digest"]
    last.unlink()
    with pytest.raises(ConfigError, match=last.name):
        weights_digest(tmp_path)


def test_a_sharded_model_is_registered_served_and_trained_on(
    runs: dict[str, Path], sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    with sessions.begin() as session:
        version = import_model(session, runs["shards"] / "model")
        directory = get_model(session, version).directory
    body: dict[str, Any] = {"model_version": version, "directory": directory}
    with serving(runtime_app({})) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        loaded = client.post("/v1/models/load", json=body)
        assert loaded.status_code == 200, loaded.text
        chat = {"model": version, "messages": row(0)["prompt"], "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=chat).json()["choices"]
    make_job(tmp_path / "next", Path(directory), [row(k) for k in range(8)], steps=2)
    assert main(["run", str(tmp_path / "next" / "job.json")]) == 0


def test_a_reward_model_in_shards_scores(tiny_base: Path, tmp_path: Path) -> None:
    recipe = {"method": "reward_model", "reward": {"min_accuracy": 0.5}, "steps": 4, "learning_rate": 1e-2}
    make_job(tmp_path / "run", tiny_base, [row(k) for k in range(8)], max_shard_gb=SMALL, **recipe)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    assert len(files_of(tmp_path / "run" / "model" / "reward")) > 2
    (objective,) = load_objectives(tmp_path / "run").values()
    assert objective([row(0)["prompt"]], [row(0)["chosen"]])
