"""Which method the labels ask for."""

from typing import Any

import pytest

from hone.errors import NotEnoughData
from hone.plan.facts import Labels
from hone.plan.tables import load_tables
from training.choose import choose
from training.spec import RunSpec


@pytest.mark.parametrize(
    ("labels", "method", "overrides"),
    [
        pytest.param({"pairs": 4000}, "dpo", {}, id="pairs"),
        pytest.param({"pairs": 4000, "edits": 3000}, "sft+dpo", {}, id="edits: imitated, then preferred"),
        pytest.param({"pairs": 20, "thumbs_up": 800, "thumbs_down": 300}, "kto", {}, id="lone thumbs"),
        pytest.param({"demonstrations": 700}, "sft", {}, id="corrected answers alone"),
        pytest.param({"pairs": 90_000}, "dpo", {}, id="many pairs: PPO is a recipe's work"),
        pytest.param(
            {"pairs": 4000, "noise": 0.18},
            "dpo",
            {"preference": {"loss": "robust", "label_smoothing": 0.18}},
            id="measured noise",
        ),
    ],
)
def test_the_labels_choose_the_method(labels: dict[str, Any], method: str, overrides: dict[str, Any]) -> None:
    chosen, found, why = choose(Labels(**labels), load_tables())
    assert (chosen, found) == (method, overrides)
    assert why
    RunSpec.model_validate({"method": chosen.rpartition("+")[2], **found})


def test_without_labels_nothing_is_chosen() -> None:
    with pytest.raises(NotEnoughData, match="name the method"):
        choose(Labels(), load_tables())
