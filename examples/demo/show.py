"""What the demo prints: one line for each stage with planned and actual seconds, and a bar while it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Update = Callable[[str, float, float], None]
"""`update(detail, done, total)`: what happens right now."""


@dataclass(frozen=True)
class Timing:
    """How long a stage took beside its plan, in wall seconds on two quiet cores."""

    stage: str
    planned_s: float
    actual_s: float


class Show:
    """Prints the stages and remembers their times."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.timings: list[Timing] = []

    @contextmanager
    def stage(self, title: str, planned_s: float) -> Iterator[Update]:
        """Show a bar inside the block; after it, one line. An error leaves the line of the failed stage."""
        started = time.monotonic()
        with self.bar(title) as update:
            try:
                yield update
            except BaseException:
                self.console.print(f"  [red]✗[/] {title}", highlight=False)
                raise
        actual = time.monotonic() - started
        self.timings.append(Timing(title, planned_s, actual))
        line = f"  [green]✓[/] {title:<58} [dim]planned {planned_s:4.0f} s   took[/] {actual:5.1f} s"
        self.console.print(line, highlight=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """Give a function that moves the bar; the bar leaves no trace, and is not drawn where nobody watches."""
        if not self.console.is_terminal:
            yield lambda detail, done, total: None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=None)

            def update(detail: str, done: float, total: float) -> None:
                words = f"{title}: {detail}" if detail else title
                progress.update(task, description=words, completed=round(done), total=round(total) or None)

            yield update

    def note(self, text: str) -> None:
        """Print a line below the stage that it belongs to."""
        self.console.print(f"      [dim]{text}[/]", highlight=False)
