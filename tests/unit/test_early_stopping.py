"""Early stopping of the native engine: the best checkpoint on held-out rows is taken, also by a run that was killed."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hone.errors import ProgramFailed
from tests.support.training import make_task, row
from training import preference
from training.best import Best
from training.curve import read_curve
from training.fit import Task, fit
from training.policy import load_model
from training.ppo import train_ppo
from training.result import TrainResult

DPO: dict[str, Any] = {"sft_weight": 0, "steps": 20, "learning_rate": 1e-2, "stop": {"patience": 2}}
PPO: dict[str, Any] = {
    "method": "ppo",
    "steps": 20,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "adapter": "full",
    "samples": {"per_prompt": 2, "max_new_tokens": 6},
    "rewards": {
        "functions": {"tests.support.rewards:length": 1.0},
        "held_out": "tests.support.rewards:shortness",
    },
    "stop_rules": "record",
    "stop": {"patience": 2},
}
ROWS = [row(k) for k in range(12)]
OPPOSITE = [{**row(k), "chosen": row(k)["rejected"], "rejected": row(k)["chosen"]} for k in range(20, 26)]


def dpo_task(base: Path, directory: Path, dev: list[dict[str, Any]], **fields: Any) -> Task:
    return make_task(load_model(base), directory, ROWS, dev=dev, **{**DPO, **fields})


def ppo_task(base: Path, directory: Path, **fields: Any) -> Task:
    return make_task(load_model(base), directory, ROWS, dev=OPPOSITE, **{**PPO, **fields})


def kept(directory: Path) -> dict[str, Any]:
    """The weights of the best checkpoint, and no others beside it."""
    (path,) = (directory / "checkpoints" / "best").glob("step-*")
    found: dict[str, Any] = load_file(path / "tensors.safetensors")
    return found


def weights(result: TrainResult) -> dict[str, Any]:
    return dict(result.model.named_parameters())


def looks(result: TrainResult, name: str) -> dict[int, float]:
    return {step: figures[name] for step, figures in enumerate(result.history, 1) if name in figures}


def test_dpo_stops_when_dev_gets_no_better_and_takes_the_best_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    result = preference.train(dpo_task(tiny_base, tmp_path / "run", OPPOSITE))
    seen = looks(result, "eval_loss")
    assert list(seen) == [2, 4, 6], "best at 2, no better at 4 and 6"
    assert math.log(2) < seen[2] < seen[4] < seen[6]
    assert result.best_step == 2
    best = kept(tmp_path / "run")
    assert all(weights(result)[name].equal(value) for name, value in best.items())
    assert len(best) == sum(weight.requires_grad for weight in weights(result).values())


def test_dpo_whose_dev_gets_better_to_the_end_is_not_stopped(tiny_base: Path, tmp_path: Path) -> None:
    alike = [row(k) for k in range(20, 26)]
    result = preference.train(dpo_task(tiny_base, tmp_path / "run", alike, steps=7, learning_rate=1e-3))
    seen = looks(result, "eval_loss")
    assert list(seen) == [2, 4, 6, 7], "at each checkpoint and at the end"
    assert seen[7] == min(seen.values()) < math.log(2)
    assert (result.best_step, len(result.history)) == (7, 7)


@pytest.mark.parametrize("fields", [{"stop": {}}, {"dev": []}], ids=["no patience", "no dev rows"])
def test_without_patience_or_dev_rows_nobody_looks(tiny_base: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    dev = fields.pop("dev", OPPOSITE)
    result = preference.train(dpo_task(tiny_base, tmp_path / "run", dev, steps=4, **fields))
    assert (result.best_step, looks(result, "eval_loss"), len(result.history)) == (None, {}, 4)


def test_ppo_stops_when_the_held_out_signal_falls_and_takes_the_best_policy(tiny_base: Path, tmp_path: Path) -> None:
    result = train_ppo(ppo_task(tiny_base, tmp_path / "run"))
    seen = looks(result, "eval_score")
    assert result.best_step == max(seen, key=lambda step: seen[step])
    assert list(seen)[-1] == result.best_step + 4, "two looks after the best one, two steps apart"
    assert result.history[-1]["reward"] > result.history[0]["reward"], "what it is rewarded for still rises"
    assert all(weights(result)[name].equal(value) for name, value in kept(tmp_path / "run").items())


def test_ppo_without_a_held_out_signal_looks_at_the_reward(tiny_base: Path, tmp_path: Path) -> None:
    rewards = {"functions": {"tests.support.rewards:length": 1.0}, "held_out": None}
    result = train_ppo(ppo_task(tiny_base, tmp_path / "run", rewards=rewards, steps=4))
    seen = looks(result, "eval_score")
    assert all(score > 0 for score in seen.values()), "a length, and no shortness"


TRAINERS: dict[str, Callable[[Path, Path], TrainResult]] = {
    "dpo": lambda base, place: preference.train(dpo_task(base, place, OPPOSITE)),
    "ppo": lambda base, place: train_ppo(ppo_task(base, place)),
}


@pytest.mark.parametrize("method", TRAINERS)
def test_a_killed_run_ends_with_the_same_looks_and_weights(tiny_base: Path, tmp_path: Path, method: str) -> None:
    train, place = TRAINERS[method], tmp_path / "run"
    whole = train(tiny_base, place)
    expected = {name: value.clone() for name, value in weights(whole).items()}
    newest = max((place / "checkpoints").glob("step-*"))
    for damage in ("after its last checkpoint", "between the best weights and its checkpoint", "long before"):
        if damage != "after its last checkpoint":
            shutil.rmtree(newest)
        if damage == "long before":
            for path in (place / "checkpoints").glob("step-*"):
                shutil.rmtree(path)
        again = train(tiny_base, place)
        assert (again.history, again.best_step) == (whole.history, whole.best_step), damage
        assert all(value.equal(expected[name]) for name, value in weights(again).items()), damage


def test_what_another_run_left_as_its_best_is_not_taken(tmp_path: Path) -> None:
    weight = {"w": torch.ones(2)}
    other = Best(tmp_path, {"run_id": "other"}, 1)
    other.look(9, 0.1, weight)
    ours = Best(tmp_path, {"run_id": "ours"}, 1)
    ours.look(2, 0.5, {"w": torch.zeros(2)})
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-00000002"]
    assert ours.put_back(weight) == 2
    assert weight["w"].tolist() == [0, 0]


def test_a_loss_that_is_no_number_is_never_the_best_and_a_damaged_best_is_an_error(tmp_path: Path) -> None:
    best, weight = Best(tmp_path, {}, 2), {"w": torch.ones(2)}
    assert best.put_back(weight) is None
    for step, loss in enumerate((0.5, math.nan, 0.5), 1):
        best.look(step, loss, weight)
    assert (best.step, best.is_over) == (1, True)
    again = Best(tmp_path, {}, 2)
    again.take_up(json.loads(json.dumps(best.looks)))
    assert (again.step, again.is_over) == (1, True)
    (tmp_path / "best" / "step-00000001" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(ProgramFailed, match="the best checkpoint, of step 1, is missing or damaged"):
        again.put_back(weight)


TRL: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 5e-2},
    "rloo": {**PPO, "samples": {"per_prompt": 2, "max_new_tokens": 4}},
    "grpo": {**PPO, "samples": {"per_prompt": 2, "max_new_tokens": 4}},
}


def trl(base: Path, directory: Path, method: str, **fields: Any) -> TrainResult:
    given = {"steps": 20, "stop": {"patience": 1}, **TRL[method], **fields, "method": method}
    return fit(make_task(load_model(base), directory, ROWS, dev=OPPOSITE, **given))


def looks_of(directory: Path) -> dict[int, float]:
    """What TRL's trainers wrote to the curve; the lower the better."""
    signs = {"eval_loss": 1, "eval_score": -1}
    seen = read_curve(directory)
    return {step: signs[name] * f[name] for step, f in seen.items() for name in signs if name in f}


