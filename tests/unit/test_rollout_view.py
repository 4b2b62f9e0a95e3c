import math
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from hone.cli.rollout_view import BAND, BAR, band, proof, view

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
ARM = {"assigned": 4100, "closed": 4010, "rated": 812, "mean": 0.64}
FOUND: dict[str, Any] = {
    "canary": "m-2",
    "stable": "m-1",
    "phase": "canary",
    "stage": 2,
    "num_stages": 4,
    "weight": 0.25,
    "stage_started_at": NOW - timedelta(minutes=12),
    "in_force": True,
    "ended_at": None,
    "mode": "active",
    "freeze": None,
    "late": 0,
    "watches": None,
    "waits_for_approval": False,
    "effect": 0.04,
    "effect_low": -0.01,
    "effect_high": 0.09,
    "e_target": 40.0,
    "alpha_harm": 0.05,
    "alpha_check": 0.001,
    "alpha_guard": 0.01,
    "horizon_pairs": 6000,
    "transitions": [
        {
            "created_at": NOW,
            "from_phase": "created",
            "to_phase": "canary",
            "weight": 0.01,
            "reason": "ready",
            "actor": "controller",
        }
    ],
    "evidence": {
        "num_pairs": 1400,
        "log_wealth_up": math.log(7.5),
        "log_wealth_down": math.log(0.02),
        "arms": {"canary": ARM, "stable": ARM},
        "sample_ratio_log_e": 0.2,
        "propensity_log_e": -1.0,
        "guards": {"refused rose by more than 0.03": -2.0, "length rose by more than 0.1": 5.0},
    },
}


def shown(**changes: Any) -> str:
    console = Console(width=80, file=StringIO())
    with console.capture() as capture:
        console.print(view(FOUND | changes, NOW))
    return capture.get()


def test_the_view_says_effect_proofs_users_checks_and_history_in_80_columns() -> None:
    text = shown()
    assert "m-2 canary at 25%, stage 3 of 4 for 12 min" in text
    assert "+4.0%  -1.0% to +9.0% at all times" in text
    assert "e-value 7.5 of 40" in text
    assert "812 users rated of 4,010 closed" in text
    assert "shares of users ok · votes alike ok · routers follow ok" in text
    assert "refused ok · length rose: NO" in text
    assert "created → canary at 1% · ready" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_holds_a_live_rollout_is_said_below_its_place() -> None:
    assert "mode is observe: the canary is loaded, and gets no traffic before HONE_MODE=active" in unfolded(
        shown(mode="observe")
    )
    freeze = {"since": NOW, "actor": "ann", "reason": "bad data"}
    text = unfolded(shown(freeze=freeze))
    assert "FROZEN since 2026-03-02 12:00 by ann: bad data; the canary gets nothing until `hone unfreeze`" in text
    assert "mode is observe" not in shown(mode="observe", ended_at=NOW)


def unfolded(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ({"m-1": 1204, "m-2": 410}, "m-1 75.0%, 1,204 requests · m-2 25.0%, 410 requests"),
        (None, "m-1 75.0% · m-2 25.0% (nobody counts them: seldon.prometheus_url)"),
    ],
)
def test_what_comes_past_the_gateways_is_shown_apart(requests: dict[str, int] | None, said: str) -> None:
    past = {"weights": {"m-1": 0.75, "m-2": 0.25}, "requests": requests}
    assert said in unfolded(shown(evidence=FOUND["evidence"] | {"past_gateways": past}))


def test_users_who_rated_too_late_are_counted_and_not_applied() -> None:
    assert "late" not in shown()
    said = "1,204 users rated after their window had ended, and do not count (outcome_window_s)"
    assert said in unfolded(shown(late=1204))


def test_duels_are_shown_beside_the_verdict() -> None:
    duels = {"num": 40, "num_compared": 30, "num_contrasts": 15, "contrast": 0.1, "low": -0.2, "high": 0.4}
    text = shown(evidence=FOUND["evidence"] | {"duels": duels})
    assert "40: +10.0% for the canary (-20.0% to +40.0%), not in the verdict" in text


def test_before_the_first_pair_it_says_so() -> None:
    assert "no pair of users closed yet" in shown(evidence={}, effect=None)


def test_of_a_reverse_watch_the_proofs_are_to_go_back_or_to_keep() -> None:
    text = shown(watches="x", canary="m-1", stable="m-2")
    assert "m-1 keeps 25% to watch its successor" in text
    assert "go back" in text
    assert "better" not in text


@pytest.mark.parametrize(
    ("low", "mean", "high"), [(-0.01, 0.04, 0.09), (-1.0, 0.0, 1.0), (0.05, 0.05, 0.05), (-2.0, -1.5, -1.0)]
)
def test_the_band_has_its_columns_and_shows_the_mean_within(low: float, mean: float, high: float) -> None:
    text = band(low, mean, high, 0.10, "green").plain
    assert len(text) == BAND
    assert text.count("●") == 1


@pytest.mark.parametrize(("log_wealth", "full"), [(-3.0, 0), (0.0, 0), (math.log(20) / 2, BAR // 2), (9.0, BAR)])
def test_a_proof_fills_with_the_log_of_the_wealth(log_wealth: float, full: int) -> None:
    assert proof("better", log_wealth, 0.05, "green").plain.count("━") == full
