"""Ctrl-C is held back until it does no harm."""

from __future__ import annotations

import signal
import threading

import pytest

from onnxviz.interrupts import held_interrupts


def test_it_waits_until_it_is_asked_for():
    steps = []
    with pytest.raises(KeyboardInterrupt), held_interrupts() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
        check()
        steps.append("too far")
    assert steps == ["went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_one_does_not_wait():
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_handlers_of_others_stay():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with held_interrupts() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


def test_other_threads_change_nothing():
    found = []

    def work() -> None:
        with held_interrupts() as check:
            check()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
