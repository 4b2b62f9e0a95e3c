"""Merging, writing and reading a model again adds rounding only; twenty rounds are in benchmarks.merging."""

import torch

from benchmarks.merging import drift


def test_merges_in_fp32_lose_nothing_and_in_bf16_little_of_what_was_learnt() -> None:
    exact = drift(torch.float32, looks=(2,))["2"]
    assert exact["kl_over_learnt"] < 1e-9
    rounded = drift(torch.bfloat16, looks=(2,))["2"]
    assert 1e-4 < rounded["kl_over_learnt"] < 0.1
