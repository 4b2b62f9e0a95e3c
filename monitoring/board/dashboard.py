"""Rows and panels into Grafana's JSON; the file is committed, so that Grafana needs no Python."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.board.learning import FUNNEL, NOW, TRAINING
from monitoring.board.parts import Panel, Query, Row
from monitoring.board.platform import PLATFORM
from monitoring.board.traffic import PEOPLE, ROLLOUT

PATH = Path(__file__).parents[1] / "grafana" / "dashboards" / "loop.json"
UID = "hone-loop"
ROWS = (NOW, FUNNEL, TRAINING, ROLLOUT, PEOPLE, PLATFORM)
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ENDED = 'hone_rollout_ended_timestamp_seconds{job="monitor"} * 1000'
"""Grafana marks these times on every panel."""


@dataclass
class Pen:
    """Where the next panel goes: left to right, then a new line below the tallest."""

    x: int = 0
    y: int = 0
    tallest: int = 0

    def place(self, width: int, height: int) -> dict[str, int]:
        """Return the position of a panel and move on."""
        if self.x + width > COLUMNS:
            self.break_line()
        position = {"x": self.x, "y": self.y, "w": width, "h": height}
        self.x, self.tallest = self.x + width, max(self.tallest, height)
        return position

    def break_line(self) -> None:
        """Go to the start of the next line."""
        self.x, self.y, self.tallest = 0, self.y + self.tallest, 0


def build(rows: Sequence[Row] = ROWS) -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model."""
    return {
        "uid": UID,
        "title": "The loop",
        "description": "From feedback to a better model: is each part turning, and what to do where it is not.",
        "tags": ["hone"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [datasource_variable()]},
        "annotations": {"list": [annotation()]},
        "panels": [drawn | {"id": number} for number, drawn in enumerate((p for p in draw_rows(rows, Pen())), start=1)],
    }


def draw_rows(rows: Sequence[Row], pen: Pen) -> Iterator[dict[str, Any]]:
    """Return each row's heading and panels in order."""
    for row in rows:
        pen.break_line()
        yield {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": pen.place(COLUMNS, 1)}
        for panel in row.panels:
            yield draw(panel) | {"gridPos": pen.place(panel.width, panel.height)}


def draw(panel: Panel) -> dict[str, Any]:
    """Return one panel without its place."""
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [target(query, letter) for query, letter in zip(panel.queries, "ABCDEFGH", strict=False)],
        "fieldConfig": {"defaults": field_defaults(panel), "overrides": [dashed(q) for q in panel.queries if q.line]},
        "options": options(panel),
    }


def target(query: Query, letter: str) -> dict[str, Any]:
    """Return one query."""
    return {
        "refId": letter,
        "expr": query.expr,
        "legendFormat": query.legend,
        "datasource": SOURCE,
        "instant": query.instant,
        "range": not query.instant,
    }


def field_defaults(panel: Panel) -> dict[str, Any]:
    """Return unit, bounds and thresholds."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": color, "value": value} for color, value in panel.steps]
    values: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.low is not None:
        values["min"] = panel.low
    if panel.high is not None:
        values["max"] = panel.high
    if panel.kind == "timeseries":
        values["custom"] = {"lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "spanNulls": False}
    return values


def dashed(query: Query) -> dict[str, Any]:
    """Return the look of a limit that other lines are compared with."""
    return {
        "matcher": {"id": "byName", "options": query.legend},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        ],
    }


def options(panel: Panel) -> dict[str, Any]:
    """Return what the panel's kind needs."""
    if panel.kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    reduced: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return reduced | ({"textMode": panel.text_mode} if panel.kind == "stat" else {"orientation": "horizontal"})


def datasource_variable() -> dict[str, Any]:
    """Return the variable that picks a Prometheus."""
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0}


def annotation() -> dict[str, Any]:
    """Return the marks at which rollouts ended."""
    return {
        "name": "rollouts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": ENDED,
        "titleFormat": "{{phase}}",
        "useValueForTime": "on",
        "step": "60s",
    }


def as_json() -> str:
    """Return the text of the committed file."""
    return json.dumps(build(), indent=1, ensure_ascii=False) + "\n"
