"""What a dashboard is made of, and the expressions that its panels share."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "bargauge"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression; `line` draws it as a dashed limit."""

    expr: str
    legend: str
    line: bool = False
    instant: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `steps` are the values from which another colour holds."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    low: float | None = None
    high: float | None = None
    steps: tuple[tuple[str, float], ...] = ()
    text_mode: str = "auto"


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


def quantiles(metric: str, job: str, *by: str, share: float) -> str:
    """Return the expression of a histogram's quantile of late."""
    labels = ", ".join(("le", *by))
    return f'histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{job="{job}"}}[$__rate_interval])))'


def rate(metric: str, job: str, *by: str, where: str = "") -> str:
    """Return the expression of a counter's rate, summed by labels."""
    grouping = f" by ({', '.join(by)})" if by else ""
    more = f", {where}" if where else ""
    return f'sum{grouping} (rate({metric}{{job="{job}"{more}}}[$__rate_interval]))'


def share(metric: str, job: str, by: str, where: str) -> str:
    """Return the expression of a part of a counter, as a share of the whole; 0 where the part is nothing."""
    whole = rate(metric, job, by)
    return f"({rate(metric, job, by, where=where)} or {whole} * 0) / {whole}"


def latest(metric: str, job: str, *by: str) -> str:
    """Return the expression of a gauge, the largest of several instances."""
    grouping = f" by ({', '.join(by)})" if by else ""
    return f'max{grouping} ({metric}{{job="{job}"}})'
