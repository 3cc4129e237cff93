"""What is known of some images of a data set: parts that can be put together in any order, or counted on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import AtlasError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.probes import reduced
from onnxviz.forward.ranges import Range
from onnxviz.forward.responses import Responses, ResponsesBuilder, capacity
from onnxviz.forward.topk import ChannelStats, TopK, TopKBuilder
from onnxviz.model.layers import Layer

__all__ = ["BatchResult", "LayerScan", "Part", "Scan", "Skip", "Tally", "ranking"]

Array: TypeAlias = NDArray[Any]

Skip: TypeAlias = tuple[int, str, str]
"""An image that could not be read: its number, its name, and why."""


_MOST_AT_ONCE, _VALUES_AT_ONCE = 32, 1 << 17
"""Images that are counted at once, and at most about so many values of each kind: no batch should wait for long."""


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

    def first(self, top: int) -> LayerScan:
        """With the ``top`` strongest images of each channel only.

        Raises:
            UsageError: there are fewer.
        """
        kept = self.topk.score.shape[1]
        if not 1 <= top <= kept:
            raise UsageError(
                f"The scan kept the {kept} strongest images of each channel; 1 to {kept} can be shown, not {top}."
            )
        return replace(self, topk=self.topk.first(top), overall=self.overall.first(top))


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    ``skipped`` are (name, reason) of images that could not be read; ``note`` says if batches were special.
    """

    layers: tuple[LayerScan, ...]
    images: int
    skipped: tuple[tuple[str, str], ...]
    note: str | None


@dataclass(frozen=True)
class Part:
    """What is known of the images ``done``: all channels of all layers side by side, one layer after the other.

    Two parts that have no image in common make one (`merge`), in any order and any grouping: the result is the same to
    the last bit. Hits have their places in flattened maps (`TopK.folded`). ``notes`` say if batches were special.
    """

    done: tuple[Range, ...]
    topk: TopK
    overall: TopK
    stats: ChannelStats
    responses: Responses
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...]

    @classmethod
    def empty(cls, layers: Sequence[Layer], top: int) -> Part:
        """No images yet."""
        channels = sum(layer.channels for layer in layers)
        return cls(
            (),
            TopK.empty(channels, top),
            TopK.empty(len(layers), top),
            ChannelStats.empty(channels, 0),
            Responses.empty(channels),
            (),
            (),
        )

    @property
    def images(self) -> int:
        """How many images were counted: those that could be read."""
        return ranges.count(self.done) - len(self.skipped)

    def merge(self, other: Part) -> Part:
        """What is known of the images of both.

        Raises:
            AtlasError: some images are in both.
        """
        if both := ranges.overlaps(self.done, other.done):
            raise AtlasError(f"Images {both[0][0]:,} to {both[0][1] - 1:,} are in both parts.")
        return Part(
            ranges.joined((*self.done, *other.done)),
            self.topk.merge(other.topk),
            self.overall.merge(other.overall),
            self.stats.merge(other.stats),
            self.responses.merge(other.responses, capacity(self.responses.largest.shape[1])),
            tuple(sorted((*self.skipped, *other.skipped))),
            tuple(sorted({*self.notes, *other.notes})),
        )

    def scan(self, layers: Sequence[Layer]) -> Scan:
        """What there is to say of each of the layers, which are those that the part is of."""
        topk = self.topk.folded(np.repeat([x.grid[1] for x in layers], [x.channels for x in layers]))
        found, start = [], 0
        for index, layer in enumerate(layers):
            part = slice(start, start := start + layer.channels)
            stats = self.stats.channels(part, math.prod(layer.size))
            overall = self.overall.channels(slice(index, index + 1))
            found.append(LayerScan(layer, topk.channels(part), overall, stats, self.responses.channels(part)))
        skipped = tuple((name, reason) for _, name, reason in self.skipped)
        return Scan(tuple(found), self.images, skipped, " ".join(self.notes) or None)

    def arrays(self) -> dict[str, Array]:
        """All arrays, by name, for saving."""
        groups: dict[str, TopK | ChannelStats] = {
            "topk": self.topk,
            "overall": self.overall,
            "stats": self.stats,
        }
        found = {f"{part}/{name}": a for part, group in groups.items() for name, a in group.arrays().items()}
        return found | {"responses/image": self.responses.image, "responses/largest": self.responses.largest}


