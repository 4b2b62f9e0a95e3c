"""When a run is going wrong although its loss falls."""

import pytest

from training.method_tables import StopRules
from training.stop_rules import fired

RULES = StopRules(window=3, max_chosen_drop=0.5, max_margin=5)


def step(chosen: float = -10.0, margin: float = 1.0) -> dict[str, float]:
    return {"chosen_logps": chosen, "reference_chosen_logps": -10.0, "margin": margin}


def test_a_steady_run_fires_nothing() -> None:
    assert fired([step(-9), step(-11), step(-12)] * 5, RULES) == {}


def test_likelihood_displacement_is_dated_by_its_first_window() -> None:
    assert fired([step(-10)] * 4 + [step(-30)] * 5, RULES) == {"chosen_drop": 5}


def test_a_single_bad_batch_within_a_window_is_forgiven() -> None:
    assert fired([step(-10), step(-24), step(-10), step(-10)], RULES) == {}


def test_a_runaway_margin_is_noticed() -> None:
    assert fired([step(margin=4)] * 3 + [step(margin=9)] * 3, RULES) == {"margin": 4}


def test_fewer_steps_than_a_window_say_nothing() -> None:
    assert fired([step(-99, 99)] * 2, RULES) == {}


GOOD = {"kl": 2.0, "end_rate": 1.0, "distinct_share": 0.9, "reward": 1.0, "held_out": 0.7}


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        pytest.param("kl", {"kl": 30.0}, id="the policy is far from its reference"),
        pytest.param("end_rate", {"end_rate": 0.7}, id="answers no longer end"),
        pytest.param("diversity", {"distinct_share": 0.1}, id="one answer for all"),
        pytest.param("reward_hacking", {"reward": 2.0, "held_out": 0.5}, id="reward up, held-out signal down"),
    ],
)
def test_a_policy_that_goes_wrong_is_noticed(rule: str, bad: dict[str, float]) -> None:
    assert fired([GOOD] * 3 + [{**GOOD, **bad}] * 3, RULES)[rule] <= 6
    assert fired([GOOD] * 6, RULES) == {}


def test_a_held_out_signal_that_falls_with_the_reward_is_no_hacking() -> None:
    assert fired([GOOD] * 3 + [{**GOOD, "reward": 0.5, "held_out": 0.5}] * 3, RULES) == {}


def test_a_rule_without_its_figures_does_not_look() -> None:
    assert fired([{"loss": 1.0}] * 9, RULES) == {}
