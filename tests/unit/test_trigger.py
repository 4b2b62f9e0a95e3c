import pytest

from hone.settings import Trigger
from hone.trigger import Counts, Switches, look

TRIGGER = Trigger(min_pairs=100)
ON = Switches(is_active=True, is_frozen=False)


def test_below_the_threshold_it_says_how_many_are_missing_and_when_they_come() -> None:
    seen = look(Counts(70, num_recent=60, recent_s=600), TRIGGER, ON)
    assert (seen.missing, seen.eta_s, seen.would_trigger, seen.opens) == (30, 300, False, False)
    assert seen.reason == "30 pairs short of 100"


@pytest.mark.parametrize("num_recent", [0, 1, 19])
def test_where_little_came_recently_there_is_no_estimate(num_recent: int) -> None:
    assert look(Counts(70, num_recent, recent_s=600), TRIGGER, ON).eta_s is None


def test_at_the_threshold_it_opens() -> None:
    seen = look(Counts(100), TRIGGER, ON)
    assert (seen.missing, seen.eta_s, seen.would_trigger, seen.opens) == (0, 0.0, True, True)


@pytest.mark.parametrize(
    ("switches", "word"),
    [
        pytest.param(Switches(is_active=False, is_frozen=False), "observe", id="observe mode only reports"),
        pytest.param(Switches(is_active=True, is_frozen=True), "frozen", id="a freeze holds it back"),
    ],
)
def test_what_holds_it_back_is_named(switches: Switches, word: str) -> None:
    seen = look(Counts(500), TRIGGER, switches)
    assert (seen.would_trigger, seen.opens) == (True, False)
    assert word in seen.reason
