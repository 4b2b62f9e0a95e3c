"""When a run is going wrong although its loss falls."""

from training.spec import StopRules
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
