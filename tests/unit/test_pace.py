"""How often a key may ask."""

import pytest

from serving.gateway.guard import Pace
from serving.http import Problem


def test_a_key_may_burst_and_then_asks_at_its_rate() -> None:
    pace = Pace(60)
    for _ in range(10):
        pace.spend("a", 100.0)
    with pytest.raises(Problem) as caught:
        pace.spend("a", 100.0)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
    pace.spend("a", 101.0)
    pace.spend("b", 101.0)


def test_a_slow_rate_says_how_long_to_wait() -> None:
    pace = Pace(2)
    pace.spend("a", 0.0)
    with pytest.raises(Problem) as caught:
        pace.spend("a", 10.0)
    assert caught.value.retry_after_s == 20
    assert (b"retry-after", b"20") in caught.value.headers()


def spend_thousand(pace: Pace) -> None:
    for _ in range(1000):
        pace.spend("a", 0.0)


def test_without_a_rate_there_is_no_limit() -> None:
    spend_thousand(Pace(0))
    with pytest.raises(Problem):
        spend_thousand(Pace(999))
