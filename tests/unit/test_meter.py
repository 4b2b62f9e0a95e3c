"""Rates of a run that goes on: tokens, waiting, MFU by hand-made numbers."""

from types import SimpleNamespace
from typing import Any

import pytest

from hone.plan.tables import load_tables
from training.meter import WINDOW_S, Meter, memory, meter_for, operations_of, peak_of, tflops_named
from training.spec import RunSpec


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def model_like(**shape: int) -> Any:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(to_dict=lambda: shape))
    return SimpleNamespace(config=config)


SHAPE = {
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 10,
}
LINEAR = 2 * (4 * 4 * 4 + 3 * 4 * 8)
"""Two layers of four attention maps 4 x 4 and three of the MLP 4 x 8."""


def test_tokens_a_second_and_the_share_of_waiting_are_of_the_window() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    clock.now = 5.0
    meter.start()
    with meter.waiting():
        clock.now += 1.0
    clock.now += 3.0
    assert meter.step(800)["tokens_per_s"] == 200
    clock.now += 4.0
    found = meter.step(1600)
    assert (found["tokens_per_s"], found["wait_share"]) == (300, 1 / 8)
    for _ in range(40):
        clock.now += 2.0
        found = meter.step(20)
    assert (found["tokens_per_s"], found["wait_share"]) == (10, 0), f"after {WINDOW_S} s the beginning is forgotten"
    assert "mfu" not in found, "of an unknown peak there is none"


@pytest.mark.parametrize(
    ("fields", "passes"), [({"adapter": "full"}, 3), ({}, 2), ({"method": "ppo", "ppo": {"epochs": 4}}, 8)]
)
def test_a_token_costs_its_forward_pass_and_what_learns_of_it(fields: dict[str, Any], passes: int) -> None:
    operations = operations_of(RunSpec.model_validate(fields), model_like(**SHAPE))
    assert operations
    forward = 2 * (LINEAR + 10 * 4) + 2 * 2 * 4 * 100
    assert operations(100) == passes * forward
    assert operations_of(RunSpec(), model_like(hidden_size=4)) is None


def test_mfu_is_operations_over_time_and_peak() -> None:
    spec = RunSpec.model_validate({"batch_size": 8, "launch": {"peak_tflops": 1e-6}})
    meter = meter_for(spec, model_like(**SHAPE))
    clock = Clock()
    meter._clock = clock
    meter.start()
    clock.now = 2.0
    found = meter.step(1600)
    operations = operations_of(spec, model_like(**SHAPE))
    assert operations
    assert found["mfu"] == pytest.approx(800 * operations(100) / 1e6), "16 sequences of 100 tokens"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
    ],
)
def test_a_gpus_peak_is_found_by_its_name_and_never_guessed(name: str, key: str | None) -> None:
    assert tflops_named(name) == (load_tables().hardware[key].tflops if key else None)


def test_a_cpu_has_no_peak_unless_it_is_configured_and_memory_is_this_processs() -> None:
    assert peak_of(RunSpec()) is None
    assert 1e7 < memory()["memory_bytes"] < 1e12
