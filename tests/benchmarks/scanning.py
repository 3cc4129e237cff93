"""Images a second: scans, and forward runs, beside plain onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxviz.runtime import providers
from tests.benchmarks import photos
from tests.benchmarks.bench import Bench
from tests.benchmarks.ours import Array, Ours, array_source, decode_all
from tests.benchmarks.timing import Goal, Row, alternately, cores, ms, timed

__all__ = ["arrays", "forward", "jpegs"]

BATCH = 32
_SCANNED = ("alexnet", "resnet50", "mobilenet_v2")


def arrays(bench: Bench) -> Iterator[Row]:
    """A scan of all convolutions, arrays in memory, beside running the same cut graph.

    The scan counts from the end of its first batch; the plain run has its session beforehand. The graph is the one
    that onnxviz runs, without its reductions: where it has a faster form of an operator, both sides have it.
    """
    for name in _SCANNED:
        pair = bench.pair(name)
        x = bench.inputs(BATCH, pair.net.size)
        x = np.concatenate([x] * (2 if bench.quick else 8))
        last = [layer for layer in pair.ours.net.layers if layer.op == "Conv"][-1]
        plain = pair.ours.net.runner([last.tensor])
        rounds = alternately(
            _steady(pair.ours, x),
            timed(lambda plain=plain, x=x: _in_batches(plain.run, x), len(x)),
            rounds=bench.rounds,
        )
        ours, peer = (median(side) for side in zip(*rounds, strict=True))
        yield Row(
            f"{pair.net.name}: scan of all convolutions, arrays, to plain inference of the same graph",
            f"{ms(ours)} an image",
            f"{ms(peer)} an image",
            tuple(p / o for o, p in rounds),
            Goal(0.95),
        )


def jpegs(bench: Bench) -> Iterator[Row]:
    """A scan from JPEG files, beside decoding them all and then running the network on as many arrays.

    Everything counts on both sides, sessions too. On CUDA, beside the slower of the two.
    """
    count = 64 if bench.quick else 512
    pair = bench.pair("alexnet")
    folder = bench.photos(count)
    if bench.provider == "cuda":
        count *= 8  # starting takes longer, and all else less
        folder = photos.links(bench.folder / f"links-{count}", folder, count)
    source = pair.ours.source(folder)
    x = bench.inputs(BATCH, pair.net.size)
    last = [layer for layer in pair.ours.net.layers if layer.op == "Conv"][-1]

    def infer() -> None:
        runner = pair.ours.net.runner([last.tensor])
        for start in range(0, count, BATCH):
            runner.run(x[: min(BATCH, count - start)])

    rounds = alternately(
        timed(lambda: pair.ours.scan(source), count),
        timed(lambda: decode_all(source, pair.ours.recipe), count),
        timed(infer, count),
        rounds=bench.rounds,
    )
    ours, decode, run = (median(side) for side in zip(*rounds, strict=True))
    if bench.provider == "cuda":
        ratios, what, goal = (
            [max(rest) / scan for scan, *rest in rounds],
            "the slower of decoding and",
            Goal(0.85),
        )
    else:
        ratios, what, goal = [sum(rest) / scan for scan, *rest in rounds], "decoding, then", Goal(0.95)
    yield Row(
        f"AlexNet: scan from JPEG files of 500×375, {cores()} cores, {bench.provider}, to {what} inference alone",
        f"{ms(ours)} an image",
        f"{ms(decode)}, {ms(run)} an image",
        tuple(ratios),
        goal,
    )


def forward(bench: Bench) -> Iterator[Row]:
    """AlexNet to its last rectifier, as onnxviz runs it and as onnxruntime runs the file."""
    pair = bench.pair("alexnet")
    x = bench.inputs(BATCH, pair.net.size)
    session = ort.InferenceSession(str(pair.ours.path), providers=providers(bench.provider))
    file = session.run(None, {"image": x})[0]
    own = pair.ours.net.activations(x, "relu5")
    difference = float(np.abs(own - file).max() / np.abs(file).max())
    rounds = alternately(
        timed(lambda: pair.ours.net.activations(x, "relu5"), len(x)),
        timed(lambda: session.run(None, {"image": x}), len(x)),
        rounds=bench.rounds,
    )
    ours, peer = (median(side) for side in zip(*rounds, strict=True))
    yield Row(
        f"AlexNet forward to relu5, to onnxruntime on the file (results differ by {difference:.0e})",
        f"{ms(ours)} an image",
        f"{ms(peer)} an image",
        tuple(p / o for o, p in rounds),
        Goal(1.4),
    )


def _steady(ours: Ours, x: Array) -> Callable[[], float]:
    """A side: seconds an image of a scan, from the end of its first batch on."""
    source = array_source(x)

    def side() -> float:
        stamps: list[tuple[int, float]] = []
        ours.scan(source, progress=lambda done, total: stamps.append((done, time.perf_counter())))
        (first, start), (last, end) = stamps[0], stamps[-1]
        return (end - start) / (last - first)

    return side


def _in_batches(run: Callable[[Array], Any], x: Array) -> None:
    for start in range(0, len(x), BATCH):
        run(x[start : start + BATCH])
