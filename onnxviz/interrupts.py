"""Ctrl-C and SIGTERM, at points where they do no harm."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Terminated", "ending_signals", "held_interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever is done at Ctrl-C is done then, too."""


@contextmanager
def ending_signals() -> Iterator[None]:
    """Let SIGTERM raise Terminated as Ctrl-C raises KeyboardInterrupt, and a second signal end the process at once.

    For programs, not for libraries. A signal that the process was told to ignore (as shells do with SIGINT for what
    they start in the background), or that somebody else handles, stays as it is; so do both in another thread than
    the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    taken = {number: usual[number] for number in _SIGNALS if signal.getsignal(number) is usual[number]}
    for number in taken:
        signal.signal(number, _first)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C, and SIGTERM under `ending_signals`, back until the function that this gives is called.

    That function then raises KeyboardInterrupt or Terminated, and so does the end of the block. Python may raise
    them while a future's lock is being taken, which then stays locked, and whoever waits for the future waits for
    ever. A second signal is not held back. Inside another such block the outer one's function is given. Where
    somebody else handles the signals, or in another thread than the main one, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    for handler in found.values():
        if isinstance(handler, _Hold):
            yield handler.check
            return
    held = {number: h for number, h in found.items() if h is signal.default_int_handler or h is _first}
    hold = _Hold(held)
    for number in held:
        signal.signal(number, hold)
    try:
        yield hold.check
    finally:
        for number, handler in held.items():
            signal.signal(number, _second if hold.came is not None and handler is _first else handler)
    hold.check()


class _Hold:
    """A handler that notes the first signal, and acts on the second as those that it stands for."""

    def __init__(self, held: Mapping[signal.Signals, Any]) -> None:
        self._held = held
        self.came: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.came is not None:
            handler = self._held[signal.Signals(number)]
            (_second if handler is _first else handler)(number, frame)
        self.came = number

    def check(self) -> None:
        """Raise what the signal that came stands for."""
        if self.came is not None:
            raise _raised(self.came)


def _first(number: int, frame: FrameType | None) -> None:
    """Raise what a signal stands for; the next one ends the process."""
    for other in _SIGNALS:
        if signal.getsignal(other) is _first:
            signal.signal(other, _second)
    raise _raised(number)


def _second(number: int, frame: FrameType | None) -> None:
    """End the process where it is, with the code that a shell gives to the signal."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(128 + number)


def _raised(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
