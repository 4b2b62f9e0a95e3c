"""The demo's chart: what is written keeps clear of what is drawn."""

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from examples.demo.report import draw_tests

STEEP = [(0, 0.0, 0.0), (1, 3.0, 2.5), (2, 3.5, 2.6)]
FLAT = [(k, 1.25, 1.25) for k in range(200)]
FALLING = [(k, -k / 50, -k / 50) for k in range(200)]


@pytest.fixture
def axis() -> Iterator[Any]:
    mpl.use("Agg")
    figure, axis = plt.subplots(figsize=(6, 4.6), layout="constrained")
    yield axis
    plt.close(figure)


@pytest.mark.parametrize("points", [STEEP, FLAT, FALLING], ids=["steep", "along the line", "falling"])
def test_no_curve_runs_through_a_label_and_every_point_is_seen(
    axis: Any, points: list[tuple[int, float, float]]
) -> None:
    draw_tests(axis, {"e_process": {"promoted": points, "harmful": FLAT}})
    axis.figure.draw_without_rendering()
    (label,) = axis.texts
    assert label.get_text() == "decides at 20\n(α = 0.05)"
    inside = axis.get_window_extent()
    for written in (label, axis.get_legend(), axis.title):
        assert not inside.overlaps(written.get_window_extent())
        assert written.get_window_extent().x1 <= axis.figure.bbox.x1, "nor does it leave the picture"
    low, high = axis.get_ylim()
    assert all(low < 10**evidence < high for _, evidence, _ in (*points, *FLAT))
