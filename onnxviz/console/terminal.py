"""A job's course for people: notes and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxviz.console.console import Console, printable
from onnxviz.console.summary import Summary

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Terminal"]

_BAR = 8
"""The least width of a bar."""


class Terminal(Console):
    """Notes on standard output, and progress bars on standard error if that is a terminal."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._task: TaskID | None = None
        self._skipped = 0

    def note(self, text: str) -> None:
        """Print a line, above a bar if there is one."""
        if self._bars and sys.stdout.isatty():
            self._bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(printable(text))

    def warning(self, text: str) -> None:
        """Print it on standard error, above a bar if there is one."""
        if self._bars:
            self._bars.console.print(
                f"Warning: {printable(text)}", markup=False, highlight=False, soft_wrap=True
            )
        else:
            typer.echo(f"Warning: {printable(text)}", err=True)

    def start(self, task: str, total: int, unit: str) -> None:
        """Show a bar with rate and time left; where nothing is counted, how long it takes, and only till it is over."""
        self.finish()
        self._skipped = 0
        if sys.stderr.isatty():
            self._bars = _bar_of(unit) if total else _clock()
            self._bars.start()
            others = _BAR + 2 * len(f"{total}") + len(unit) + 20 if total else 10
            name = _shortened(printable(task), max(12, self._bars.console.width - others))
            self._task = self._bars.add_task(name, total=total or None, skipped="", resumed=0)

    def resumed(self, count: int) -> None:
        """Begin so far on."""
        if self._bars:
            self._bars.reset(self._task, completed=count, skipped=self._besides(), resumed=count)

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._bars:
            self._bars.advance(self._task, count)

    def skipped(self, name: str, reason: str) -> None:
        """Count it beside the bar; the reasons come with the summary."""
        self._skipped += 1
        if self._bars:
            self._bars.update(self._task, skipped=self._besides())

    def _besides(self) -> str:
        return f"{self._skipped:,} skipped" if self._skipped else ""

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self._bars:
            self._bars.stop()
            self._bars = None

    def summary(self, summary: Summary) -> None:
        """Print a few lines, what was skipped on standard error; nothing if the run came to no end."""
        if not summary.complete:
            return
        first, *others = summary.lines()
        typer.echo(first)
        for line in summary.skipped_lines():
            typer.echo(f"  {printable(line)}", err=True)
        for line in others:
            typer.echo(line)

    def result(self, lines: Sequence[str], **paths: Path) -> None:
        """Print the lines."""
        for line in lines:
            typer.echo(printable(line))


def _shortened(text: str, width: int) -> str:
    """The text, its middle left out if it is longer; the end of a layer's name says more than that."""
    head = (width - 1) // 2
    return text if len(text) <= width else f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _bar_of(unit: str) -> Any:
    """A bar: what is done, how far it is, how fast, and how long it will take, or took."""
    from rich.console import Console as Screen
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            """The rate, or nothing before there is one."""
            whole = task.finished_time and (task.completed - task.fields["resumed"]) / task.finished_time
            speed = whole or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    def fixed() -> Column:
        return Column(no_wrap=True)

    return Bars(
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=_BAR, max_width=40)),
        MofNCompleteColumn(table_column=fixed()),
        TextColumn("{task.fields[skipped]}", markup=False, table_column=fixed()),
        Rate(table_column=fixed()),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=fixed()),
        console=Screen(stderr=True),
        redirect_stdout=False,  # or what is printed would go to standard error
        redirect_stderr=False,
    )


def _clock() -> Any:
    """What is done, and for how long; it goes when that is over."""
    from rich.console import Console as Screen
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    return Bars(
        SpinnerColumn("line"),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Screen(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
