"""The strongest images of every channel, kept in a stream and mergeable in any order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChannelStats", "Hit", "TopK"]

Array: TypeAlias = NDArray[Any]

_NO_IMAGE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Hit:
    """An image that excites a channel: what it was ranked by, and its strongest unit there."""

    score: float
    activation: float
    image: int
    y: int
    x: int


@dataclass(frozen=True)
class TopK:
    """The best ``k`` images of each channel, best first; every array is (C, k).

    Empty places have the score −∞. Equal scores go to the image that comes first, so that `merge` is
    associative and commutative, and the result does not depend on how the images were split.
    """

    score: Array
    activation: Array
    image: Array
    y: Array
    x: Array

    @classmethod
    def empty(cls, channels: int, k: int) -> TopK:
        """No images yet."""
        shape = (channels, k)
        return cls(
            np.full(shape, -np.inf, np.float64),
            np.full(shape, -np.inf, np.float32),
            np.full(shape, _NO_IMAGE, np.int64),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
        )

    @classmethod
    def of_batch(cls, score: Array, activation: Array, image: Array, y: Array, x: Array, k: int) -> TopK:
        """Of one batch: ``image`` is (N,), the others (N, C). Scores that are no number rank nowhere."""
        score = np.where(np.isnan(score), -np.inf, score).T.astype(np.float64)
        nowhere = np.isneginf(score)
        every = cls(
            score,
            np.where(nowhere, -np.inf, activation.T).astype(np.float32),
            np.where(nowhere, _NO_IMAGE, image),
            np.where(nowhere, 0, y.T).astype(np.int32),
            np.where(nowhere, 0, x.T).astype(np.int32),
        )
        return every.merge(cls.empty(len(score), k))

    def merge(self, other: TopK) -> TopK:
        """The best of both, as many as ``other`` keeps."""
        k = other.score.shape[1]
        joined = {name: np.concatenate([mine, theirs], axis=1) for name, mine, theirs in self._pairs(other)}
        order = np.lexsort((joined["image"], -joined["score"]), axis=1)[:, :k]
        return TopK(**{name: np.take_along_axis(array, order, axis=1) for name, array in joined.items()})

    def with_batch(self, score: Array, activation: Array, image: Array, y: Array, x: Array) -> TopK:
        """Merged with one batch, given as to `of_batch`: only channels in which an image gets a place are sorted."""
        last, holder = self.score[:, -1], self.image[:, -1]
        better = (score > last) | ((score == last) & (image[:, None] < holder))
        rows = np.flatnonzero(better.any(0))
        if not len(rows):
            return self
        whole = len(rows) == len(last)
        mine = self
        if not whole:
            score, activation, y, x = (array[:, rows] for array in (score, activation, y, x))
            mine = TopK(**{name: array[rows] for name, array in self.arrays().items()})
        merged = TopK.of_batch(score, activation, image, y, x, self.score.shape[1]).merge(mine)
        if whole:
            return merged
        arrays = {name: array.copy() for name, array in self.arrays().items()}
        for name, array in merged.arrays().items():
            arrays[name][rows] = array
        return TopK(**arrays)

    def channels(self, part: slice) -> TopK:
        """Of some channels only."""
        return TopK(**{name: array[part] for name, array in self.arrays().items()})

    def _pairs(self, other: TopK) -> Iterator[tuple[str, Array, Array]]:
        for name in ("score", "activation", "image", "y", "x"):
            yield name, getattr(self, name), getattr(other, name)

    def hits(self, channel: int) -> tuple[Hit, ...]:
        """The images of one channel, best first."""
        columns = np.flatnonzero(self.image[channel] != _NO_IMAGE)
        return tuple(
            Hit(
                float(self.score[channel, i]),
                float(self.activation[channel, i]),
                int(self.image[channel, i]),
                int(self.y[channel, i]),
                int(self.x[channel, i]),
            )
            for i in columns
        )

    def arrays(self) -> dict[str, Array]:
        """All arrays, by name, for saving."""
        return {name: mine for name, mine, _ in self._pairs(self)}


@dataclass(frozen=True)
class ChannelStats:
    """What all images together say of each channel; every array is (C,).

    ``images``: how many were counted. ``active_images``: those with a unit above 0. ``active_units``: units
    above 0 in all. ``not_finite``: images in which the channel had NaN or infinity (not counted elsewhere).
    ``positions`` is the number of units of a map.
    """

    positions: int
    images: Array
    largest: Array
    smallest: Array
    total: Array
    active_images: Array
    active_units: Array
    not_finite: Array

    @classmethod
    def empty(cls, channels: int, positions: int) -> ChannelStats:
        """No images yet."""
        return cls(
            positions,
            np.zeros(channels, np.int64),
            np.full(channels, -np.inf, np.float32),
            np.full(channels, np.inf, np.float32),
            np.zeros(channels, np.float64),
            np.zeros(channels, np.int64),
            np.zeros(channels, np.int64),
            np.zeros(channels, np.int64),
        )

    @classmethod
    def of_batch(cls, found: Mapping[str, Array], positions: int) -> ChannelStats:
        """Of one batch's reductions (`probes.reduced`), each (N, C)."""
        largest, smallest, total, active = (found[name] for name in ("max", "min", "sum", "active"))
        fine = np.isfinite(largest) & np.isfinite(smallest) & np.isfinite(total)
        if not fine.all():
            largest, smallest = np.where(fine, largest, -np.inf), np.where(fine, smallest, np.inf)
            total, active = np.where(fine, total, 0), np.where(fine, active, 0)
        return cls(
            positions,
            fine.sum(0),
            largest.max(0),
            smallest.min(0),
            total.sum(0, dtype=np.float64),
            (largest > 0).sum(0),
            np.rint(active.sum(0, dtype=np.float64)).astype(np.int64),
            (~fine).sum(0),
        )

    def channels(self, part: slice, positions: int) -> ChannelStats:
        """Of some channels only, whose maps have ``positions`` units."""
        return ChannelStats(positions, **{name: array[part] for name, array in self.arrays().items()})

    def merge(self, other: ChannelStats) -> ChannelStats:
        """Of the images of both."""
        return ChannelStats(
            self.positions,
            self.images + other.images,
            np.maximum(self.largest, other.largest),
            np.minimum(self.smallest, other.smallest),
            self.total + other.total,
            self.active_images + other.active_images,
            self.active_units + other.active_units,
            self.not_finite + other.not_finite,
        )

    def arrays(self) -> dict[str, Array]:
        """All arrays, by name, for saving."""
        return {name: value for name, value in vars(self).items() if name != "positions"}
