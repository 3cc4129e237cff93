"""The strongest images of every channel, kept in a stream and mergeable in any order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.forward import exact

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

    def folded(self, widths: Array) -> TopK:
        """With places in flattened maps, which are all in ``x``, as rows and columns of maps ``widths`` (C,) wide."""
        y, x = np.divmod(self.x, np.reshape(widths, (-1, 1)))
        return TopK(self.score, self.activation, self.image, y.astype(np.int32), x.astype(np.int32))

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

    It goes on from those ``found`` before, if only `TopK.empty`. Places in flattened maps stand in ``x``.
    What an image costs is a comparison a channel, and a little more where it gets a place, which is soon rare.
    """

    def __init__(self, found: TopK) -> None:
        self._score, self._activation, self._image = (
            array.copy() for array in (found.score, found.activation, found.image)
        )
        self._place = found.x.astype(np.int64)
        # Of each channel the place to be lost next: where it is, its score and its image.
        channels, k = self._score.shape
        self._slot = np.full(channels, k - 1, np.intp)
        self._last = self._score[:, -1].copy()
        self._holder = self._image[:, -1].copy()

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

    def topk(self) -> TopK:
        """The best, best first; all places are in ``x`` (`TopK.folded`)."""
        order = np.lexsort((self._image, -self._score), axis=1)
        score, activation, image, place = (
            np.take_along_axis(a, order, 1) for a in (self._score, self._activation, self._image, self._place)
        )
        return TopK(score, activation, image, np.zeros(place.shape, np.int32), place.astype(np.int32))


@dataclass(frozen=True)
class ChannelStats:
    """What all images together say of each channel; every array is (C,), but for ``sums`` (`exact.PLACES`, C).

    ``images``: how many were counted. ``sums``: over all their units, exact (`exact.digits`). ``active_images``: those
    with a unit above 0. ``not_finite``: images in which the channel had NaN or infinity (not counted elsewhere).
    ``positions`` is the number of units of a map.
    """

    positions: int
    images: Array
    largest: Array
    sums: Array
    active_images: Array
    not_finite: Array

    @classmethod
    def empty(cls, channels: int, positions: int) -> ChannelStats:
        """No images yet."""
        return cls(
            positions,
            np.zeros(channels, np.int64),
            np.full(channels, -np.inf, np.float32),
            np.zeros((exact.PLACES, channels), np.int64),
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
            exact.digits(total),
            (largest > 0).sum(0),
            (~fine).sum(0),
        )

    @cached_property
    def total(self) -> Array:
        """The sum over all units of all images, (C,) float64."""
        return exact.rounded(self.sums)

    def channels(self, part: slice, positions: int) -> ChannelStats:
        """Of some channels only, whose maps have ``positions`` units."""
        return ChannelStats(positions, **{name: array[..., part] for name, array in self.arrays().items()})

    def merge(self, other: ChannelStats) -> ChannelStats:
        """Of the images of both; the same to the last bit however images were shared out."""
        return ChannelStats(
            self.positions,
            self.images + other.images,
            np.maximum(self.largest, other.largest),
            self.sums + other.sums,
            self.active_images + other.active_images,
            self.not_finite + other.not_finite,
        )

    def arrays(self) -> dict[str, Array]:
        """All arrays, by name, for saving."""
        names = ("images", "largest", "sums", "active_images", "not_finite")
        return {name: getattr(self, name) for name in names}
