"""The progress of a sweep on stderr: on a terminal a bar with the time to go, and a line for each trial always."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hone.cli.output import duration


class TrialBar:
    """Trials done of those that there may be; the time to go is that of the trials so far, which rich cannot know."""

    def __init__(self, num_trials: int) -> None:
        """Show nothing yet."""
        console = Console(stderr=True)
        parts = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *parts, TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("trials", total=num_trials, left="")
        self._num = num_trials
        self._done, self._part, self._started, self._each = 0, 0.0, time.monotonic(), 0.0

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()

    def begin(self, what: str, done: int, seconds_each: float | None) -> None:
        """Begin a trial after `done` ones, which took so long on average; None: nothing is known yet."""
        self._done, self._part, self._started, self._each = done, 0.0, time.monotonic(), seconds_each or 0.0
        self._bar.update(self._task, description=what)
        self.move(0.0)

    def move(self, part: float) -> None:
        """Show how much of the present trial is done; it never goes back, as in its evaluation steps are unknown."""
        self._part = max(self._part, part)
        self._bar.update(self._task, completed=self._done + self._part, left=self._left())

    def _left(self) -> str:
        if not self._each:
            return ""
        present = max(0.0, self._each - (time.monotonic() - self._started))
        return f"about {duration(present + self._each * (self._num - self._done - 1))} to go"

    def say(self, line: str) -> None:
        """Print a line above the bar: the present trial has ended."""
        self.move(1.0)
        self._bar.console.print(line, highlight=False, soft_wrap=True)
