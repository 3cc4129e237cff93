"""How a long job tells how far it is."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """Hears of a job's course and says nothing; a program that shows it overrides what it needs."""

    def note(self, text: str) -> None:
        """A fact that the user should know, in a line."""

    def start(self, task: str, total: int, unit: str) -> None:
        """A phase begins, of ``total`` steps that are each one ``unit``."""

    def advance(self, count: int = 1) -> None:
        """So many more steps are done."""

    def finish(self) -> None:
        """The phase is over."""
