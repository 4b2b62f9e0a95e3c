from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.records import Track
from hone.rollout import ArmCounts, Unit, parse_policy
from serving.tally import Queues, Tally, canary_users, describe, fold, pair, start_tally

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
POLICY = parse_policy(
    {
        "block_s": 60,
        "stages": [
            {"weight": 0.25, "min_users": 10, "stable_per_canary": 2},
            {"weight": 0.5, "min_users": 10},
        ],
    }
)


def unit(position: int, track: str, value: float | None, *, second: float = 0, stage: int = 0) -> Unit:
    return Unit(position, track, stage, value, START + timedelta(seconds=second))


def differences(*units: Unit) -> list[float]:
    return pair(Queues(), [(u, u.value) for u in units if u.value is not None], POLICY)[1]


def test_a_canary_user_is_compared_with_the_mean_of_k_stable_users_in_order() -> None:
    found = differences(
        unit(1, "stable", 1.0),
        unit(2, "canary", 1.0),
        unit(3, "stable", 0.0),
        unit(4, "canary", 0.0),
        unit(5, "stable", 1.0),
        unit(6, "stable", 1.0),
        unit(7, "canary", 1.0),
    )
    assert found == [1.0 - 0.5, 0.0 - 1.0]


def test_users_of_different_blocks_are_never_compared() -> None:
    early = [unit(1, "stable", 1.0), unit(2, "stable", 1.0)]
    assert differences(*early, unit(3, "canary", 0.0, second=59)) == [-1.0]
    assert differences(*early, unit(3, "canary", 0.0, second=60)) == []


def test_users_of_different_stages_are_never_compared() -> None:
    assert differences(unit(1, "stable", 1.0, stage=0), unit(2, "canary", 0.0, stage=1)) == []
    assert differences(unit(1, "stable", 1.0, stage=1), unit(2, "canary", 0.0, stage=1)) == [-1.0]


def test_a_late_unit_of_an_earlier_block_is_left_out_and_does_not_disturb() -> None:
    late = unit(3, "stable", 0.0, second=10)
    first, second = unit(1, "canary", 1.0, second=70), unit(2, "stable", 1.0, second=70)
    assert differences(first, second, late, unit(4, "stable", 1.0, second=70)) == [0.0]


def test_a_silent_user_counts_for_the_propensity_only() -> None:
    units = [unit(1, "canary", None), unit(2, "stable", 1.0), unit(3, "stable", 1.0)]
    tally = fold(start_tally(POLICY), units, POLICY)
    assert tally.up.num == 0
    assert tally.votes_down.num == 1
    assert canary_users(tally, POLICY) == (0, 0)


units = st.lists(
    st.tuples(
        st.sampled_from(list(Track)[:2]),
        st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
        st.floats(0, 30),
        st.integers(0, 1),
    ),
    max_size=60,
)


def as_units(drawn: list[tuple[Track, float | None, float, int]]) -> list[Unit]:
    """In the order of stored positions; time mostly grows, stages too."""
    return [
        unit(number + 1, track, value, second=number * 5 + jitter, stage=min(1, stage + number // 30))
        for number, (track, value, jitter, stage) in enumerate(drawn)
    ]


def bits(tally: Tally) -> list[object]:
    bets = (tally.up, tally.down, tally.effect.above, tally.effect.below, tally.votes_up, tally.votes_down)
    return [
        *(b.log_by_size.tobytes() for b in bets),
        *(tally.position, tally.goal_queues, tally.vote_queues, tally.total_difference, tally.arms),
    ]


@settings(max_examples=60, deadline=None)
@given(units, st.lists(st.integers(0, 60), max_size=5))
def test_replaying_the_stored_units_gives_the_same_bits_as_following_them_live(
    drawn: list[tuple[Track, float | None, float, int]], cuts: list[int]
) -> None:
    stored = as_units(drawn)
    replayed = fold(start_tally(POLICY), stored, POLICY)
    live, begin = start_tally(POLICY), 0
    for end in [*sorted(cuts), len(stored)]:
        live, begin = fold(live, stored[begin:end], POLICY), max(begin, end)
    assert bits(live) == bits(replayed)


@settings(max_examples=60, deadline=None)
@given(units)
def test_who_is_compared_does_not_depend_on_what_they_said(
    drawn: list[tuple[Track, float | None, float, int]],
) -> None:
    stored = [(u, u.value) for u in as_units(drawn) if u.value is not None]
    flipped = [(u, 1.0 - value) for u, value in stored]
    found, mirrored = pair(Queues(), stored, POLICY)[1], pair(Queues(), flipped, POLICY)[1]
    assert mirrored == pytest.approx([-d for d in found])


def test_the_description_holds_counts_wealth_and_interval() -> None:
    stored = [unit(n + 1, "canary" if n % 3 == 0 else "stable", 1.0 if n % 3 == 0 else 0.0) for n in range(90)]
    tally = fold(start_tally(POLICY), stored, POLICY)
    shown = describe(tally, [ArmCounts(0, 0.25, 33, 67)], POLICY)
    assert shown["num_pairs"] == 30
    assert shown["log_wealth_up"] > shown["log_target"]
    assert shown["e_value"] > 20
    assert shown["effect"] == 1.0
    assert shown["effect_low"] > 0.3
    assert shown["effect_high"] == 1.0
    assert shown["arms"]["canary"] == {"assigned": 33, "closed": 30, "rated": 30, "mean": 1.0}
    assert shown["arms"]["stable"] == {"assigned": 67, "closed": 60, "rated": 60, "mean": 0.0}
    assert shown["canary_users_by_stage"] == [30, 0]
