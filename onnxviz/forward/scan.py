"""The scan: every image once through the network, the best of every channel kept."""

from __future__ import annotations

import math
import os
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
from onnxviz.forward.topk import ChannelStats, TopK
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
from onnxviz.interrupts import held_interrupts
from onnxviz.model.layers import Layer

if TYPE_CHECKING:
    from onnxviz.network import Network

__all__ = ["RANKS", "LayerScan", "Scan", "batch_size_for", "prepared", "scan"]

Array: TypeAlias = NDArray[Any]
Progress: TypeAlias = Callable[[int, int], None]

RANKS = ("max", "sum", "first")
"""Order images by a channel's largest activation, by the sum over its map, or not at all."""

MOST_HITS = 100
"""The largest ``top``: a channel's pictures are one file, and browsers and formats limit their size."""

_BATCH_BYTES = 256 << 20
_MOST_DECODERS = 32


@dataclass(frozen=True)
class LayerScan:
    """What a scan found in a layer. ``overall`` ranks images by all channels together (one row)."""

    layer: Layer
    topk: TopK
    overall: TopK
    stats: ChannelStats


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
        batch_size: images a run; by default as many as keep the activations within bounds, 32 at most.
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
    size = batch_size or batch_size_for(network, layers)
    total = min(len(source.samples), limit or len(source.samples))
    # onnxruntime runs last what comes first here; so each layer is reduced as soon as it is there, and then let go.
    on_cpu = network.provider == "cpu"
    probes = [
        probe
        for layer in reversed(layers)
        for probe in layer_probes(layer, network.model.opset, blocks=on_cpu)
    ]
    # Idle threads leave the cores to the decoders.
    runner = network.runner([], probes=probes, spinning=False)
    tally = _Tally(layers, top, rank)
    skipped: list[tuple[str, str]] = []
    done = images = 0
    with (
        held_interrupts() as check,
        closing(prepared(source, preprocess, total, ahead=2 * size)) as items,
        ThreadPoolExecutor(1, "onnxviz-batch") as before,
        ThreadPoolExecutor(1, "onnxviz-tally") as after,
    ):
        # While one batch runs, the next is put together and the one before is counted.
        batches = _batches(items, size, lambda arrays: network.feed(preprocess.batch(arrays)))
        following = before.submit(next, batches, None)
        counted: Future[None] | None = None
        while batch := following.result():
            following = before.submit(next, batches, None)
            for index, reason in batch.bad:
                name = source.samples[index].name
                skipped.append((name, reason.removeprefix(f"{name}: ")))
            if batch.x is not None:
                outputs = runner.run(batch.x)
                if counted:
                    counted.result()
                counted = after.submit(tally.add, outputs, np.array(batch.images, np.int64))
            images += len(batch.images)
            done += len(batch.images) + len(batch.bad)
            if progress:
                progress(done, total)
            check()
        if counted:
            counted.result()
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
        self._topk = TopK.empty(int(ends[-1]), top)
        self._overall = TopK.empty(len(layers), top)
        self._stats = ChannelStats.empty(int(ends[-1]), 0)

    def add(self, outputs: Mapping[str, Array], images: Array) -> None:
        """Count a batch: its raw outputs, and the numbers (N,) of its images."""
        parts = [reduced(layer, outputs) for layer in self._layers]
        values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        y, x = np.divmod(values["argmax"], self._widths)
        finite = np.isfinite(values["max"]) & np.isfinite(values["min"]) & np.isfinite(values["sum"])
        score = values["sum" if self._rank == "sum" else "max"]
        score = np.where(finite, np.zeros_like(score) if self._rank == "first" else score, np.nan)
        self._topk = self._topk.with_batch(score, values["max"], images, y, x)
        together = np.add.reduceat(np.where(finite, np.maximum(score, 0), 0), self._starts, 1, np.float64)
        some = np.logical_or.reduceat(finite, self._starts, axis=1)
        together = np.where(some, together, np.nan)
        zeros = np.zeros(together.shape, np.int32)
        self._overall = self._overall.with_batch(together, together, images, zeros, zeros)
        self._stats = self._stats.merge(ChannelStats.of_batch(values, 0))

    def layers(self) -> tuple[LayerScan, ...]:
        """The layers, each for itself."""
        found = []
        for index, (layer, start) in enumerate(zip(self._layers, self._starts, strict=True)):
            part = slice(int(start), int(start) + layer.channels)
            stats = self._stats.channels(part, math.prod(layer.size))
            overall = self._overall.channels(slice(index, index + 1))
            found.append(LayerScan(layer, self._topk.channels(part), overall, stats))
        return tuple(found)


def batch_size_for(network: Network, layers: Sequence[Layer]) -> int:
    """Images a run, so that the two largest activations on the way stay within bounds."""
    shapes = network.shapes()
    needed = network.graph.ancestors(layer.tensor for layer in layers) & network.graph.descendants(
        network.image.name
    )
    fixed = network.image.batch or 1
    largest = sorted((4 * math.prod(shapes[name]) // fixed for name in needed), reverse=True)[:2]
    return max(1, min(32, _BATCH_BYTES // max(sum(largest), 1)))


def prepared(
    source: Source, preprocess: Preprocess, total: int, *, ahead: int
) -> Generator[tuple[int, Array | ImageError], None, None]:
    """The first ``total`` samples as input arrays (C, H, W), in order, decoded ``ahead`` in threads."""

    def read(index: int) -> Array | ImageError:
        try:
            return preprocess(source.samples[index].read())
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1), "onnxviz-decode") as pool:
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
    """The network's input for some images, None for none, and (index, reason) of what was skipped on the way."""

    images: list[int]
    x: Array | None
    bad: list[tuple[int, str]]


def _batches(
    items: Iterator[tuple[int, Array | ImageError]], size: int, join: Callable[[list[Array]], Array]
) -> Iterator[_Batch]:
    """Batches of up to ``size`` images."""
    images: list[int] = []
    arrays: list[Array] = []
    bad: list[tuple[int, str]] = []
    for index, item in items:
        if isinstance(item, ImageError):
            bad.append((index, str(item)))
        else:
            images.append(index)
            arrays.append(item)
        if len(arrays) == size:
            yield _Batch(images, join(arrays), bad)
            images, arrays, bad = [], [], []
    if images or bad:
        yield _Batch(images, join(arrays) if arrays else None, bad)
