"""Turns: one thread at a time, and of those that wait the one that wants what comes first."""

from __future__ import annotations

import random
import threading
import time

import pytest

from onnxviz.images.turns import Turns


def waiting(turns: Turns, count: int) -> None:
    while len(turns._waiting) < count:
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(3))
def test_who_waits_goes_in_order(seed: int) -> None:
    turns, order = Turns(), list[int]()
    positions = [*range(20), 7]

    def go(position: int) -> None:
        with turns.at(position):
            order.append(position)

    threads = []
    with turns.at(100):
        for number, position in enumerate(random.Random(seed).sample(positions, len(positions))):
            threads.append(threading.Thread(target=go, args=(position,)))
            threads[-1].start()
            waiting(turns, number + 1)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == sorted(positions)


def test_an_error_passes_the_turn_on() -> None:
    turns = Turns()
    with pytest.raises(KeyError), turns.at(1):
        raise KeyError
    with turns.at(2):
        pass


def test_one_at_a_time() -> None:
    turns, inside, most = Turns(), [0], [0]

    def go(position: int) -> None:
        for _ in range(200):
            with turns.at(position):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=go, args=(position % 3,)) for position in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]
    assert inside == [0]