@pytest.mark.parametrize("method", TRL)
def test_trl_stops_when_dev_gets_no_better_also_if_it_is_killed_after_its_end(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    place = tmp_path / "run"
    whole = trl(tiny_base, place, method, stop={"patience": 1})
    seen = looks_of(place)
    assert whole.best_step == min(seen, key=lambda step: seen[step])
    assert list(seen)[-1] == len(whole.history) == whole.best_step + 2, "one look after the best, two steps apart"
    expected = {name: value.clone() for name, value in weights(whole).items()}
    again = trl(tiny_base, place, method, stop={"patience": 1})
    assert (again.history, again.best_step) == (whole.history, whole.best_step)
    assert looks_of(place) == seen
    assert all(value.equal(expected[name]) for name, value in weights(again).items())


def test_looks_at_held_out_answers_take_no_random_numbers_from_the_run(tiny_base: Path, tmp_path: Path) -> None:
    watched = trl(tiny_base, tmp_path / "watched", "rloo", stop={"patience": 9}, steps=4)
    blind = trl(tiny_base, tmp_path / "blind", "rloo", stop={}, steps=4)
    assert watched.history == blind.history
    assert (list(looks_of(tmp_path / "watched")), blind.best_step) == ([2, 4], None)


def test_trls_run_that_ended_within_a_pass_over_the_rows_is_not_trained_further(
    tiny_base: Path, tmp_path: Path
) -> None:
    """As after a kill in the middle of its evaluation: twelve rows are three steps."""
    whole = trl(tiny_base, tmp_path / "run", "sft", stop={}, steps=2)
    again = trl(tiny_base, tmp_path / "run", "sft", stop={}, steps=2)
    assert again.history == whole.history
    assert len(whole.history) == 2
