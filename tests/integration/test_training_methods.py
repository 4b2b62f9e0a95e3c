"""Each method from rows to a model that is reloaded and answers; the foreground command; what it leaves in Postgres."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy.orm import Session, sessionmaker

from hone.datasets import FreezePolicy
from hone.errors import ProgramFailed
from hone.settings import Settings
from hone.store.candidates import candidates_of
from hone.store.datasets import freeze_feedback
from hone.store.models import get_model, import_model, set_alias
from hone.store.runs import get_run
from tests.support.events_file import events_of
from tests.support.pairs import add_edit
from tests.support.training import QUICK, make_job, make_task, row, write_rows
from training.__main__ import main
from training.curve import read_curve
from training.fit import fit
from training.generate import Decoding, generate
from training.meter import meter_for
from training.policy import load_model
from training.progress import Progress
from training.reward_model import export, load_scorer
from training.reward_set import load_objectives
from training.run import run_job
from training.spec import load_spec
from training.start import describe, run_spec

pytestmark = pytest.mark.slow

SAMPLED: dict[str, Any] = {
    "samples": {"per_prompt": 2, "max_new_tokens": 6},
    "rewards": {
        "functions": {"tests.support.rewards:length": 1.0},
        "held_out": "tests.support.rewards:shortness",
    },
}
POLICIES: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "sft packed": {"method": "sft", "sft": {"packing": True}},
    "sft full": {"method": "sft", "adapter": "full"},
    "dpo robust": {"preference": {"loss": "robust", "label_smoothing": 0.1}},
    "dpo full": {"adapter": "full"},
    "dpo trl": {"method": "dpo", "engine": "trl"},
    "kto": {"method": "kto", "kto": {"min_rows": 4}},
    "ppo": {"method": "ppo", **SAMPLED, "ppo": {"minibatch_size": 2}},
    "rloo": {"method": "rloo", **SAMPLED},
    "grpo": {"method": "grpo", **SAMPLED},
}


@pytest.mark.parametrize("recipe", POLICIES.values(), ids=list(POLICIES))
def test_a_policy_is_trained_exported_reloaded_and_answers(
    tiny_base: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    make_job(tmp_path / "run", tiny_base, [row(k) for k in range(12)], **recipe, report_to=["tensorboard"])
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["training"]["num_steps"] == 6
    curve = read_curve(tmp_path / "run")
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    assert (curve[1], curve[6]) == (report["training"]["first_step"], report["training"]["last_step"])
    shown = events_of(tmp_path / "run" / "tensorboard")
    assert shown["train/loss"] == pytest.approx({step: figures["loss"] for step, figures in curve.items()}, rel=1e-6)
    assert not any(report["training"]["dropped"].values())
    assert report["training"]["characters"]["chosen"] > report["training"]["characters"]["rejected"] > 0
    model, tokenizer = load_model(tmp_path / "run" / "model")
    decoding = Decoding(temperature=0.0, max_new_tokens=4, batch_size=2)
    (answer,) = generate(model, tokenizer, [row(0)["prompt"]], decoding, Progress(tmp_path / "p.json"))
    assert answer.num_tokens
    before, after = (dict(load_model(place)[0].named_parameters()) for place in (tiny_base, tmp_path / "run" / "model"))
    assert any(not weight.equal(after[name]) for name, weight in before.items()), "something was learnt"


@pytest.mark.parametrize("name", ["sft", "dpo trl", "ppo", "dpo full"])
def test_a_run_says_how_fast_it_goes_and_what_it_takes(tiny_base: Path, tmp_path: Path, name: str) -> None:
    launch = {"peak_tflops": 0.1}
    task = make_task(
        load_model(tiny_base), tmp_path / "run", [row(k) for k in range(12)], **POLICIES[name], launch=launch
    )
    task.progress.meter = meter_for(task.spec, task.model)
    fit(task)
    facts = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert (facts["stage"], facts["done"], facts["total"]) == ("train", 6, 6)
    speed = facts["speed"]
    assert speed["tokens_per_s"] > 0
    assert 0 < speed["mfu"] < 1
    assert 0 <= speed["wait_share"] < 1
    assert name != "ppo" or speed["wait_share"] > 0.05, "of PPO, the time that answers take"
    assert 1e8 < speed["memory_bytes"] < 1e11


def test_a_run_stops_when_dev_gets_no_better_and_keeps_the_best_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    """The dev rows say the opposite of what is learnt, so that the first look is the best."""
    swapped = [{**row(k), "chosen": row(k)["rejected"], "rejected": row(k)["chosen"]} for k in range(20, 26)]
    recipe = {"method": "dpo", "engine": "trl", "sft_weight": 0, "steps": 20, "learning_rate": 1e-2}
    job = make_job(tmp_path / "run", tiny_base, [row(k) for k in range(12)], **recipe, stop={"patience": 2})
    write_rows(tmp_path / "run" / "data" / "dev.jsonl", swapped)
    run_job(job)
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["training"]["num_steps"] == 6, "best at 2, no better at 4 and 6"
    best = load_file(tmp_path / "run" / "trl" / "checkpoint-2" / "adapter_model.safetensors")
    state = json.loads((tmp_path / "run" / "trl" / "checkpoint-6" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).name == "checkpoint-2"
    whole = load_model(tmp_path / "run" / "model")[0].state_dict()
    base = load_model(tiny_base)[0].state_dict()
    name = "model.layers.0.self_attn.q_proj"
    lora = [best[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB"]
    assert torch.allclose(whole[f"{name}.weight"], base[f"{name}.weight"] + 2 * lora[1] @ lora[0], atol=1e-6)


def test_a_policy_that_buys_reward_with_what_nobody_rewards_is_stopped(tiny_base: Path, tmp_path: Path) -> None:
    rules = {"window": 2, "max_held_out_drop": 0.02}
    recipe = {"method": "ppo", **SAMPLED, "ppo": {"minibatch_size": 8}, "batch_size": 16, "adapter": "full"}
    make_job(tmp_path / "run", tiny_base, [row(0)], **recipe, steps=20, learning_rate=1e-2, stop=rules)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "fired_at_reward_hacking" in report["measured"]["stop_rules"]
    assert report["training"]["num_steps"] < 20


def test_reward_models_are_trained_one_for_each_objective_reloaded_and_score(tiny_base: Path, tmp_path: Path) -> None:
    rows = [row(k, objective=("helpful", "safe")[k % 2]) for k in range(16)]
    reward = {"objectives": {"helpful": 0.7, "safe": 0.3}, "margin": 0.5, "min_accuracy": 0.9}
    recipe = {"method": "reward_model", "reward": reward, "learning_rate": 1e-2, "steps": 15}
    make_job(tmp_path / "run", tiny_base, rows, **recipe)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 0
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())["measured"]
    assert {name: facts["num_pairs"] for name, facts in measured.items()} == {"helpful": 8, "safe": 8}
    objectives = load_objectives(tmp_path / "run")
    assert {name: objective.weight for name, objective in objectives.items()} == {"helpful": 0.7, "safe": 0.3}
    prompts = [row["prompt"] for row in rows]
    for objective in objectives.values():
        chosen, rejected = (objective(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
        assert sum(a > b for a, b in zip(chosen, rejected, strict=True)) > 14
        assert abs(sum(chosen) + sum(rejected)) / 32 < 0.5, "on one scale: mean about 0"


def test_a_reward_model_that_learnt_nothing_fails_the_run(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"method": "reward_model", "reward": {"min_accuracy": 0.9}, "learning_rate": 1e-9, "steps": 1}
    pairs = [row(k) for k in range(8)]
    contradictory = [*pairs, *({**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs)]
    make_job(tmp_path / "run", tiny_base, contradictory, **recipe)
    assert main(["run", str(tmp_path / "run" / "job.json")]) == 3
    assert "has collapsed" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


def test_a_reward_model_whose_head_is_lost_on_the_way_fails_the_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(load_model(tiny_base), tmp_path, [row(k) for k in range(4)], method="reward_model")
    scorer = load_scorer(task, is_rounded=False)
    without_head = {name: weight for name, weight in scorer.state_dict().items() if name != "score.weight"}
    monkeypatch.setattr(scorer, "save_pretrained", partial(scorer.save_pretrained, state_dict=without_head))
    with pytest.raises(ProgramFailed, match="scores"):
        export(scorer, task, tmp_path / "model")


def write_spec(path: Path, **fields: Any) -> Path:
    """A spec for people, of plain keys and one level of tables."""
    plain = {key: value for key, value in fields.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines))
    return path


def test_people_run_a_spec_on_a_frozen_dataset_and_the_result_is_registered(
    sessions: sessionmaker[Session],
    store_url: str,
    tiny_base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with sessions.begin() as session:
        for turn in range(8):
            add_edit(session, turn, f"Corrected {turn}: open the Orders page.")
        assert len(candidates_of(session, "demonstrations", None)) == 8
        policy = FreezePolicy(max_user_share=1.0)
        dataset = freeze_feedback(session, kind="demonstrations", watermark=None, policy=policy)
        set_alias(session, "stable", import_model(session, tiny_base), expected_generation=None)
    settings = Settings(database_url=store_url, var_dir=tmp_path / "var")
    spec = load_spec(write_spec(tmp_path / "sft.toml", method="sft", **QUICK), {"dataset": dataset, "steps": 2})
    described = describe(settings, spec)
    assert described["rows"]["train"] > 0
    assert described["judging"] == {"num_pairs": 0, "needed": 60}
    assert "will be trained and then held back" in caplog.text
    assert "max_user_share = 0.02 needs at least 50 people" in caplog.text
    assert not (Path(described["directory"]) / "model").exists(), "a dry run trains nothing"
    done = run_spec(settings, spec)
    assert done["run_id"] == described["run_id"]
    with sessions() as session:
        run, model = get_run(session, done["run_id"]), get_model(session, done["model_version"])
        assert (run.status, run.method, run.spec["steps"]) == ("done", "sft", 2)
        assert (model.run_id, model.status) == (run.run_id, "inconclusive"), "nobody's pairs could judge it"
    assert done["verdict"]["status"] == "inconclusive"
    assert {"held_out_preference", "win_rate"} <= {g["gate"] for g in done["verdict"]["gates"] if g["reason"]}
    caplog.clear()
    of_files = spec.model_copy(update={"dataset": f"{done['directory']}/data"})
    assert describe(settings, of_files)["judging"] is None
    assert not caplog.text, "no gate judges what rows of a directory make"
    monkeypatch.setenv("HONE_DATABASE_URL", store_url)
    for wrong in ("dataset=nope", "base=nope"):
        words = ["run", str(tmp_path / "sft.toml"), "--set", f"dataset={dataset}", "--set", wrong]
        assert main(words) == 2, "a name that the database does not know is wrong input"


def test_rows_and_base_in_directories_need_no_database(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_VAR_DIR", str(tmp_path / "var"))
    job = make_job(tmp_path / "rows", tiny_base, [row(k) for k in range(8)])
    spec = write_spec(
        tmp_path / "sft.toml", method="sft", base=str(tiny_base), dataset=str(job.directory / "data"), **QUICK
    )
    assert main(["run", str(spec), "--set", "steps=1", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"train": 8, "dev": 0, "test": 0}
    assert main(["run", str(spec), "--set", "stepz=1"]) == 2
    assert "stepz" in capsys.readouterr().err
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    assert main(["run", str(spec), "--set", "base=m-1", "--dry-run"]) == 3
    assert "hone: the database does not answer" in capsys.readouterr().err
