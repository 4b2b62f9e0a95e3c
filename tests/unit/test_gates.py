"""Verdicts: what passes, what fails, and that silence is never a pass."""

from typing import Any

import pytest

from hone.errors import ConfigError
from hone.gates import Thresholds, judge, load_thresholds, overall
from hone.records import GateResult, Verdict

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
GOOD: dict[str, dict[str, float]] = {
    "held_out_preference": {"num_pairs": 90, "accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8},
    "win_rate": {
        "num_answers": 600,
        "num_prompts": 200,
        "win_rate": 0.6,
        "win_rate_low": 0.55,
        "win_rate_high": 0.65,
        "judge_accuracy_low": 0.7,
    },
    "forgetting": {"num_checks": 150, "challenger": 0.78, "champion": 0.8, "change_low": -0.06, "change_high": 0.02},
    "degenerate": {
        "num_answers": 600,
        "end_rate": 0.99,
        "champion_end_rate": 0.995,
        "length": 100,
        "champion_length": 120,
        "distinct_2": 0.97,
        "champion_distinct_2": 0.98,
        "repeat_share": 0.02,
        "champion_repeat_share": 0.02,
        "repeat_excess_low": -0.01,
        "equal_length_win_rate_low": 0.4,
    },
    "stop_rules": {"num_steps": 60},
}


def verdict(gate: str, **changes: float) -> GateResult:
    measured = {**GOOD, gate: GOOD[gate] | changes}
    return next(result for result in judge(measured, Thresholds()) if result.gate == gate)


def test_a_good_challenger_passes_every_gate() -> None:
    results = judge(GOOD, Thresholds())
    assert [(result.gate, result.verdict) for result in results] == [(gate, PASS) for gate in GOOD]
    assert overall(results) is PASS


@pytest.mark.parametrize(
    ("gate", "changes", "expected", "words"),
    [
        pytest.param("held_out_preference", {"num_pairs": 59}, INCONCLUSIVE, "59 test pairs, needs 60", id="few pairs"),
        pytest.param("held_out_preference", {"accuracy_low": 0.5}, INCONCLUSIVE, "more than 0.5", id="on the bound"),
        pytest.param(
            "held_out_preference", {"accuracy_low": 0.3, "accuracy_high": 0.49}, FAIL, "0.490]", id="against people"
        ),
        pytest.param("win_rate", {"num_answers": 499}, INCONCLUSIVE, "499", id="few answers"),
        pytest.param("win_rate", {"num_prompts": 159}, INCONCLUSIVE, "159", id="few prompts"),
        pytest.param("win_rate", {"win_rate_low": 0.49}, INCONCLUSIVE, "0.490", id="perhaps no better"),
        pytest.param("win_rate", {"win_rate_low": 0.3, "win_rate_high": 0.4}, FAIL, "0.400", id="worse"),
        pytest.param("win_rate", {"judge_accuracy_low": 0.49}, INCONCLUSIVE, "judge itself", id="a judge that guesses"),
        pytest.param("forgetting", {"num_checks": 0}, INCONCLUSIVE, "0 checks", id="nothing checked"),
        pytest.param("forgetting", {"change_low": -0.11}, INCONCLUSIVE, "-0.110", id="perhaps forgotten"),
        pytest.param(
            "forgetting", {"challenger": 0.5, "change_low": -0.4, "change_high": -0.2}, FAIL, "0.500", id="forgotten"
        ),
        pytest.param("degenerate", {"num_answers": 10}, INCONCLUSIVE, "10 answers", id="few answers to look at"),
        pytest.param("degenerate", {"end_rate": 0.96}, FAIL, "end by themselves", id="answers that do not end"),
        pytest.param("degenerate", {"distinct_2": 0.8}, FAIL, "distinct word pairs", id="loops"),
        pytest.param("degenerate", {"repeat_excess_low": 0.02}, FAIL, "one answer", id="one answer for all"),
        pytest.param("degenerate", {"length": 140}, FAIL, "17% longer", id="longer without being better"),
        pytest.param(
            "degenerate", {"length": 140, "equal_length_win_rate_low": 0.52}, PASS, "140", id="longer and better"
        ),
        pytest.param(
            "degenerate",
            {"length": 500, "equal_length_win_rate_low": float("nan")},
            FAIL,
            "longer",
            id="so long that no lengths are equal",
        ),
        pytest.param("degenerate", {"length": 40}, FAIL, "67% shorter", id="hardly an answer"),
        pytest.param("stop_rules", {"fired_at_chosen_drop": 34}, FAIL, "chosen_drop at step 34", id="a rule fired"),
    ],
)
def test_each_bound_is_judged_with_its_value_in_the_reason(
    gate: str, changes: dict[str, float], expected: Verdict, words: str
) -> None:
    result = verdict(gate, **changes)
    assert result.verdict is expected, result.reason
    assert words in result.reason
    expected_numbers = {name: value for name, value in (GOOD[gate] | changes).items() if value == value}
    assert result.measurements == expected_numbers


@pytest.mark.parametrize("gate", GOOD)
def test_missing_numbers_are_never_a_pass(gate: str) -> None:
    for measured in ({**GOOD, gate: {}}, {key: value for key, value in GOOD.items() if key != gate}):
        results = judge(measured, Thresholds())
        assert overall(results) is INCONCLUSIVE
        assert "was not measured" in next(result.reason for result in results if result.gate == gate)


@pytest.mark.parametrize("gate", GOOD)
def test_a_number_that_is_none_is_never_a_pass(gate: str) -> None:
    for name in GOOD[gate]:
        result = verdict(gate, **{name: float("nan")})
        is_needed = name != "equal_length_win_rate_low"  # only asked for where the answers grow
        assert (result.verdict is INCONCLUSIVE) is is_needed, (name, result.reason)
        assert name not in result.measurements


def test_a_weak_champion_does_not_forbid_a_better_challenger() -> None:
    assert verdict("degenerate", champion_end_rate=0.90, end_rate=0.93).verdict is PASS


def test_the_worst_verdict_is_the_overall_one() -> None:
    def of(*verdicts: Verdict) -> Verdict:
        return overall(GateResult(gate=str(k), verdict=v, reason="") for k, v in enumerate(verdicts))

    assert of(PASS, FAIL, INCONCLUSIVE) is FAIL
    assert of(PASS, INCONCLUSIVE) is INCONCLUSIVE
    assert of() is INCONCLUSIVE


def test_thresholds_come_from_the_spec_and_wrong_ones_are_named() -> None:
    assert load_thresholds({"min_test_pairs": 10}).min_test_pairs == 10
    bad: list[dict[str, Any]] = [{"min_pairs": 10}, {"min_win_rate": "high"}]
    for values in bad:
        with pytest.raises(ConfigError, match=f"gates.{next(iter(values))}"):
            load_thresholds(values)
