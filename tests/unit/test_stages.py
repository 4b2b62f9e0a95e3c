"""Which keys of a request belong to which stage."""

from typing import Any
from uuid import UUID

import pytest

from hone.errors import ConfigError
from hone.store.tables import RetrainRequestRow
from training.__main__ import main
from training.stages import keys_of_stage, split_stages, stages_of


def request(method: str, **spec: Any) -> RetrainRequestRow:
    return RetrainRequestRow(request_id=UUID(int=1), method=method, dataset_id="pairs", spec=spec)


def test_plain_keys_are_the_last_stages_and_a_table_is_an_earlier_ones() -> None:
    asked = request("sft+dpo", beta=0.2, stages={"sft": {"epochs": 2, "dataset": "demonstrations"}})
    assert stages_of(asked) == ("sft", "dpo")
    assert keys_of_stage(asked, "sft") == {"epochs": 2, "dataset": "demonstrations"}
    assert keys_of_stage(asked, "dpo") == {"beta": 0.2, "dataset": "pairs"}


def test_both_stages_read_an_imported_dataset() -> None:
    assert keys_of_stage(request("sft+dpo"), "sft") == {"dataset": "pairs"}


def test_one_method_is_one_stage_and_an_unknown_one_is_refused() -> None:
    assert stages_of(request("kto")) == ("kto",)
    with pytest.raises(ConfigError, match=r"asks for method 'sft\+dpq'"):
        stages_of(request("sft+dpq"))


@pytest.mark.parametrize("wrong", [{"sft": 1}, {"stf": {"epochs": 1}}], ids=["no table", "no method"])
def test_stages_that_are_no_tables_of_methods_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"write stages\.METHOD\.KEY"):
        split_stages({"stages": wrong})


def test_keys_of_an_earlier_stage_are_checked_before_anything_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "dpo", "--set", "beta=0.2", "--set", "stages.sft.epochs=1"]) == 0
    assert main(["check", "dpo", "--set", "stages.sft.epoch=1"]) == 2
    assert "did you mean epochs?" in capsys.readouterr().err
