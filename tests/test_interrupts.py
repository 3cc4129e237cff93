"""Ctrl-C and SIGTERM are held back until they do no harm."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from onnxviz.interrupts import Terminated, ending_signals, held_interrupts

SIGNALS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated}


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


def test_one_after_the_last_question_is_not_lost():
    ended = False
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        ended = True
    assert ended


def test_an_inner_block_asks_the_outer_one():
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        with held_interrupts() as check:
            check()
        signal.raise_signal(signal.SIGINT)
        with held_interrupts() as check:
            check()
        pytest.fail("the inner block did not hear of it")


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
        with ending_signals(), held_interrupts() as check:
            check()
            found.extend([signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler, signal.SIG_DFL]


@pytest.mark.parametrize("name", SIGNALS)
def test_both_signals_raise_under_a_program_and_its_handlers_go_with_it(name):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SIGNALS[name]) as caught, ending_signals():
        signal.raise_signal(getattr(signal, name))
    assert type(caught.value) is SIGNALS[name]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", SIGNALS)
def test_both_signals_are_held_under_a_program(name):
    steps = []
    with pytest.raises(SIGNALS[name]) as caught, ending_signals(), held_interrupts() as check:
        signal.raise_signal(getattr(signal, name))
        steps.append("went on")
        check()
        steps.append("too far")
    assert steps == ["went on"]
    assert type(caught.value) is SIGNALS[name]


def test_a_library_does_not_take_sigterm():
    with held_interrupts():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(sys.platform == "win32", reason="no signals between processes")
@pytest.mark.parametrize("held", [True, False], ids=["held", "not-held"])
@pytest.mark.parametrize(
    ("first", "second", "code"), [("SIGINT", "SIGTERM", 143), ("SIGTERM", "SIGINT", 130)]
)
def test_a_second_signal_ends_the_process_at_once(held, first, second, code):
    """Even where what the first one raised is caught, and in the midst of what it waits for."""
    block = "held_interrupts()" if held else "contextlib.suppress(KeyboardInterrupt)"
    script = (
        "import contextlib, signal\n"
        "from onnxviz.interrupts import ending_signals, held_interrupts\n"
        "with ending_signals():\n"
        f"    with {block}:\n"
        f"        signal.raise_signal(signal.{first})\n"
        f"{' ' * (8 if held else 4)}print('after', flush=True)\n"
        f"{' ' * (8 if held else 4)}signal.raise_signal(signal.{second})\n"
        "    print('too far', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "after\n", "")