@dataclass(frozen=True)
class BatchResult:
    """A batch that was run: all images of the range ``done``.

    ``outputs`` are the network's raw outputs for ``images`` (N,), those that could be read, and None if there are none
    of them; ``skipped`` are the others.
    """

    done: Range
    outputs: Mapping[str, Array] | None
    images: Array
    skipped: tuple[Skip, ...] = ()


def ranking(values: Mapping[str, Array], rank: str) -> Array:
    """What images are ordered by, (N, C), from reductions (`probes.reduced`): NaN where a map is not finite.

    ``rank``: one of `scan.RANKS`.
    """
    finite = np.isfinite(values["max"]) & np.isfinite(values["sum"])
    score = values["sum" if rank == "sum" else "max"]
    return np.where(finite, np.zeros_like(score) if rank == "first" else score, np.nan)


class Tally:
    """Counts batches on top of a part.

    NumPy is slow at many small arrays, so that all channels lie side by side, and batches wait until there are
    enough of them to be counted at once.
    """

    def __init__(self, layers: Sequence[Layer], rank: str, part: Part) -> None:
        self._layers, self._rank = layers, rank
        ends = np.cumsum([layer.channels for layer in layers])
        self._starts = ends - [layer.channels for layer in layers]
        self._before = part
        self._topk, self._overall = TopKBuilder(part.topk), TopKBuilder(part.overall)
        self._stats = part.stats
        self._responses = ResponsesBuilder(part.responses)
        self._done: list[Range] = list(part.done)
        self._skipped: list[Skip] = list(part.skipped)
        self._waiting: list[tuple[Array, dict[str, Array]]] = []
        channels = sum(layer.channels for layer in layers)
        self._enough = min(_MOST_AT_ONCE, max(1, _VALUES_AT_ONCE // max(channels, 1)))
        self.whole = True
        """False while a batch is being counted, and for good if that was broken off."""

    def add(self, batch: BatchResult) -> None:
        """Count a batch."""
        self.whole = False
        if batch.outputs is not None:
            parts = [reduced(layer, batch.outputs) for layer in self._layers]
            values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
            self._waiting.append((batch.images, values))
            if sum(len(images) for images, _ in self._waiting) >= self._enough:
                self._count()
        self._done = list(ranges.joined((*self._done, batch.done)))
        self._skipped += batch.skipped
        self.whole = True

    def _count(self) -> None:
        """Count what waits."""
        images = np.concatenate([images for images, _ in self._waiting])
        each = [values for _, values in self._waiting]
        values = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
        self._waiting.clear()
        score = ranking(values, self._rank)
        finite = ~np.isnan(score)
        self._topk.add(score, values["max"], images, values["argmax"])
        together = np.add.reduceat(np.where(finite, np.maximum(score, 0), 0), self._starts, 1, np.float64)
        some = np.logical_or.reduceat(finite, self._starts, axis=1)
        together = np.where(some, together, np.nan)
        largest = np.clip(together, None, np.finfo(np.float32).max)  # what its place can hold
        self._overall.add(together, largest, images, np.zeros(together.shape, np.int64))
        self._stats = self._stats.merge(ChannelStats.of_batch(values, 0))
        self._responses.add(images, np.where(finite, values["max"], np.float32(np.nan)))

    def part(self, notes: Sequence[str] = ()) -> Part:
        """What is known by now; ``notes`` are added to those from before."""
        if self._waiting:
            self.whole = False
            self._count()
            self.whole = True
        return replace(
            self._before,
            done=tuple(self._done),
            topk=self._topk.topk(),
            overall=self._overall.topk(),
            stats=self._stats,
            responses=self._responses.responses(),
            skipped=tuple(sorted(self._skipped)),
            notes=tuple(sorted({*self._before.notes, *notes})),
        )
