"""The dashboard as Grafana gets it."""

import json
from itertools import combinations
from typing import Any

from monitoring.board.dashboard import PATH, ROWS, as_json, build

BOARD = build()
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def test_the_committed_file_is_what_the_builder_writes() -> None:
    assert PATH.read_text() == as_json(), "run `python -m monitoring dashboard`"


def test_every_panel_has_a_unit_a_legend_and_says_what_to_do() -> None:
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 50, panel["title"]
        assert panel["targets"] and all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_panels_have_ids_and_titles_of_their_own() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS) == sum(len(row.panels) for row in ROWS)


def test_no_two_panels_overlap_and_none_leaves_the_grid() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    assert not any(overlap(one, other) for one, other in combinations(places, 2))


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_the_decision_line_of_the_evidence_is_drawn_as_a_limit() -> None:
    evidence = next(panel for panel in PANELS if panel["title"].startswith("Evidence"))
    overrides: list[Any] = evidence["fieldConfig"]["overrides"]
    assert [override["matcher"]["options"] for override in overrides] == ["decision"]
    assert "hone_rollout_target_log" in json.dumps(evidence["targets"])
