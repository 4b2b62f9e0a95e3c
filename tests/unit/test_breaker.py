"""A service that fails is left alone for a while, and tried by one call at a time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.breaker import CLOSED, Breaker, Policy, abandoned, admit, failed, succeeded

POLICY = Policy(num_failures=3, open_s=10)


def after_failures(number: int, at: float = 0) -> Breaker:
    breaker = CLOSED
    for _ in range(number):
        breaker = failed(breaker, POLICY, at, was_trial=False)
    return breaker


def test_it_opens_after_enough_failures_in_a_row() -> None:
    assert admit(after_failures(2), 0) is not None
    assert admit(after_failures(3), 9.9) is None
    assert admit(failed(succeeded(after_failures(2)), POLICY, 0, was_trial=False), 0) is not None


def test_one_call_tries_it_and_closes_it_or_leaves_it_open_as_long_again() -> None:
    trial = admit(after_failures(3), 10)
    assert trial is not None
    assert trial.trying
    assert admit(trial, 10) is None, "one at a time"
    assert succeeded(trial) == CLOSED
    again = failed(trial, POLICY, 12, was_trial=True)
    assert admit(again, 21.9) is None
    assert admit(again, 22) is not None


def test_a_trial_that_nobody_waited_for_is_made_by_the_next_call() -> None:
    trial = admit(after_failures(3), 10)
    assert trial is not None
    assert admit(abandoned(trial, was_trial=True), 10) == trial


def test_calls_that_began_before_it_opened_do_not_put_off_the_trial() -> None:
    late = failed(after_failures(3), POLICY, 9, was_trial=False)
    assert admit(late, 10) is not None


def test_none_never_opens() -> None:
    breaker = CLOSED
    for now in range(100):
        breaker = failed(breaker, Policy(0, 10), now, was_trial=False)
        assert admit(breaker, now) is not None


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["ok", "bad", "left"])), max_size=60))
def test_a_service_that_is_down_costs_at_most_one_call_for_each_pause(steps: list[tuple[float, str]]) -> None:
    breaker, now, made = CLOSED, 0.0, list[float]()
    for pause, outcome in steps:
        now += pause
        admitted = admit(breaker, now)
        if admitted is None:
            assert breaker.try_at is not None
            continue
        if breaker.try_at is not None:
            made.append(now)
        if outcome == "ok":
            breaker, made = succeeded(admitted), []
        elif outcome == "bad":
            breaker = failed(admitted, POLICY, now, was_trial=admitted.trying)
        else:
            breaker = abandoned(admitted, was_trial=admitted.trying)
            made = made[:-1]
        assert all(later - earlier >= POLICY.open_s - 1e-6 for earlier, later in pairwise(made))


@pytest.mark.parametrize("number", [1, 2])
def test_a_success_forgets_the_failures_before_it(number: int) -> None:
    assert succeeded(after_failures(number)) == CLOSED
