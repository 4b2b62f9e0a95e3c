"""How commands print: aligned columns, facts, durations in words, and a progress bar on stderr."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Row = Mapping[str, Any]


def show_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, default=str))


def facts(values: Mapping[str, Any], as_json: bool = False) -> None:
    """Print a mapping as JSON, or one aligned line for each fact."""
    if as_json:
        return show_json(values)
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {cell(value)}")


def table(rows: Sequence[Row], as_json: bool, empty: str) -> None:
    """Print rows as JSON, or as aligned columns; `empty` where there are none."""
    if as_json:
        return show_json(rows)
    if not rows:
        return click.echo(empty)
    for number, line in enumerate(columns(rows)):
        click.secho(line, bold=number == 0)


def columns(rows: Sequence[Row]) -> Iterable[str]:
    """Return a header and one line for each row; numbers stand right."""
    names = list(rows[0])
    cells = [[cell(row[name]) for name in names] for row in rows]
    right = [all(isinstance(row[name], int | float) for row in rows) for name in names]
    widths = [max(map(len, column)) for column in zip([name.replace("_", " ") for name in names], *cells, strict=True)]
    for line in [[name.replace("_", " ") for name in names], *cells]:
        padded = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        )
        yield "  ".join(padded).rstrip()


def cell(value: Any) -> str:
    """Return a value for people: times in UTC to the second, nothing as a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items()) or "-"
    return str(value)


def short(text: str | None, width: int = 60) -> str:
    """Return the first line of a text, cut to `width` characters, for a column of a table."""
    line = (text or "").split("\n", 1)[0]
    return line if len(line) <= width else f"{line[: width - 1]}…"


def duration(seconds: float) -> str:
    """Return `45 s`, `12 min`, `2 h 10 min` or `3 d 4 h`."""
    total = max(0, round(seconds))
    if total < 90:
        return f"{total} s"
    minutes = round(total / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


@contextmanager
def progress(total: int, what: str, *, in_bytes: bool = False) -> Iterator[Progress]:
    """Show a bar with how much and time to go on stderr, where that is a terminal; task 0 is the bar."""
    parts = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("· to go"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*parts, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(what, total=total)
        yield bar


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something of unknown length goes on, on stderr where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield
