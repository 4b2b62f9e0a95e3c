"""The parts of a sweep that need no training: its file, its memory, its tables."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hone.errors import ConfigError
from hone.plan.tables import load_tables
from training.estimate import START_S, Length, estimate, num_steps
from training.spec import RunSpec
from training.sweep import study as studies
from training.sweep.ablation import Trial, effects
from training.sweep.objective import DEFAULTS, OBJECTIVES, numbers, objective_of, value_of
from training.sweep.picture import draw
from training.sweep.report import page, write_report
from training.sweep.run import best_of
from training.sweep.study import JOURNAL, importances, next_trials, open_study
from training.sweep.table import Sweep, flat, load_sweep, spec_of_trial
from training.sweep.toml_text import toml_text
from training.sweep.view import show_result

ROOT = Path(__file__).parents[2]


def sweep(**fields: Any) -> Sweep:
    space = flat(fields.pop("space", {"learning_rate": [1e-4, 1e-3], "lora": {"rank": [4, 8, 16]}}))
    return Sweep.model_validate({"space": space, **fields})


def trials(values: dict[tuple[Any, Any], float]) -> list[Trial]:
    return [
        Trial(k, {"learning_rate": rate, "lora.rank": rank}, "done", value)
        for k, ((rate, rank), value) in enumerate(values.items())
    ]


def means(found: list[Trial], name: str, **ranges: bool) -> dict[str, tuple[float, float | None, int]]:
    space = {"learning_rate": False, "lora.rank": False} | ranges
    (factor,) = [one for one in effects(found, space, {}) if one.name == name]
    return {level.level: (round(level.mean, 9), level.half_width, level.num_trials) for level in factor.levels}


# The table ----------------------------------------------------------------------------------------------------------


def test_in_a_full_grid_a_levels_mean_is_the_plain_one() -> None:
    found = trials({(0.1, 4): 1.0, (0.1, 8): 2.0, (0.2, 4): 5.0, (0.2, 8): 8.0})
    assert {level: mean for level, (mean, _, _) in means(found, "learning_rate").items()} == {"0.1": 1.5, "0.2": 6.5}
    assert {level: mean for level, (mean, _, _) in means(found, "lora.rank").items()} == {"4": 3.0, "8": 5.0}


def test_levels_that_met_other_company_are_compared_as_if_they_had_met_the_same() -> None:
    """Rank adds 1 and rate adds 10; rank 8 was mostly tried with the bad rate, and looks worse by its plain mean."""
    values = {(0.1, 4): 0.0, (0.1, 8): 1.0, (0.2, 4): 10.0, (0.2, 8): 11.0}
    keys = [(0.1, 8), (0.1, 8), (0.1, 8), (0.1, 4), (0.2, 4), (0.2, 4), (0.2, 8)]
    found = [Trial(k, {"learning_rate": a, "lora.rank": b}, "done", values[a, b]) for k, (a, b) in enumerate(keys)]
    plain = {rank: np.mean([t.value for t in found if t.params["lora.rank"] == rank]) for rank in (4, 8)}
    assert plain[8] < plain[4]
    by_rank = means(found, "lora.rank")
    assert by_rank["8"][0] - by_rank["4"][0] == pytest.approx(1.0)
    assert by_rank["8"][1] == pytest.approx(0.0, abs=1e-9), "nothing is left unexplained"
    assert by_rank["8"][2] == 4


def test_an_interval_is_students_of_what_the_fit_leaves() -> None:
    found = [Trial(k, {"a": k % 2}, "done", value) for k, value in enumerate([1.0, 10.0, 3.0, 12.0])]
    (factor,) = effects(found, {"a": False}, {"a": 0.9})
    # Two of each level, 1 from their mean: the residual variance is 4 / 2 degrees, a mean's is half of it.
    assert factor.importance == 0.9
    assert [level.mean for level in factor.levels] == pytest.approx([2.0, 11.0])
    assert [level.half_width for level in factor.levels] == pytest.approx([4.30265 * 1.0] * 2, rel=1e-5)


def test_without_degrees_of_freedom_there_is_no_interval_and_without_trials_no_table() -> None:
    assert means(trials({(0.1, 4): 1.0, (0.2, 8): 2.0}), "lora.rank")["4"][1] is None
    assert effects([], {"a": False}, {}) == []


def test_a_range_is_cut_into_parts_with_as_many_trials() -> None:
    found = [Trial(k, {"learning_rate": 10.0**-k, "lora.rank": 4}, "done", float(k)) for k in range(6)]
    levels = means(found, "learning_rate", learning_rate=True)
    assert list(levels) == ["1e-05 to 0.0001", "0.001 to 0.01", "0.1 to 1"]
    assert [num for _, _, num in levels.values()] == [2, 2, 2]
    assert [mean for mean, _, _ in levels.values()] == pytest.approx([4.5, 2.5, 0.5])


def test_the_page_has_every_trial_marks_the_best_and_says_what_its_numbers_are(tmp_path: Path) -> None:
    found = trials({(1e-4, 4): 0.5, (1e-3, 4): 0.75, (1e-4, 8): 0.625, (1e-3, 8): 0.75})
    found.append(Trial(4, {"learning_rate": 1e-3, "lora.rank": 16}, "failed", reason="the loss is nan|inf"))
    best = best_of(found, OBJECTIVES["dev_accuracy"])
    assert best is found[1], "of equal ones the first"
    factors = effects(found[:4], {"learning_rate": False, "lora.rank": False}, {"learning_rate": 0.8})
    text = page(sweep(), OBJECTIVES["dev_accuracy"], found, best, factors)
    assert "| `learning_rate` | 80% | 0.0001 | 2 | 0.5625 |" in text
    assert "| 1 | 0.001 | 4 | **0.75** |" in text
    assert "| 4 | 0.001 | 16 | failed |  | - | the loss is nan/inf |" in text
    assert "more is better" in text
    draw(tmp_path / "a.png", sweep(), OBJECTIVES["dev_accuracy"], found[:4], best, factors)
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_people_are_shown_every_trial_every_level_and_the_best(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = trials({(1e-4, 4): 0.5, (1e-3, 4): 0.75, (1e-4, 8): 0.625, (1e-3, 8): 0.5})
    found.append(Trial(4, {"learning_rate": 1e-3, "lora.rank": 16}, "failed", seconds=75.0, reason="nan"))
    best = best_of(found, OBJECTIVES["dev_accuracy"])
    assert best
    table = write_report(tmp_path, sweep(), OBJECTIVES["dev_accuracy"], found, best, {}, RunSpec(dataset="d-1"))
    show_result(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["trial", "learning", "rate", "lora.rank", "dev", "accuracy", "took"]
    assert lines[2].split() == ["1", "0.001", "4", "0.75", "-"]
    assert lines[5].split() == ["4", "0.001", "16", "failed", "75", "s"]
    assert "best: learning_rate 0.001, lora.rank 4: dev_accuracy 0.75 (trial 1)" in lines
    assert json.loads((tmp_path / "ablation.json").read_text())["best"]["trial"] == 1
    written = tomllib.loads((tmp_path / "best.toml").read_text())
    assert written == {"method": "dpo", "dataset": "d-1", "learning_rate": 1e-3, "lora": {"rank": 4}}


# Its memory ---------------------------------------------------------------------------------------------------------


def value(params: dict[str, Any]) -> float:
    return float(-((np.log10(params["learning_rate"]) + 3) ** 2) + params["lora.rank"] / 100)


def go_on(folder: Path, plan: Sweep, *, stop_in: int | None = None) -> list[dict[str, Any]]:
    """Do trials until the process is gone in the middle of the trial `stop_in`."""
    study = open_study(folder, plan, "maximize")
    for trial, params in next_trials(study, plan, lambda: True):
        if trial.number == stop_in:
            break
        study.tell(trial, value(params))
    return [trial.params for trial in studies.trials(study)]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_sweep_that_goes_on_tries_what_it_would_have_tried_and_nothing_twice(tmp_path: Path, sampler: str) -> None:
    rates = [1e-5, 1e-4, 1e-3, 1e-2] if sampler == "grid" else {"low": 1e-5, "high": 1e-2, "log": True}
    plan = sweep(sampler=sampler, trials=12, space={"learning_rate": rates, "lora.rank": [4, 8, 16]})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    expected = go_on(whole, plan)
    assert len(expected) == 12
    go_on(killed, plan, stop_in=3)
    journal = killed / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 6, "worker')
    (killed / f"{JOURNAL}.lock").symlink_to(journal)
    go_on(killed, plan, stop_in=9)
    assert go_on(killed, plan) == expected
    assert go_on(killed, plan) == expected, "nothing is left to do"
    assert len({json.dumps(params) for params in expected}) == 12


def test_a_trial_that_was_killed_before_it_had_its_levels_gets_them(tmp_path: Path) -> None:
    plan = sweep()
    open_study(tmp_path, plan, "maximize").ask()
    found = go_on(tmp_path, plan)
    assert len(found) == len({json.dumps(params) for params in found}) == 6


def test_a_space_that_is_searched_through_ends_the_sweep(tmp_path: Path) -> None:
    found = go_on(tmp_path, sweep(sampler="random", trials=6, space={"learning_rate": [1e-4, 1e-3], "lora.rank": [4]}))
    assert len(found) == 2


def test_the_factor_that_matters_is_the_important_one(tmp_path: Path) -> None:
    plan = sweep(space={"learning_rate": [1e-5, 1e-4, 1e-3], "lora.rank": [4, 8, 16]})
    go_on(tmp_path, plan)
    study = open_study(tmp_path, plan, "maximize")
    found = importances(study, studies.trials(study), seed=0)
    assert found["learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert all(trial.state == TrialState.COMPLETE for trial in studies.trials(study))
    assert importances(optuna.create_study(), [], seed=0) == {}


# Its file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_one_of_its_method(path: Path) -> None:
    found = load_sweep(path, {})
    base = tomllib.loads((ROOT / "configs" / f"{path.stem}.toml").read_text()) | found.spec
    assert found.method == path.stem
    assert found.num_trials in (16, 18)
    for point in found.grid()[:2] if found.is_grid else []:
        assert spec_of_trial(found, base, point).learning_rate == point["learning_rate"]


def test_a_trial_has_its_levels_lists_too_and_each_repeat_a_seed_of_its_own() -> None:
    plan = sweep(space={"lora.targets": ["all-linear", ["q_proj", "v_proj"]], "batch_size": [4]})
    levels = plan.space["lora.targets"].levels
    assert levels == ("all-linear", '["q_proj", "v_proj"]')
    spec = spec_of_trial(plan, {"lora": {"rank": 2}, "seed": 7}, {"lora.targets": levels[1], "batch_size": 4}, repeat=2)
    assert (spec.lora.targets, spec.lora.rank, spec.seed) == (("q_proj", "v_proj"), 2, 9)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ({"low": 1.0}, "either values"),
        ({"low": 2, "high": 1}, "no range"),
        ({"low": 0, "high": 1, "log": True}, "log = true"),
        ({"values": [1], "low": 0, "high": 1}, "either values"),
    ],
)
def test_a_factor_is_a_list_or_a_range(factor: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(space={"learning_rate": factor})


def test_the_grid_is_walked_where_it_fits_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    assert (sweep().num_trials, sweep().is_grid) == (6, True)
    assert (sweep(trials=4).num_trials, sweep(trials=4).is_grid) == (4, False)
    ranged = sweep(space={"lora.rank": {"low": 4, "high": 64}})
    assert (ranged.num_trials, ranged.is_grid, ranged.space["lora.rank"].is_whole) == (20, False, True)


# What is looked for -------------------------------------------------------------------------------------------------


def test_every_method_has_an_objective_of_its_own_that_is_no_loss_of_training() -> None:
    for method, name in DEFAULTS.items():
        spec = RunSpec.model_validate(
            {"method": method} | ({"rewards": {"held_out": "a:b"}} if name == "held_out_signal" else {})
        )
        assert objective_of(sweep(method=method), spec).name == name
    assert not any("loss" in objective.path and "dev" not in objective.path for objective in OBJECTIVES.values())


def test_an_objective_may_be_any_number_of_the_report_with_its_direction() -> None:
    report = {"measured": {"a": {"accuracy": 0.5}, "b": {"accuracy": 1.0}}, "dev": {"loss": 2.0}}
    assert numbers(report, ["measured", "*", "accuracy"]) == [0.5, 1.0]
    assert value_of(report, OBJECTIVES["reward_accuracy"]) == 0.75
    path = objective_of(sweep(objective="measured.a.accuracy", direction="minimize"), RunSpec())
    assert value_of(report, path) == 0.5
    assert path.better(0.1, 0.2)
    with pytest.raises(ConfigError, match=r"measured no dev\.accuracy"):
        value_of(report, OBJECTIVES["dev_accuracy"])
    with pytest.raises(ConfigError, match="with its direction"):
        objective_of(sweep(objective="measured.a.accuracy"), RunSpec())
    with pytest.raises(ConfigError, match=r"rewards\.held_out"):
        objective_of(sweep(method="ppo"), RunSpec(method="ppo"))


# Its neighbours -----------------------------------------------------------------------------------------------------


def test_a_spec_written_as_toml_is_read_back() -> None:
    values = {
        "learning_rate": 1e-05,
        "steps": None,
        "base": 'C:\\"x"',
        "rewards": {"models": {"/a b/c": 0.5}},
        "lora": {"rank": 4, "targets": ["q_proj"]},
        "gates": {},
    }
    found = tomllib.loads(toml_text(values))
    assert found == {key: value for key, value in values.items() if value is not None}


def test_an_estimate_grows_with_the_steps_and_is_of_this_machine(tmp_path: Path) -> None:
    shape = load_tables().models["0.5b"].model_dump(exclude_none=True)
    (tmp_path / "config.json").write_text(json.dumps(shape))
    lengths = [Length(100, 50)] * 100
    spec = RunSpec.model_validate({"batch_size": 10, "epochs": 2})
    found = estimate(spec, tmp_path, lengths)
    assert found
    assert (found.steps, num_steps(RunSpec(method="sft", steps=7), lengths)) == (20, 7)
    twice = estimate(RunSpec.model_validate({"batch_size": 10, "epochs": 4}), tmp_path, lengths)
    assert twice
    assert twice.seconds - START_S == pytest.approx(2 * (found.seconds - START_S))
    assert found.memory_bytes > 2e9, "half a billion weights in fp32"
    assert estimate(spec, tmp_path / "nothing", lengths) is None
