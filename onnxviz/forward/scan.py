"""The scan: every image once through the network, the best of every channel kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.forward.probes import layer_probes, reduced
from onnxviz.forward.responses import Responses, ResponsesBuilder
from onnxviz.forward.topk import ChannelStats, TopK, TopKBuilder
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
from onnxviz.interrupts import held_interrupts
from onnxviz.model.layers import Layer
from onnxviz.runtime import cores

if TYPE_CHECKING:
    from onnxviz.network import Network

__all__ = ["RANKS", "LayerScan", "Scan", "Workload", "prepared", "scan", "workload"]

Array: TypeAlias = NDArray[Any]
Progress: TypeAlias = Callable[[int, int], None]

RANKS = ("max", "sum", "first")
"""Order images by a channel's largest activation, by the sum over its map, or not at all."""

MOST_HITS = 100
"""The largest ``top``: a channel's pictures are one file, and browsers and formats limit their size."""

_LARGEST_BATCH = 32
_CACHED_BYTES, _MOST_BYTES, _ALL_BYTES = 32 << 20, 256 << 20, 1 << 30
"""What the two largest activations of a run may take: by default, where larger batches pay, and of all runs at once."""
_MOST_DECODERS = 32


@dataclass(frozen=True)
class LayerScan:
    """What a scan found in a layer. ``overall`` ranks images by all channels together (one row).

    ``responses`` are of a sample of the images.
    """

    layer: Layer
    topk: TopK
    overall: TopK
    stats: ChannelStats
    responses: Responses


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    ``skipped`` are (name, reason) of images that could not be read; ``note`` says if batches were special.
    """

    layers: tuple[LayerScan, ...]
    images: int
    skipped: tuple[tuple[str, str], ...]
    note: str | None


def scan(
    network: Network,
    source: Source,
    layers: Sequence[Layer],
    preprocess: Preprocess,
    *,
    top: int = 9,
    rank: str = "max",
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Find each channel's top images.

    Args:
        top: how many to keep.
        rank: one of `RANKS`.
        limit: read only the first so many samples.
        batch_size: images a run; see `workload` for the default.
        progress: called with (images done, images in all).

    Raises:
        NoImagesError: not one image could be read.
        UsageError: a number out of range, an unknown ranking.
    """
    if rank not in RANKS:
        raise UsageError(f"Ranking {rank!r} is not known. Choose one of {', '.join(RANKS)}.")
    for name, number in (("top", top), ("limit", limit), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise UsageError(f"The {name} must be 1 or more, not {number}.")
    if top > MOST_HITS:
        raise UsageError(f"At most {MOST_HITS} images are kept for each channel, not {top}.")
    total = min(len(source.samples), limit or len(source.samples))
    load = workload(network, layers, total)
    size = batch_size or load.batch
    # onnxruntime runs last what comes first here; so each layer is reduced as soon as it is there, and then let go.
    on_cpu = network.provider == "cpu"
    probes = [
        probe
        for layer in reversed(layers)
        for probe in layer_probes(layer, network.model.opset, blocks=on_cpu)
    ]
    runner = network.runner([], probes=probes, threads=load.threads)
    runner.decide()
    tally = _Tally(layers, top, rank)
    skipped: list[tuple[str, str]] = []
    done = images = 0
    running: deque[tuple[_Batch, Future[dict[str, Array]] | None]] = deque()

    def finish_first() -> None:
        nonlocal done, images
        batch, future = running.popleft()
        if future:
            tally.add(future.result(), np.array(batch.images, np.int64))
        images += len(batch.images)
        done += len(batch.images) + len(batch.bad)
        if progress:
            progress(done, total)

    with (
        held_interrupts() as check,
        closing(prepared(source, preprocess, total, ahead=(load.workers + 1) * size)) as items,
        ThreadPoolExecutor(load.workers, "onnxviz-forward") as pool,
    ):
        for batch in _batches(items, size):
            for index, reason in batch.bad:
                name = source.samples[index].name
                skipped.append((name, reason.removeprefix(f"{name}: ")))
            x = network.feed(preprocess.batch(batch.arrays)) if batch.arrays else None
            running.append((batch, None if x is None else pool.submit(runner.run, x)))
            check()
            # One batch waits, so that no worker does.
            while len(running) > load.workers:
                finish_first()
                check()
        while running:
            finish_first()
            check()
    if not images:
        reasons = f" The first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise NoImagesError(f"{source.description}: not one image could be read.{reasons}")
    return Scan(tally.layers(), images, tuple(skipped), runner.note)


class _Tally:
    """What was found so far, of all channels of all layers side by side: NumPy is slow at many small arrays."""

    def __init__(self, layers: Sequence[Layer], top: int, rank: str) -> None:
        self._layers, self._rank = layers, rank
        ends = np.cumsum([layer.channels for layer in layers])
        self._starts = ends - [layer.channels for layer in layers]
        self._widths = np.repeat([layer.grid[1] for layer in layers], [layer.channels for layer in layers])
        self._topk = TopKBuilder(int(ends[-1]), top)
        self._overall = TopKBuilder(len(layers), top)
        self._stats = ChannelStats.empty(int(ends[-1]), 0)
        self._responses = ResponsesBuilder(int(ends[-1]))

    def add(self, outputs: Mapping[str, Array], images: Array) -> None:
        """Count a batch: its raw outputs, and the numbers (N,) of its images."""
        parts = [reduced(layer, outputs) for layer in self._layers]
        values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        finite = np.isfinite(values["max"]) & np.isfinite(values["sum"])
        score = values["sum" if self._rank == "sum" else "max"]
        score = np.where(finite, np.zeros_like(score) if self._rank == "first" else score, np.nan)
        self._topk.add(score, values["max"], images, values["argmax"])
        together = np.add.reduceat(np.where(finite, np.maximum(score, 0), 0), self._starts, 1, np.float64)
        some = np.logical_or.reduceat(finite, self._starts, axis=1)
        together = np.where(some, together, np.nan)
        self._overall.add(together, together, images, np.zeros(together.shape, np.int64))
        self._stats = self._stats.merge(ChannelStats.of_batch(values, 0))
        self._responses.add(images, np.where(finite, values["max"], np.float32(np.nan)))

    def layers(self) -> tuple[LayerScan, ...]:
        """The layers, each for itself."""
        found = []
        topk, overalls = self._topk.topk(self._widths), self._overall.topk()
        responses = self._responses.responses()
        for index, (layer, start) in enumerate(zip(self._layers, self._starts, strict=True)):
            part = slice(int(start), int(start) + layer.channels)
            stats = self._stats.channels(part, math.prod(layer.size))
            overall = overalls.channels(slice(index, index + 1))
            found.append(LayerScan(layer, topk.channels(part), overall, stats, responses.channels(part)))
        return tuple(found)


@dataclass(frozen=True)
class Workload:
    """How a scan shares its work out: images a run, runs at once, and threads in each."""

    batch: int
    workers: int
    threads: int | None


def workload(network: Network, layers: Sequence[Layer], images: int) -> Workload:
    """Shares for a scan of so many images.

    On a CPU each core runs batches of its own: small operators leave cores idle when several share one, and what a
    small batch leaves behind is still in the cache when it is read. Fully connected layers ask for larger batches,
    since their weights are read anew in each.
    """
    shapes = network.shapes()
    needed = network.graph.ancestors(layer.tensor for layer in layers) & network.graph.descendants(
        network.image.name
    )
    fixed = network.image.batch or 1
    largest = sorted((4 * math.prod(shapes[name]) // fixed for name in needed), reverse=True)[:2]
    image = max(sum(largest), 1)

    def batch(most: int, images: int) -> int:
        images = min(most // image, _LARGEST_BATCH, images)
        return max(fixed, images // fixed * fixed)

    if network.provider != "cpu":
        return Workload(batch(_MOST_BYTES, images), 1, None)
    available = cores()
    workers = max(1, min(available, _ALL_BYTES // image, images))
    dense = sum(
        4 * network.constants[name].size
        for node in network.graph.nodes
        if node.output in needed and node.op in ("Gemm", "MatMul")
        for name in node.inputs[1:2]
        if name in network.constants
    )
    most = min(max(dense, _CACHED_BYTES), _MOST_BYTES, _ALL_BYTES // workers)
    return Workload(batch(most, math.ceil(images / workers)), workers, max(1, available // workers))


def prepared(
    source: Source, preprocess: Preprocess, total: int, *, ahead: int
) -> Generator[tuple[int, Array | ImageError], None, None]:
    """The first ``total`` samples as input arrays (C, H, W), in order, decoded ``ahead`` in threads."""

    def read(index: int) -> Array | ImageError:
        try:
            return preprocess(source.samples[index].read())
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(_MOST_DECODERS, cores()), "onnxviz-decode") as pool:
        waiting: deque[Future[Array | ImageError]] = deque()
        following = 0
        try:
            for index in range(total):
                while following < total and len(waiting) < ahead:
                    waiting.append(pool.submit(read, following))
                    following += 1
                yield index, waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Batch:
    """Some images and their arrays, and (index, reason) of what was skipped on the way."""

    images: list[int]
    arrays: list[Array]
    bad: list[tuple[int, str]]


def _batches(items: Iterator[tuple[int, Array | ImageError]], size: int) -> Iterator[_Batch]:
    """Batches of up to ``size`` images."""
    batch = _Batch([], [], [])
    for index, item in items:
        if isinstance(item, ImageError):
            batch.bad.append((index, str(item)))
        else:
            batch.images.append(index)
            batch.arrays.append(item)
        if len(batch.arrays) == size:
            yield batch
            batch = _Batch([], [], [])
    if batch.images or batch.bad:
        yield batch
