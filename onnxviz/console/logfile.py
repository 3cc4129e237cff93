"""A file that tells afterwards how a run went."""

from __future__ import annotations

import io
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from onnxviz.console.console import Console, Failure, printable
from onnxviz.console.summary import Phase, Recap, Summary, duration, rate
from onnxviz.errors import UsageError
from onnxviz.images.urls import masked

__all__ = ["LogFile"]

_BETWEEN_LINES = 60.0
"""Seconds between two lines that say how far a phase is."""

_PACKAGES = ("onnxviz", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow")


class LogFile(Console):
    """Appends a line an event: the time in UTC, the process, the level, and the text without line breaks.

    Each line is written at once and in one piece, so several processes may share a file. If the file can no longer
    be written, that is said once on standard error, and the run goes on.

    Raises:
        UsageError: the file cannot be opened, or is none to append text to.
    """

    def __init__(self, path: Path, recap: Recap) -> None:
        self._path, self._recap, self._next = path, recap, 0.0
        self._file = _opened(path)
        versions = [f"Python {platform.python_version()}", *_versions()]
        self._write("INFO", f"Command: {shlex.join(['onnxviz', *map(masked, sys.argv[1:])])}")
        self._write(
            "INFO", f"In {Path.cwd()}; {', '.join(versions)}; {platform.system()} {platform.machine()}"
        )

    def note(self, text: str) -> None:
        """Write it."""
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        """Write it."""
        self._write("WARNING", text)

    def start(self, task: str, total: int, unit: str) -> None:
        """Write it."""
        self._next = self._recap.seconds + _BETWEEN_LINES
        self._write("INFO", f"{task} begins" + (f": {total:,} {unit}" if total else ""))

    def resumed(self, count: int) -> None:
        """Write it."""
        if phase := self._recap.current:
            self._write("INFO", f"{phase.name}: {count:,} {phase.unit} were done by a former run")

    def advance(self, count: int = 1) -> None:
        """Write how far the phase is, once a minute."""
        phase = self._recap.current
        if phase and self._recap.seconds >= self._next:
            self._next = self._recap.seconds + _BETWEEN_LINES
            self._write("INFO", f"{phase.name}: {_course(phase)}")

    def skipped(self, name: str, reason: str) -> None:
        """Write it."""
        self._write("WARNING", f"Skipped {name}: {reason}")

    def finish(self) -> None:
        """Write how far the phase came and how long it took."""
        if phase := self._recap.current:
            done = f": {phase.done:,} of {phase.total:,} {phase.unit}" if phase.total else ""
            self._write("INFO", f"{phase.name} ends{done} in {duration(phase.seconds)}")

    def summary(self, summary: Summary) -> None:
        """Write it, a line each."""
        for line in summary.lines():
            self._write("INFO", f"Summary: {line}")
        for line in summary.skipped_lines():
            self._write("INFO", f"Summary: {line}")

    def result(self, lines: Sequence[str], **paths: Path) -> None:
        """Write the lines."""
        for line in lines:
            self._write("INFO", line)

    def error(self, failure: Failure) -> None:
        """Write it with its traceback, a line each."""
        self._write("ERROR", failure.message)
        for line in failure.trace.splitlines():
            self._write("ERROR", f"  {line}")

    def end(self, exit_code: int) -> None:
        """Write the exit code and close the file."""
        self._write("INFO", f"Ended with exit code {exit_code} after {duration(self._recap.seconds)}")
        self._file.close()

    def _write(self, level: str, text: str) -> None:
        if self._file.closed:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{now} {os.getpid()} {level:<7} {printable(text)}\n"
        try:
            self._file.write(line.encode("utf-8"))
        except OSError as error:
            self._file.close()
            typer.echo(f"--log-file {self._path}: no longer written ({error.strerror or error})", err=True)


def _opened(path: Path) -> io.FileIO:
    """The file, to append to."""
    if not path.parent.is_dir():
        raise UsageError(f"--log-file {path}: there is no folder {path.parent}. Make it first.")
    try:
        if path.is_file():  # what is somebody's model or photo must not be spoilt
            with path.open("rb") as former:
                if b"\0" in former.read(4096):
                    raise UsageError(f"--log-file {path}: this is no text file. Name another.")
        return io.FileIO(path, "a")
    except OSError as error:
        raise UsageError(
            f"--log-file {path}: cannot be written ({error.strerror or error}). Name another."
        ) from error


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def _course(phase: Phase) -> str:
    """How far a phase is, how fast, and how long it will take."""
    if not phase.total:
        return duration(phase.seconds)
    text = f"{phase.done:,} of {phase.total:,} {phase.unit}"
    speed = rate([phase])
    return f"{text}, {speed:,.1f}/s, {duration((phase.total - phase.done) / speed)} left" if speed else text
