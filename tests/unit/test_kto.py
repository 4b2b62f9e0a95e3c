"""KTO's class weights."""

import pytest

from hone.errors import ConfigError, NotEnoughData
from training.completions import labels_of
from training.kto import class_weights
from training.method_tables import Kto


@pytest.mark.parametrize(
    ("num_good", "num_bad", "expected"),
    [
        pytest.param(60, 60, (1.0, 1.0), id="as many of both"),
        pytest.param(60, 120, (2.0, 1.0), id="good ones are rarer"),
        pytest.param(150, 60, (1.0, 2.5), id="bad ones are rarer"),
    ],
)
def test_the_rarer_class_weighs_more_so_that_both_weigh_the_same(
    num_good: int, num_bad: int, expected: tuple[float, float]
) -> None:
    assert class_weights([True] * num_good + [False] * num_bad, Kto()) == pytest.approx(expected)


def test_one_given_weight_decides_the_other() -> None:
    assert class_weights([True] * 60 + [False] * 90, Kto(desirable_weight=3.0)) == pytest.approx((3.0, 2.0))


def test_weights_inside_the_advised_band_are_taken_and_outside_they_are_refused() -> None:
    labels = [True] * 60 + [False] * 60
    assert class_weights(labels, Kto(desirable_weight=1.3, undesirable_weight=1.0)) == (1.3, 1.0)
    with pytest.raises(ConfigError, match=r"2\.00 to 1, advised is 1\.00 to 1\.33"):
        class_weights(labels, Kto(desirable_weight=2.0, undesirable_weight=1.0))


def test_too_few_of_a_class_is_refused() -> None:
    with pytest.raises(NotEnoughData, match="60 good and 49 bad"):
        class_weights([True] * 60 + [False] * 49, Kto())


def test_a_general_demonstration_counts_as_a_good_answer() -> None:
    rows = [{"prompt": [], "completion": "a"}, {"prompt": [], "completion": "b", "label": False}]
    assert [row["label"] for row in labels_of(rows)] == [True, False]
