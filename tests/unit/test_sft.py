"""What SFT learns from: answer tokens, the end token last, and in packed rows nobody else's conversation."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

from hone.errors import ConfigError, ProgramFailed
from tests.support.training import make_task, row
from training.completions import answers_of, encode_answers, labels_of, thin
from training.fit import Task
from training.policy import load_model
from training.result import TrainResult
from training.sft import NOT_TRAINED, dataset_of, make_trainer
from training.trl_engine import Recorder, arguments


def task(base: Path, directory: Path, **fields: Any) -> Task:
    return make_task(load_model(base), directory, [row(k) for k in range(6)], method="sft", **fields)


def test_the_loss_counts_the_answer_with_its_end_token_and_nothing_else(tiny_base: Path, tmp_path: Path) -> None:
    one = task(tiny_base, tmp_path)
    answers, _ = encode_answers(answers_of(one.rows), one.tokenizer, 200)
    for example, answer in zip(dataset_of(answers), answers, strict=True):
        trained = [label for label in example["labels"] if label != NOT_TRAINED]
        assert tuple(trained) == answer.answer
        assert trained[-1] == one.tokenizer.eos_token_id
        assert one.tokenizer.decode(trained, skip_special_tokens=True) == answer.row["completion"]


def test_packed_conversations_do_not_see_each_other(tiny_base: Path, tmp_path: Path) -> None:
    losses = {}
    for name, packing in (("apart", False), ("packed", True)):
        one = task(tiny_base, tmp_path / name, sft={"packing": packing}, max_length=128, batch_size=6)
        trainer, dropped = make_trainer(one)
        assert not any(dropped.values())
        rows = list(trainer.train_dataset)
        assert (len(rows) < 6) == packing, "several conversations in a row"
        with torch.no_grad():
            losses[name] = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    assert losses["packed"] == pytest.approx(losses["apart"], abs=1e-5)


def test_a_pair_teaches_sft_its_chosen_answer_and_kto_both() -> None:
    assert [found["completion"] for found in answers_of([row(0)])] == [row(0)["chosen"]]
    assert [(found["completion"], found["label"]) for found in labels_of([row(0)])] == [
        (row(0)["chosen"], True),
        (row(0)["rejected"], False),
    ]
    label = {"prompt": row(0)["prompt"], "completion": "x", "label": False}
    assert labels_of([label]) == [label]


def test_rows_are_kept_in_proportion_to_their_weight() -> None:
    rows = [row(k, weight=0.8 if k % 2 else 0.2) for k in range(2000)]
    kept = thin(rows, 0)
    heavy = sum(found["weight"] == 0.8 for found in kept)
    assert heavy == 1000, "the heaviest all stay"
    assert 200 < len(kept) - heavy < 300
    assert thin(rows, 0) == kept
    assert thin(rows, 1) != kept


def test_what_trl_sets_wrongly_for_a_cpu_is_set(tiny_base: Path, tmp_path: Path) -> None:
    found = arguments(task(tiny_base, tmp_path, micro_batch_size=2, batch_size=8))
    assert (found["bf16"], found["activation_checkpointing"], found["report_to"]) == (False, False, "none")
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (2, 4)


@pytest.mark.parametrize("is_on", [False, True])
def test_no_name_is_used_that_transformers_gives_up(tiny_base: Path, tmp_path: Path, is_on: bool) -> None:
    given = arguments(task(tiny_base, tmp_path, gradient_checkpointing=is_on))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = SFTConfig(**given)
    assert (config.activation_checkpointing, config.gradient_checkpointing) == (is_on, is_on)


class State:
    """What a trainer tells its callbacks."""

    global_step, max_steps, metric_for_best_model = 1, 5, None


@pytest.mark.parametrize(
    ("logs", "error", "words"),
    [
        pytest.param({"loss": math.nan, "mean_token_accuracy": 0.0}, ProgramFailed, "lower learning_rate", id="loss"),
        pytest.param(
            {"loss": 1.0, "grad_norm": math.inf, "mean_token_accuracy": 0.0}, ProgramFailed, "lower", id="gradient"
        ),
        pytest.param({"loss": 0.1, "margin": 2.0}, ConfigError, "ln 2", id="a reference that is not the policy"),
    ],
)
def test_a_run_that_cannot_go_well_ends_at_once(
    tiny_base: Path, tmp_path: Path, logs: dict[str, float], error: type[Exception], words: str
) -> None:
    recorder = Recorder(TrainResult(None), task(tiny_base, tmp_path), dict)
    with pytest.raises(error, match=words):
        recorder.on_log(State(), State(), None, logs)
