"""The summary of a run: counts, reasons, times, rates and memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from onnxviz.console.summary import Recap, duration, peak_memory
from onnxviz.progress import OPENING, SCANNING


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _course(clock: Clock, resumed: int = 0) -> Recap:
    """A second to open, two for ten images (three of them bad), half a second of other work, four to draw."""
    recap = Recap(clock)
    recap.start(OPENING, 0, "")
    clock.now += 1
    recap.finish()
    recap.start(SCANNING, 10 + resumed, "images")
    recap.resumed(resumed)
    for index in range(10):
        clock.now += 0.2
        if index in (2, 5):
            recap.skipped(f"{index}.jpg", f"cut short ({index},000 bytes left)")
        if index == 7:
            recap.skipped("7.txt", "not an image")
        recap.advance()
    recap.finish()
    clock.now += 0.5
    for name in ("conv1", "conv2"):
        recap.start(f"Projecting {name}", 30, "projections")
        recap.advance(30)
        clock.now += 2
        recap.finish()
    return recap


def test_it_counts_and_takes_the_time(clock):
    summary = _course(clock).summary(complete=True)
    assert summary.complete
    assert (summary.images, summary.images_skipped) == (7, 3)
    assert summary.seconds == pytest.approx(7.5)
    assert [(p.name, p.done, p.total, round(p.seconds, 6)) for p in summary.phases] == [
        ("Opening", 0, 0, 1),
        ("Scanning", 10, 10, 2),
        ("Projecting conv1", 30, 30, 2),
        ("Projecting conv2", 30, 30, 2),
    ]
    assert summary.images_per_second == pytest.approx(5)
    assert (summary.projections, summary.projections_per_second) == (60, pytest.approx(15))


def test_reasons_are_grouped_whatever_numbers_stand_in_them(clock):
    summary = _course(clock).summary(complete=True)
    assert [(r.reason, r.count, r.first) for r in summary.skipped] == [
        ("cut short (2,000 bytes left)", 2, "2.jpg"),
        ("not an image", 1, "7.txt"),
    ]
    assert summary.skipped_lines() == [
        "skipped 2 × cut short (2,000 bytes left); the first: 2.jpg",
        "skipped 7.txt: not an image",
    ]


def test_many_reasons_take_three_lines(clock):
    recap = Recap(clock)
    for index, reason in enumerate("aaabbcde"):
        recap.skipped(f"{index}.jpg", reason)
    assert recap.summary(complete=True).skipped_lines() == [
        "skipped 3 × a; the first: 0.jpg",
        "skipped 2 × b; the first: 3.jpg",
        "skipped 3 more for 3 other reasons",
    ]


def test_its_lines(clock):
    lines = _course(clock).summary(complete=True).lines()
    assert lines[0] == "7 images scanned, 3 skipped; 5 images/s"
    assert lines[1] == "60 projections drawn; 15 projections/s"
    assert lines[2].startswith(
        "7.5 s: opening 1.0 s, scanning 2.0 s, projecting 4.0 s, other work 0.5 s; at most "
    )
    assert len(lines) == 3


def test_images_of_a_former_run_are_not_in_the_rate(clock):
    summary = _course(clock, resumed=1000).summary(complete=True)
    assert summary.images == 1007
    assert summary.images_per_second == pytest.approx(5)
    assert (
        summary.lines()[0]
        == "1,007 images scanned, 3 skipped; 5 images/s; 1,000 were there from a former run"
    )


def test_a_phase_that_goes_on_is_in_it(clock):
    recap = Recap(clock)
    recap.start(SCANNING, 10, "images")
    recap.advance(4)
    clock.now += 2
    summary = recap.summary(complete=False)
    assert [(p.done, p.seconds) for p in summary.phases] == [(4, 2)]
    assert not summary.complete
    assert (summary.images, summary.images_per_second) == (4, 2)


def test_nothing_at_all(clock):
    summary = Recap(clock).summary(complete=True)
    assert (summary.images, summary.images_per_second, summary.projections_per_second) == (0, None, None)
    assert [line.partition(";")[0] for line in summary.lines()] == ["0.0 s"]
    assert summary.skipped_lines() == []


def test_facts_are_json(clock):
    facts = json.loads(json.dumps(_course(clock).summary(complete=True).facts(), allow_nan=False))
    assert {key: facts[key] for key in ("images", "skipped", "projections", "seconds")} == {
        "images": 7,
        "skipped": 3,
        "projections": 60,
        "seconds": 7.5,
    }
    assert facts["reasons"][1] == {"reason": "not an image", "count": 1, "first": "7.txt"}
    assert facts["phases"][1] == {
        "phase": "Scanning",
        "done": 10,
        "resumed": 0,
        "total": 10,
        "unit": "images",
        "seconds": 2.0,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.449, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 0 min"),
        (5 * 3600 + 185, "5 h 3 min"),
        (2 * 86400 + 4 * 3600 + 100, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# Memory

PEAK = """
import subprocess, sys
from onnxviz.console.summary import Recap
recap = Recap()
small = recap.summary(complete=True)
if sys.argv[1] == "own":
    block = bytearray(b"1") * (256 << 20)
    del block
if sys.argv[1] == "child":
    subprocess.run([sys.executable, "-c", "bytearray(b'1') * (256 << 20)"], check=True)
large = recap.summary(complete=True)
for one in (small, large):
    print(one.peak_memory, one.peak_memory_children)
"""


def _peaks(who: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, who], capture_output=True, text=True, timeout=60, check=True
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="memory is not told there")
def test_peak_memory_is_the_largest_there_was():
    ballast = bytearray(b"1") * (300 << 20)  # a child must not take it for its own
    before, _, after, children = _peaks("own")
    assert len(ballast) == 300 << 20
    assert before < 100 << 20
    assert 250 << 20 <= after - before < 300 << 20
    assert children == 0


@pytest.mark.skipif(sys.platform == "win32", reason="memory is not told there")
def test_peak_memory_of_child_processes():
    before, none, after, children = _peaks("child")
    assert none == 0
    assert after - before < 20 << 20
    assert 256 << 20 <= children < 320 << 20


def test_where_memory_is_not_told(clock, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory() == (None, None)
    summary = _course(clock).summary(complete=True)
    assert (summary.facts()["peak_memory"], summary.facts()["peak_memory_children"]) == (None, None)
    assert summary.lines()[-1].endswith("other work 0.5 s")
