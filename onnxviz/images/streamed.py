"""Files that can be had only whole: they are read from start to end, and again for what has gone by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxviz.images.turns import Turns

__all__ = ["Streamed"]

KEPT = 1 << 25
"""Bytes that stay in memory behind the furthest: more than threads that read neighbours at once are apart."""

STEP = 1 << 20


class Streamed:
    """A file as a stream, opened anew where something before what is kept is asked for. For any number of threads."""

    def __init__(self, opening: Callable[[], Any]) -> None:
        self._opening = opening
        self._stream: Any = None
        self._kept = bytearray()
        self._start = 0
        self._turns = Turns()

    def __reduce__(self) -> tuple[Any, ...]:
        return Streamed, (self._opening,)

    def read(self, start: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            EOFError: the stream ends before. The next call starts anew, as after any error of the stream.
        """
        with self._turns.at(start):
            if self._stream is None or start < self._start:
                self._restart()
            try:
                while (end := self._start + len(self._kept)) < start + length:
                    data = self._stream.read(STEP)
                    if not data:
                        raise EOFError(f"the stream ended after {end:,} bytes")
                    self._kept += data
                    passed = min(len(self._kept) - KEPT, start - self._start)
                    if passed > 0:
                        del self._kept[:passed]
                        self._start += passed
            except BaseException:
                self._close()
                raise
            return bytes(self._kept[start - self._start : start - self._start + length])

    def release(self) -> None:
        """Close the stream and let go of what is kept."""
        with self._turns.at(0):
            self._close()

    def _restart(self) -> None:
        self._close()
        self._stream = self._opening()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._start = None, 0
        self._kept.clear()
