"""The scan: every image once through the network, the best of every channel kept."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.forward.probes import layer_probes, reduced
from onnxviz.forward.topk import ChannelStats, TopK
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
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
    probes = [probe for layer in layers for probe in layer_probes(layer, network.model.opset)]
    runner = network.runner([], probes=probes)
    found = [
        LayerScan(
            layer,
            TopK.empty(layer.channels, top),
            TopK.empty(1, top),
            ChannelStats.empty(layer.channels, math.prod(layer.size)),
        )
        for layer in layers
    ]
    skipped: list[tuple[str, str]] = []
    done = images = 0
    for indices, arrays, bad in _batches(prepared(source, preprocess, total, ahead=2 * size), size):
        for index, reason in bad:
            name = source.samples[index].name
            skipped.append((name, reason.removeprefix(f"{name}: ")))
        done += len(indices) + len(bad)
        if indices:
            images += len(indices)
            outputs = runner.run(network.feed(preprocess.batch(arrays)))
            found = [_updated(one, outputs, np.array(indices, np.int64), rank) for one in found]
        if progress:
            progress(done, total)
    if not images:
        reasons = f" The first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise NoImagesError(f"{source.description}: not one image could be read.{reasons}")
    return Scan(tuple(found), images, tuple(skipped), runner.note)


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
) -> Iterator[tuple[int, Array | ImageError]]:
    """The first ``total`` samples as input arrays (C, H, W), in order, decoded ``ahead`` in threads."""

    def read(index: int) -> Array | ImageError:
        try:
            return preprocess(source.samples[index].read())
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "onnxviz-decode") as pool:
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


def _batches(
    items: Iterator[tuple[int, Array | ImageError]], size: int
) -> Iterator[tuple[list[int], list[Array], list[tuple[int, str]]]]:
    """Indices and arrays of up to ``size`` images, and what was skipped on the way."""
    indices: list[int] = []
    arrays: list[Array] = []
    bad: list[tuple[int, str]] = []
    for index, item in items:
        if isinstance(item, ImageError):
            bad.append((index, str(item)))
        else:
            indices.append(index)
            arrays.append(item)
        if len(arrays) == size:
            yield indices, arrays, bad
            indices, arrays, bad = [], [], []
    if indices or bad:
        yield indices, arrays, bad


def _updated(one: LayerScan, outputs: dict[str, Array], images: Array, rank: str) -> LayerScan:
    layer = one.layer
    values = reduced(layer, outputs)
    y, x = np.divmod(values["argmax"], layer.grid[1])
    finite = np.isfinite(values["max"]) & np.isfinite(values["min"]) & np.isfinite(values["sum"])
    score = values["sum" if rank == "sum" else "max"]
    score = np.where(finite, np.zeros_like(score) if rank == "first" else score, np.nan)
    k = one.topk.score.shape[1]
    batch = TopK.of_batch(score, values["max"], images, y, x, k)
    together = np.where(finite, np.maximum(score, 0), 0).sum(1, dtype=np.float64)[:, None]
    together = np.where(finite.any(1, keepdims=True), together, np.nan)
    zeros = np.zeros(together.shape, np.int32)
    overall = TopK.of_batch(together, together, images, zeros, zeros, k)
    return LayerScan(
        layer,
        batch.merge(one.topk),
        overall.merge(one.overall),
        one.stats.merge(ChannelStats.of_batch(values, one.stats.positions)),
    )
