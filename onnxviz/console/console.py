"""What the command line says while a job runs: to people, to programs, and to a log file."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from onnxviz.console.summary import Recap, Summary
from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.interrupts import Terminated, ending_signals
from onnxviz.progress import Progress

__all__ = ["Console", "Failure", "Several", "StandardError", "console", "printable"]


@dataclass(frozen=True)
class Failure:
    """Why a run ended early.

    Args:
        kind: the name of the error's class.
        expected: onnxviz raises it on purpose; else ``--debug`` says more.
        trace: the traceback.
    """

    kind: str
    message: str
    exit_code: int
    expected: bool
    trace: str

    @classmethod
    def of(cls, error: BaseException, *, debug: bool = False) -> Failure:
        """An error with its exit code: its own, 1 for what nobody foresaw, 130 for Ctrl-C, 143 for SIGTERM.

        With ``debug`` Python shows the traceback and ends with 1, whatever the error.
        """
        kind, trace = type(error).__name__, "".join(traceback.format_exception(error))
        if isinstance(error, KeyboardInterrupt):
            ended = isinstance(error, Terminated)
            return cls(kind, "Terminated." if ended else "Interrupted.", 143 if ended else 130, True, trace)
        if isinstance(error, OnnxvizError):
            return cls(kind, str(error), 1 if debug else error.exit_code, True, trace)
        if isinstance(error, BrokenPipeError):
            return cls(kind, "The run ends, since nobody reads its output any more.", 1, True, trace)
        message = str(error) if isinstance(error, OSError) else f"{kind}: {error}"
        return cls(kind, message, 1, False, trace)

    @property
    def signal(self) -> bool:
        """Whether a signal ended the run."""
        return self.exit_code > 128


class Console(Progress):
    """A job's progress, and what the command line has to say besides."""

    def warning(self, text: str) -> None:
        """Something that a library warned of."""

    def summary(self, summary: Summary) -> None:
        """What the run took, at its end."""

    def result(self, lines: Sequence[str], **paths: Path) -> None:
        """What was made: in words, and where each kind of it lies."""

    def error(self, failure: Failure) -> None:
        """The run failed, or was broken off."""

    def end(self, exit_code: int) -> None:
        """The last thing that is said."""


class StandardError(Console):
    """Errors, and nothing else."""

    def __init__(self, *, debug: bool = False) -> None:
        self._debug = debug

    def error(self, failure: Failure) -> None:
        """Print it in a line or two; Python shows the traceback if one was asked for."""
        if failure.signal:
            typer.echo(failure.message, err=True)
        elif not self._debug and failure.kind != BrokenPipeError.__name__:
            more = "" if failure.expected else " (--debug shows where)"
            message = "\n".join(map(printable, failure.message.split("\n")))
            typer.echo(f"Error: {message}{more}", err=True)


class Several(Console):
    """Passes everything on to others, after the recap has counted it."""

    def __init__(self, recap: Recap, others: Sequence[Console] = ()) -> None:
        self._recap = recap
        self._others = list(others)
        self._summed_up = False

    def add(self, other: Console) -> None:
        """Let one more hear what comes, before the others: a log file knows of what a broken pipe cuts off."""
        self._others.insert(0, other)

    def note(self, text: str) -> None:
        """Pass it on."""
        for other in self._others:
            other.note(text)

    def warning(self, text: str) -> None:
        """Pass it on."""
        for other in self._others:
            other.warning(text)

    def start(self, task: str, total: int, unit: str) -> None:
        """Pass it on."""
        self.finish()
        self._recap.start(task, total, unit)
        for other in self._others:
            other.start(task, total, unit)

    def resumed(self, count: int) -> None:
        """Pass it on."""
        self._recap.resumed(count)
        for other in self._others:
            other.resumed(count)

    def advance(self, count: int = 1) -> None:
        """Pass it on."""
        self._recap.advance(count)
        for other in self._others:
            other.advance(count)

    def skipped(self, name: str, reason: str) -> None:
        """Pass it on."""
        self._recap.skipped(name, reason)
        for other in self._others:
            other.skipped(name, reason)

    def finish(self) -> None:
        """Pass it on; the others can still ask the recap for the phase."""
        try:
            for other in self._others:
                other.finish()
        finally:
            self._recap.finish()

    def summary(self, summary: Summary) -> None:
        """Pass it on."""
        for other in self._others:
            other.summary(summary)

    def sum_up(self, *, complete: bool) -> None:
        """Give the summary, once, of a job that had phases."""
        self.finish()
        if self._recap.phases and not self._summed_up:
            self._summed_up = True
            self.summary(self._recap.summary(complete=complete))

    def result(self, lines: Sequence[str], **paths: Path) -> None:
        """Pass it on, after the summary."""
        self.sum_up(complete=True)
        for other in self._others:
            other.result(lines, **paths)

    def error(self, failure: Failure) -> None:
        """Pass it on."""
        for other in self._others:
            other.error(failure)

    def end(self, exit_code: int) -> None:
        """Pass it on."""
        for other in self._others:
            other.end(exit_code)


@contextmanager
def console(
    *, quiet: bool = False, json_progress: bool = False, log_file: Path | None = None, debug: bool = False
) -> Iterator[Several]:
    """What a command says, and how it ends: errors in a line and as an exit code, Ctrl-C and SIGTERM likewise.

    The summary comes before the result, or at the end; after an error only programs and the log file get it.

    Args:
        quiet: errors only.
        json_progress: JSON lines on standard output, and nothing else there.
        log_file: also append to this file.
        debug: let errors through, so that Python shows the traceback, and what Dask logs.

    Raises:
        typer.Exit: with the code, after an error.
    """
    recap = Recap()
    told = Several(recap, [StandardError(debug=debug)])
    code = 1
    with ending_signals() as ending, _warnings_to(told), _logging(debug):
        try:
            if json_progress:
                from onnxviz.console.jsonlines import JsonLines

                told.add(JsonLines(recap))
            elif not quiet:
                from onnxviz.console.terminal import Terminal

                told.add(Terminal())
            if quiet and json_progress:
                raise UsageError(
                    "--quiet and --json-progress exclude each other: --json-progress prints nothing but JSON anyway."
                )
            if log_file is not None:
                from onnxviz.console.logfile import LogFile

                told.add(LogFile(log_file, recap))
            yield told
            told.sum_up(complete=True)
            code = 0
        except (typer.Exit, typer.Abort) as leave:
            code = getattr(leave, "exit_code", 1)
            told.finish()
            raise
        except BrokenPipeError as error:
            # Whoever read the output, as head does, has gone: no more is said there.
            told.sum_up(complete=False)
            told.error(Failure.of(error))
            raise
        except (Exception, KeyboardInterrupt) as error:
            failure = Failure.of(ending.instead_of(error), debug=debug)
            code = failure.exit_code
            for tell in (told.finish, partial(told.sum_up, complete=False), partial(told.error, failure)):
                with suppress(BrokenPipeError):  # only the first one raises it
                    tell()
            if debug and not failure.signal:
                raise
            raise typer.Exit(code) from None
        finally:
            told.end(code)


@contextmanager
def _warnings_to(told: Console) -> Iterator[None]:
    """Let Python's warnings appear as everything else does."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        told.warning(f"{category.__name__}: {message} ({filename}:{lineno})")

    usual, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = usual


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    """Set the logger "onnxviz" to debug, so that what libraries log is shown (`cluster`)."""
    if not debug:
        yield
        return
    import logging

    logger = logging.getLogger("onnxviz")
    usual = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(usual)


def printable(text: str) -> str:
    """Text in one line, without anything that a terminal would obey: such signs are written as escapes."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
