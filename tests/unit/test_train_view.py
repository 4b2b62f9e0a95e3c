"""What people are shown of a run before and after it."""

from typing import Any

import pytest

from training.spec import RunSpec
from training.start import labels_of_run
from training.view import show_plan, show_result


def plan(**fields: Any) -> dict[str, Any]:
    spec = RunSpec.model_validate({"method": "dpo", "dataset": "d-1", **fields.pop("spec", {})})
    rows = fields.pop("train", [{"chosen": "a"}] * 5000)
    values = {
        "run_id": "r-1",
        "directory": "/var/runs/r-1",
        "base_version": "m-1",
        "rows": {"train": len(rows), "dev": 10, "test": 20},
        "labels": labels_of_run(spec, rows, len(rows) - 7),
        "dropped": {"too_long": 7, "end_tokens": 0},
        "steps": 624,
        "estimate": {"seconds": 1200.0, "memory_bytes": 3.4e9, "device": "cpu"},
        "replay": {"fresh": 10, "older": {"num": 1000}, "general": {"num": 0}},
        "judging": {"num_pairs": 80, "needed": 60},
        "spec": spec.model_dump(mode="json"),
    }
    return values | fields


def test_a_plan_says_what_is_trained_on_what_how_long_and_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan(train=[{"chosen": "a", "source": "edit" if k < 700 else "choice"} for k in range(5000)]))
    shown = capsys.readouterr().out
    for text in (
        "dpo from m-1 on d-1",
        "5,000 pairs (4,300 choice, 700 edit); advised at least 3,000",
        "5,000 train, 10 dev, 20 test; dropped: 7 too long",
        "1,000 older rows",
        "lora of rank 16 on all-linear, fp32, engine native",
        "624 of 8 rows, learning rate 0.0005",
        "about 20 min on cpu",
        "at most 3.4 GB",
        "/var/runs/r-1",
        "80 held-out pairs of people, gates need 60\n",
        "dry run: nothing was trained",
    ):
        assert text in shown
    assert "expect little" not in shown


def test_too_few_labels_and_what_cannot_be_counted_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    replay = {"older": {"num": 0, "why": "no earlier snapshot"}, "general": {"num": 0, "why": "no import"}}
    few = {"num_pairs": 12, "needed": 60}
    show_plan(plan(train=[{"chosen": "a"}] * 100, estimate=None, replay=replay, judging=few))
    shown = capsys.readouterr().out
    assert "! 93 usable rows are below the advised minimum of 3,000: expect little" in shown
    assert "not known" in shown
    assert "nothing: no earlier snapshot; no import" in shown
    assert "12 held-out pairs of people, gates need 60: too few, it will be held back" in shown


def test_rows_of_a_directory_are_judged_by_no_gate(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan(judging=None))
    assert "no gate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("num_good", "num_bad", "is_below"),
    [pytest.param(1000, 100, False, id="enough"), pytest.param(1200, 49, True, id="too few of a class")],
)
def test_kto_needs_some_of_either_class(
    capsys: pytest.CaptureFixture[str], num_good: int, num_bad: int, is_below: bool
) -> None:
    thumbs = [{"completion": "a", "label": k < num_good} for k in range(num_good + num_bad)]
    found = plan(spec={"method": "kto"}, train=thumbs)
    assert found["labels"]["below_minimum"] is is_below
    show_plan(found)
    shown = capsys.readouterr().out
    assert f"{num_good:,} thumbs up, {num_bad:,} thumbs down" in shown
    assert ("fewer than 50 rows of a class" in shown) is is_below


def test_what_a_launcher_would_start_is_shown_with_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan(command=["sbatch", "/r/job.sh"], files={"/r/job.sh": "#!/bin/sh\ntrain\n"}))
    shown = capsys.readouterr().out
    assert "sbatch /r/job.sh" in shown
    assert "/r/job.sh\n#!/bin/sh\ntrain\n" in shown


def result(**fields: Any) -> dict[str, Any]:
    steps = {"first_step": {"loss": 1.0, "length": 3.0}, "last_step": {"loss": 0.5, "length": 4.0}}
    training = {"num_steps": 60, "num_rows": 1200, "fired": {"margin": 40}, **steps}
    found = {"run_id": "r-1", "model_version": "m-2", "directory": "/r", "training": training, "verdict": None}
    return found | fields


def test_a_result_says_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(result())
    shown = capsys.readouterr().out
    assert "not registered" in shown
    assert "dev rows" not in shown
    for text in ("run r-1 is done", "60 on 1,200 rows", "1.000 to 0.500", "margin at step 40", "m-2", "/r"):
        assert text in shown
    assert "gates" not in shown, "nobody judged it"


def test_a_result_says_that_its_gates_let_it_pass_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    gates = [{"gate": "win_rate", "verdict": "pass", "reason": "0.7"}]
    show_result(result(verdict={"status": "passed", "gates": gates}))
    shown = capsys.readouterr().out
    assert "m-2 passed every gate" in shown
    assert "hone rollout start m-2" in shown
    assert "win rate" not in shown


@pytest.mark.parametrize(
    ("status", "words"),
    [("rejected", "is rejected by its gates"), ("inconclusive", "had too little to be judged by")],
)
def test_a_result_says_that_its_gates_hold_it_back_and_what_can_be_done(
    capsys: pytest.CaptureFixture[str], status: str, words: str
) -> None:
    gates = [{"gate": f"gate_{k}", "verdict": "inconclusive", "reason": f"because {k}"} for k in range(5)]
    show_result(result(verdict={"status": status, "gates": [{**gates[0], "verdict": "pass"}, *gates[1:]]}))
    shown = capsys.readouterr().out
    assert f"m-2 {words}: it gets no traffic" in shown
    assert "gate 1 inconclusive: because 1" in shown
    assert "because 0" not in shown, "it passed that one"
    assert "because 4" not in shown
    assert "and 1 more: hone models show m-2" in shown
    assert "hone models override m-2" in shown
    assert "rollout start" not in shown


def test_a_reward_model_says_what_it_is_for_and_which_checkpoint_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    trained = {**result()["training"], "best_step": 40}
    show_result(result(model_version=None, training=trained))
    shown = capsys.readouterr().out
    assert "the checkpoint of step 40" in shown
    assert "hone train ppo --set 'rewards.models={\"/r\"=1.0}'" in shown
    assert "registered" not in shown
