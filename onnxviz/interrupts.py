"""Ctrl-C and SIGTERM, at points where they do no harm."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Ending", "Terminated", "ending_signals", "held_interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever is done at Ctrl-C is done then, too."""


class Ending:
    """A handler that raises what the first signal stands for; the second one ends the process at once.

    ``came``: the first one's number.
    """

    def __init__(self) -> None:
        self.came: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take the signal down and raise."""
        self.note(number)
        raise _raised(number)

    def note(self, number: int) -> None:
        """Take the first signal down; at the second, end the process with the code that a shell gives to it."""
        if self.came is not None:
            if os.isatty(2):
                os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
            os._exit(128 + number)
        self.came = number

    def instead_of(self, error: BaseException) -> BaseException:
        """What a signal stands for, if one came: an error after it may be its consequence (as in an import)."""
        if self.came is None or isinstance(error, KeyboardInterrupt):
            return error
        found = _raised(self.came)
        found.__cause__ = error
        return found


@contextmanager
def ending_signals() -> Iterator[Ending]:
    """Let SIGTERM raise Terminated as Ctrl-C raises KeyboardInterrupt, and a second signal end the process at once.

    For programs, not for libraries. A signal that the process was told to ignore (as shells do with SIGINT for what
    they start in the background), or that somebody else handles, stays as it is; so do both in another thread than
    the main one.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    taken = {number: usual[number] for number in _SIGNALS if signal.getsignal(number) is usual[number]}
    for number in taken:
        signal.signal(number, ending)
    try:
        yield ending
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
    hold = _Hold({n: h for n, h in found.items() if h is signal.default_int_handler or isinstance(h, Ending)})
    for number in hold.held:
        signal.signal(number, hold)
    try:
        yield hold.check
    finally:
        for number, handler in hold.held.items():
            signal.signal(number, handler)
    hold.check()


class _Hold:
    """A handler that notes the first signal, and acts on the second as those that it stands for."""

    def __init__(self, held: Mapping[signal.Signals, Any]) -> None:
        self.held = held
        self._came: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        handler = self.held[signal.Signals(number)]
        if isinstance(handler, Ending):
            handler.note(number)
        elif self._came is not None:
            handler(number, frame)
        self._came = number

    def check(self) -> None:
        """Raise what the signal that came stands for."""
        if self._came is not None:
            raise _raised(self._came)


def _raised(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
