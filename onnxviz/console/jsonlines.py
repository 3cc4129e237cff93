"""A job's course for programs: JSON lines."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxviz.console.console import Console, Failure
from onnxviz.console.summary import Recap, Summary

__all__ = ["JsonLines"]

_BETWEEN_LINES = 0.2
"""Seconds between two progress events for a program."""


class JsonLines(Console):
    """JSON objects on standard output, a line each, for programs; each has an event and the seconds since the start."""

    def __init__(self, recap: Recap) -> None:
        from importlib.metadata import version

        self._recap = recap
        self._lock = threading.Lock()
        self._gone = False
        self._told, self._next = -1, 0.0
        self._say("begin", version=version("onnxviz"))

    def note(self, text: str) -> None:
        """Say it."""
        self._say("note", text=text)

    def warning(self, text: str) -> None:
        """Say it."""
        self._say("warning", text=text)

    def start(self, task: str, total: int, unit: str) -> None:
        """Say it."""
        self._phase("start")

    def resumed(self, count: int) -> None:
        """Say it as progress."""
        self._phase("progress")

    def advance(self, count: int = 1) -> None:
        """Say it if nothing was said for a while."""
        if self._recap.seconds >= self._next:
            self._phase("progress")

    def skipped(self, name: str, reason: str) -> None:
        """Say it."""
        self._say("skipped", name=name, reason=reason)

    def finish(self) -> None:
        """Say how far the phase came, if that was not said, and how long it took."""
        if phase := self._recap.current:
            if phase.done != self._told:
                self._phase("progress")
            self._phase("finish", seconds=round(phase.seconds, 3))

    def summary(self, summary: Summary) -> None:
        """Say it."""
        self._say("summary", **summary.facts())

    def result(self, lines: Sequence[str], **paths: Path) -> None:
        """Say where the files are."""
        self._say("result", **{kind: str(path) for kind, path in paths.items()})

    def error(self, failure: Failure) -> None:
        """Say it."""
        self._say("error", message=failure.message, kind=failure.kind, exit_code=failure.exit_code)

    def _phase(self, event: str, **more: Any) -> None:
        if phase := self._recap.current:
            self._told, self._next = phase.done, self._recap.seconds + _BETWEEN_LINES
            facts = {"phase": phase.name, "done": phase.done, "total": phase.total, "unit": phase.unit}
            self._say(event, **facts, **more)

    def _say(self, event: str, **facts: Any) -> None:
        """Write a line at once. Where nobody reads any more, the first line says so, and further ones are dropped."""
        if self._gone:
            return
        try:
            with self._lock:
                head = {"event": event, "elapsed": round(self._recap.seconds, 3)}
                line = json.dumps({**head, **_encodable(facts)}, allow_nan=False)
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        except BrokenPipeError:
            self._gone = True
            raise


def _encodable(value: Any) -> Any:
    """The value with halves of surrogate pairs, which names of files may hold and few JSON readers take, as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _encodable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    return value
