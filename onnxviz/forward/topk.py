"""The strongest images of every channel, kept in a stream and mergeable in any order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChannelStats", "Hit", "TopK", "TopKBuilder"]

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

    def merge(self, other: TopK) -> TopK:
        """The best of both, as many as ``other`` keeps."""
        k = other.score.shape[1]
        joined = {name: np.concatenate([mine, theirs], axis=1) for name, mine, theirs in self._pairs(other)}
        order = np.lexsort((joined["image"], -joined["score"]), axis=1)[:, :k]
        return TopK(**{name: np.take_along_axis(array, order, axis=1) for name, array in joined.items()})

    def channels(self, part: slice) -> TopK:
        """Of some channels only."""
        return TopK(**{name: array[part] for name, array in self.arrays().items()})

    def first(self, k: int) -> TopK:
        """The best ``k`` of each channel only."""
        return TopK(**{name: array[:, :k] for name, array in self.arrays().items()})

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


class TopKBuilder:
    """The best ``k`` images of each channel so far, as they come in; sorted when they are asked for (`topk`).

    What an image costs is a comparison a channel, and a little more where it gets a place, which is soon rare.
    """

    def __init__(self, channels: int, k: int) -> None:
        self._score = np.full((channels, k), -np.inf, np.float64)
        self._activation = np.full((channels, k), -np.inf, np.float32)
        self._image = np.full((channels, k), _NO_IMAGE, np.int64)
        self._place = np.zeros((channels, k), np.int64)
        # Of each channel the place to be lost next: where it is, its score and its image.
        self._slot = np.zeros(channels, np.intp)
        self._last = self._score[:, 0].copy()
        self._holder = self._image[:, 0].copy()

    def add(self, score: Array, activation: Array, images: Array, place: Array) -> None:
        """Count a batch: the numbers of its images (N,), and (N, C) each of scores, of strongest units and where
        they are in their flattened maps. Scores that are no number, or −∞, rank nowhere.
        """
        for row, image in enumerate(images):
            new = score[row]
            better = (new > self._last) | ((new == self._last) & (image < self._holder) & (new > -np.inf))
            rows = np.flatnonzero(better)
            if not len(rows):
                continue
            at = (rows, self._slot[rows])
            self._score[at] = new[rows]
            self._activation[at] = activation[row, rows]
            self._image[at] = image
            self._place[at] = place[row, rows]
            scores = self._score[rows]
            last = scores.min(1)
            holders = np.where(scores == last[:, None], self._image[rows], -1)
            slot = holders.argmax(1)
            self._slot[rows], self._last[rows] = slot, last
            self._holder[rows] = holders[np.arange(len(rows)), slot]

    def topk(self, widths: Array | int = 1) -> TopK:
        """The best, best first. ``widths`` of maps, (C,) or one for all, tell in which row and column a place is."""
        order = np.lexsort((self._image, -self._score), axis=1)
        score, activation, image, place = (
            np.take_along_axis(a, order, 1) for a in (self._score, self._activation, self._image, self._place)
        )
        y, x = np.divmod(place, np.reshape(widths, (-1, 1)))
        return TopK(score, activation, image, y.astype(np.int32), x.astype(np.int32))


@dataclass(frozen=True)
class ChannelStats:
    """What all images together say of each channel; every array is (C,).

    ``images``: how many were counted. ``total``: the sum over all their units. ``active_images``: those with a unit
    above 0. ``not_finite``: images in which the channel had NaN or infinity (not counted elsewhere).
    ``positions`` is the number of units of a map.
    """

    positions: int
    images: Array
    largest: Array
    total: Array
    active_images: Array
    not_finite: Array

    @classmethod
    def empty(cls, channels: int, positions: int) -> ChannelStats:
        """No images yet."""
        return cls(
            positions,
            np.zeros(channels, np.int64),
            np.full(channels, -np.inf, np.float32),
            np.zeros(channels, np.float64),
            np.zeros(channels, np.int64),
            np.zeros(channels, np.int64),
        )

    @classmethod
    def of_batch(cls, found: Mapping[str, Array], positions: int) -> ChannelStats:
        """Of one batch's reductions (`probes.reduced`), each (N, C)."""
        largest, total = found["max"], found["sum"]
        fine = np.isfinite(largest) & np.isfinite(total)
        if not fine.all():
            largest, total = np.where(fine, largest, -np.inf), np.where(fine, total, 0)
        return cls(
            positions,
            fine.sum(0),
            largest.max(0),
            total.sum(0, dtype=np.float64),
            (largest > 0).sum(0),
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
            self.total + other.total,
            self.active_images + other.active_images,
            self.not_finite + other.not_finite,
        )

    def arrays(self) -> dict[str, Array]:
        """All arrays, by name, for saving."""
        return {name: value for name, value in vars(self).items() if name != "positions"}
