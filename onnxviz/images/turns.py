"""Threads that take turns at what is read from start to end."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """A lock: of the threads that wait, the one that wants what comes first goes first.

    With a plain lock one thread may wait while others go on and on, and what it wants goes by.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[int] = []
        self._busy = False

    @contextmanager
    def at(self, position: int) -> Iterator[None]:
        """Hold the lock in the ``with`` block, to read at a position."""
        with self._condition:
            heapq.heappush(self._waiting, position)
            while self._busy or self._waiting[0] != position:
                self._condition.wait()
            heapq.heappop(self._waiting)
            self._busy = True
        try:
            yield
        finally:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
