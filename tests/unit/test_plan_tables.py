"""Every leaf of the planner's tables is reached by a case of its own, and a broken table is refused."""

from pathlib import Path
from typing import Any

import pytest

from hone.errors import ConfigError
from hone.plan.tables import Rule, first, load_tables

ROOT = Path(__file__).parents[2]
TABLES = load_tables()
LEAVES = [(table, rule.id) for table, rule in TABLES.leaves()]
PLAIN = {
    "pairs": 0,
    "edit_share": 0.0,
    "thumb_share": 0.0,
    "demonstrations": 0,
    "noise": 0.0,
    "goal": "style",
    "gpus": 1,
    "gpu_gb": 80,
    "params_b": 8.0,
    "stage": "dpo",
    "adapter": "lora",
}
CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("road", "edits"): {"pairs": 60_000, "edit_share": 0.5},
    ("road", "verifiable"): {"pairs": 100, "goal": "verifiable"},
    ("road", "structure"): {"demonstrations": 1, "pairs": 9_000, "goal": "structure"},
    ("road", "thumbs"): {"pairs": 2_999, "thumb_share": 0.5},
    ("road", "many_pairs_few_gpus"): {"pairs": 50_000, "gpus": 7},
    ("road", "many_pairs_and_demonstrations"): {"pairs": 50_000, "demonstrations": 1_000, "gpus": 8},
    ("road", "many_pairs"): {"pairs": 50_000, "demonstrations": 999, "gpus": 8},
    ("road", "pairs"): {"pairs": 49_999, "gpus": 8},
    ("road", "demonstrations"): {"demonstrations": 1},
    ("adapter", "structure"): {"goal": "structure", "stage": "sft", "gpus": 1, "gpu_gb": 24},
    ("adapter", "cluster"): {"gpus": 8},
    ("adapter", "large_gpus_domain"): {"gpus": 4, "goal": "domain"},
    ("adapter", "large_gpus"): {"gpus": 4},
    ("adapter", "small_gpu_large_model"): {"gpu_gb": 24, "params_b": 14.0},
    ("adapter", "small_gpu"): {"gpu_gb": 24},
    ("adapter", "cpu"): {"gpus": 0, "gpu_gb": 0},
    ("targets", "full"): {"adapter": "full", "goal": "domain"},
    ("targets", "domain"): {"goal": "domain"},
    ("targets", "default"): {},
    ("loss", "other"): {"stage": "kto", "noise": 0.2},
    ("loss", "noisy"): {"noise": 0.05},
    ("loss", "clean"): {"noise": 0.04},
    ("recipe", "tiny"): {"params_b": 0.0006},
    ("recipe", "sft_full"): {"stage": "sft", "adapter": "full"},
    ("recipe", "sft"): {"stage": "sft"},
    ("recipe", "reward_model"): {"stage": "reward_model", "adapter": "full"},
    ("recipe", "rl"): {"stage": "rloo"},
    ("recipe", "preference_full"): {"adapter": "full"},
    ("recipe", "kto"): {"stage": "kto"},
    ("recipe", "preference"): {},
    ("sharding", "single"): {},
    ("sharding", "replicas"): {"gpus": 2},
}
CANDIDATES = {
    "optimiser": {"gpus": 2, "adapter": "full"},
    "everything": {"gpus": 64},
    "many_nodes": {"gpus": 65},
    "tensor_parallel": {"gpus": 8, "params_b": 70.0},
}
"""Rules of the sharding table that follow another one: all that hold are tried in order."""


@pytest.mark.parametrize("leaf", LEAVES, ids="/".join)
def test_each_leaf_is_reached(leaf: tuple[str, str]) -> None:
    table, name = leaf
    if leaf in CASES:
        found = first(getattr(TABLES, table), {**PLAIN, **CASES[leaf]})
        assert found is not None
        assert found.id == name
    else:
        assert table == "sharding"
        holding = [rule.id for rule in TABLES.sharding if rule.holds({**PLAIN, **CANDIDATES[name]})]
        assert name in holding


def test_what_nobody_labelled_has_no_road() -> None:
    assert first(TABLES.road, PLAIN) is None


def test_the_advised_minimum_is_the_one_promised() -> None:
    minimum = TABLES.minimum
    assert (minimum.sft, minimum.sft_adapter, minimum.dpo, minimum.rlhf) == (1000, 500, 3000, 5000)


def test_the_table_in_configs_is_the_one_that_the_wheel_ships() -> None:
    assert (ROOT / "configs" / "planner.toml").resolve() == ROOT / "hone" / "plan" / "planner.toml"
    assert load_tables(ROOT / "configs" / "planner.toml") == TABLES


@pytest.mark.parametrize(
    ("when", "message"),
    [({"pears_min": 3}, "unknown fact"), ({"goal_min": 3}, "not a number"), ({"pairs_below": "x"}, "not a number")],
)
def test_a_rule_that_makes_no_sense_is_refused(when: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rule(id="r", when=when, then={}, why="").holds(PLAIN)


def test_a_table_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "planner.toml").read_text().replace("max_noise", "max_nose", 1)
    (tmp_path / "planner.toml").write_text(text)
    with pytest.raises(ConfigError, match="max_nose"):
        load_tables(tmp_path / "planner.toml")
