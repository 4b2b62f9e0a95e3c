"""The recipes as they are shipped, on the tiny model: from rows to a policy in one command."""

import json
from pathlib import Path
from typing import Any

import pytest

from hone.errors import ConfigError
from tests.support.training import row, write_rows
from training.__main__ import main
from training.policy import load_model
from training.recipe import load_recipe

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
SMALL: dict[str, Any] = {
    "learning_rate": 1e-2,
    "steps": 8,
    "batch_size": 4,
    "lora": {"rank": 4},
    "evaluation": {"num_prompts": 2, "num_samples": 1, "max_new_tokens": 4, "num_bootstraps": 100},
}


def shrunk(name: str, directory: Path) -> Path:
    """The shipped recipe beside method files for a tiny model."""
    for source in RECIPES.parent.glob("*.toml"):
        if (method := source.stem) in ("sft", "dpo", "reward_model", "ppo"):
            lines = [f'method = "{method}"', *(f"{key} = {toml(value)}" for key, value in SMALL.items())]
            lines += ["samples = {per_prompt = 1, max_new_tokens = 6}", "ppo = {minibatch_size = 2}"] * (
                method == "ppo"
            )
            lines += ["reward = {min_accuracy = 0.5}"] * (method == "reward_model")
            (directory / source.name).write_text("\n".join(lines))
    (directory / "recipes").mkdir()
    path = directory / "recipes" / f"{name}.toml"
    path.write_text((RECIPES / path.name).read_text())
    return path


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(found)}" for key, found in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("short_road", ["imitate", "prefer"]), ("three_stages", ["imitate", "prefer", "earn"])],
)
def test_a_recipe_runs_from_rows_to_a_policy_and_is_not_done_twice(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    stages: list[str],
) -> None:
    monkeypatch.setenv("HONE_VAR_DIR", str(tmp_path / "var"))
    write_rows(tmp_path / "rows" / "train.jsonl", [row(k) for k in range(10)])
    words = ["recipe", str(shrunk(name, tmp_path)), f"--set=base={tiny_base}"]
    words += [f"--set=datasets.{kind}={tmp_path / 'rows'}" for kind in ("demonstrations", "pairs", "prompts")]
    assert main(words) == 0, capsys.readouterr().err
    done = json.loads(capsys.readouterr().out)
    assert list(done) == stages
    imitated = Path(done["imitate"]["directory"]) / "model"
    job = json.loads((Path(done[stages[-1]]["directory"]) / "job.json").read_text())
    assert job["base_directory"] == str(imitated), "it starts where the first stage ended"
    if name == "three_stages":
        assert list(job["spec"]["rewards"]["models"]) == [str(Path(done["prefer"]["directory"]) / "model")]
    load_model(Path(done[stages[-1]]["directory"]) / "model")
    log = Path(done["imitate"]["directory"]) / "evaluation.json"
    written = log.stat().st_mtime_ns
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == done
    assert log.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, "add --set datasets.demonstrations=ID", id="a dataset that nobody gave"),
        pytest.param({"stages": [{"name": "a"}]}, "needs a name and a method", id="a stage without a method"),
        pytest.param(
            {"datasets": {"d": "x"}, "stages": [{"name": "a", "method": "dpo", "dataset": "d", "base": "@b"}]},
            "names no earlier stage",
            id="a stage that is not there",
        ),
        pytest.param(
            {"datasets": {"d": "x"}, "stages": [{"name": "a", "method": "dpo", "dataset": "d", "betta": 1}]},
            "betta",
            id="a wrong key",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_starts(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(RECIPES / "three_stages.toml", changes)
