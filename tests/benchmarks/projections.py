"""Projections a second: `Network.project_units` beside Captum's `NeuronDeconvolution`.

A round of ours projects nine hits of sixteen channels in one call. Running their images forward again, to record
what the way back needs, is part of it, and much of it: so it matters how many hits an image has. A layer's are
spread over 36 images, four each, which is what a report on one layer finds among 1,000 photographs (AlexNet's conv5:
2,304 hits on 687 images). For all layers together they are spread over twelve images, twelve each, since `analyze`
runs each image once for all of them (12,384 hits on 950). A round of the peer's projects one channel's nine hits a
call, on their nine images, for a second at least.

Beside each time is that of its multiply-adds at the rate of the machine's fastest large matrix product: what a
projection would take if nothing but convolutions cost anything, and these as little as can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from tests.benchmarks.bench import Bench, Pair
from tests.benchmarks.ours import Array
from tests.benchmarks.peers import Captum, disagreement
from tests.benchmarks.timing import Goal, Row, alternately, matrix_products, ms, timed

__all__ = ["alexnet", "arithmetic", "middle_layers", "resnet50", "vgg16"]

TOP = 9
_LEAST_SECONDS = 1.0
_MIDDLE = {"mobilenet_v2": "block 10", "inception_v3": "Mixed_6b", "densenet121": "block 3"}


@dataclass(frozen=True)
class Measured:
    """A layer: seconds a projection of each round, and by how much the first results differ.

    ``rounds``: ours with hits spread over many images, ours with few, the peer's, and the time of ours' multiply-adds
    alone: its own, and its share of those of running its image forward (on a CPU, else 0).
    """

    title: str
    channels: int
    rounds: tuple[tuple[float, ...], ...]
    difference: float

    def row(self, goal: Goal | None = None) -> Row:
        """The ratio, the peer's time to ours."""
        ours, _, peer, least = (median(side) for side in zip(*self.rounds, strict=True))
        text = f"{ms(ours)}, its multiply-adds alone {ms(least)}" if least else ms(ours)
        return Row(self.title, text, ms(peer), tuple(p / o for o, _, p, _ in self.rounds), goal)


def alexnet(bench: Bench) -> Iterator[Row]:
    """Each convolution of AlexNet, and all their channels together."""
    goals = {"conv5": Goal(10)}
    yield from _layers(bench, "alexnet", goals, "all channels of conv1–conv5", Goal(20))


def vgg16(bench: Bench) -> Iterator[Row]:
    """Two layers of VGG16."""
    yield from _layers(bench, "vgg16", {"conv5_3": Goal(8), "conv4_3": Goal(30)})


def resnet50(bench: Bench) -> Iterator[Row]:
    """The last convolution of each stage of ResNet-50, and all their channels together."""
    goals = {f"stage {stage}": Goal(4) for stage in range(1, 5)}
    yield from _layers(bench, "resnet50", goals, "all channels of the four", Goal(6))


def middle_layers(bench: Bench) -> Iterator[Row]:
    """A middle layer of MobileNet v2, Inception v3 and DenseNet-121."""
    for name, layer in _MIDDLE.items():
        yield from _layers(bench, name, {layer: Goal(5)})


def arithmetic(bench: Bench) -> Iterator[Row]:
    """A projection beside its multiply-adds at the rate of this machine's fastest large matrix product.

    Nine images and 64 channels, so that the recording, whose multiply-adds are not counted, is a small part.
    """
    pair = bench.pair("alexnet")
    x = bench.inputs(TOP, pair.net.size)
    for layer in ("conv5", "conv3"):
        alias, channels = pair.aliases[layer], _spread(pair.net.channels(layer), 8 if bench.quick else 64)
        units = pair.ours.hits(x, alias, channels, TOP)
        work = pair.ours.multiply_adds(alias)
        project = _projecting(pair, x, alias, units)
        found = alternately(project, *matrix_products(), rounds=bench.rounds)
        ours, rate = (median(row[0] for row in found), median(min(row[1:]) for row in found))
        yield Row(
            f"AlexNet {layer}: a projection, to its {work / 1e6:.3g} million multiply-adds",
            ms(ours),
            f"{ms(work * rate)} at {1e-9 / rate:.3g} billion a second",
            tuple(row[0] / (work * min(row[1:])) for row in found),
            Goal(2.5, at_least=False),
        )


def measure(bench: Bench, pair: Pair, layer: str, x: Array, channels: Sequence[int]) -> Measured:
    """One layer: the hits of some channels among the images ``x``, projected by both sides in turn.

    Ours also with the hits among the first third of the images.
    """
    alias = pair.aliases[layer]
    units = pair.ours.hits(x, alias, channels, TOP)
    few = x[: max(TOP, len(x) // 3)]
    captum = Captum(pair.net, layer, cut=bench.cut, device=bench.provider)
    first = units[:TOP]
    answer = pair.ours.project(x, alias, first)
    difference = disagreement(captum.project(x, first), answer.pixels, answer.boxes.tolist())

    def peer() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < _LEAST_SECONDS and done < len(units):
            captum.project(x, units[done : done + TOP])
            done += TOP
        return (time.perf_counter() - start) / done

    products = matrix_products() if bench.provider == "cpu" else (lambda: 0.0,)
    work = pair.ours.multiply_adds(alias) + pair.ours.forward_multiply_adds(alias) * len(x) / len(units)
    rounds = alternately(
        _projecting(pair, x, alias, units),
        _projecting(pair, few, alias, pair.ours.hits(few, alias, channels, TOP)),
        peer,
        lambda: work * min(product() for product in products),
        rounds=bench.rounds,
    )
    title = f"{pair.net.name} {layer}: a projection"
    return Measured(title, pair.net.channels(layer), tuple(rounds), difference)


def _layers(
    bench: Bench, name: str, goals: dict[str, Goal], together: str | None = None, goal: Goal | None = None
) -> Iterator[Row]:
    """A row for each measured layer of a network, and one for all channels of all of them."""
    pair = bench.pair(name)
    images, channels = (12, 4) if bench.quick else (36, 16)
    x = bench.inputs(images, pair.net.size)
    found = []
    for layer in pair.net.layers:
        chosen = _spread(pair.net.channels(layer), channels)
        found.append(measure(bench, pair, layer, x, chosen))
        yield found[-1].row(goals.get(layer))
    if together:
        yield _total(f"{pair.net.name}, {together}: their projections", found, goal)


def _total(title: str, found: Sequence[Measured], goal: Goal | None) -> Row:
    counts = np.array([TOP * one.channels for one in found], float)
    seconds = np.array([one.rounds for one in found])  # layer, round, side
    totals = np.tensordot(counts, seconds[..., 1:3], 1)
    ours, peer = np.median(totals, axis=0)
    ratios = tuple(float(p / o) for o, p in totals)
    return Row(f"{title} ({counts.sum():,.0f})", f"{ours:.3g} s", f"{peer:.3g} s", ratios, goal)


def _projecting(pair: Pair, x: Array, alias: str, units: Array) -> Callable[[], float]:
    return timed(partial(pair.ours.project, x, alias, units), len(units))


def _spread(total: int, count: int) -> list[int]:
    """So many of ``total`` channels, evenly."""
    return [index * total // count for index in range(min(count, total))]
