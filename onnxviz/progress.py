"""How a long job tells how far it is."""

from __future__ import annotations

__all__ = ["OPENING", "SCANNING", "Progress"]

OPENING = "Opening"
SCANNING = "Scanning"
"""Phases. Others are "Recording", and "Projecting …" for each layer."""


class Progress:
    """Hears of a job's course and says nothing; a program that shows it overrides what it needs."""

    def note(self, text: str) -> None:
        """A fact that the user should know, in a line."""

    def start(self, task: str, total: int, unit: str) -> None:
        """A phase begins, of ``total`` steps that are each one ``unit``; 0 and "" where nothing is counted."""

    def resumed(self, count: int) -> None:
        """So many steps of the phase were done by a former run. They take no time, so they are not in the rate."""

    def advance(self, count: int = 1) -> None:
        """So many more steps are done."""

    def skipped(self, name: str, reason: str) -> None:
        """An image could not be read; it counts as a step like others."""

    def finish(self) -> None:
        """The phase is over."""
