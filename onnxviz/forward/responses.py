"""How strongly a sample of the images excites every channel: what histograms and correlations are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Responses", "ResponsesBuilder", "capacity", "taken"]

Array: TypeAlias = NDArray[Any]

_MOST_BYTES = 2 << 20
_LEAST_IMAGES = 512
_ROWS_AT_ONCE = 1024
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ divided by the golden ratio, odd


@dataclass(frozen=True)
class Responses:
    """Each channel's largest activation in each image of a sample: all images, or one in ``every``.

    Whether an image is in it follows from its number alone (`taken`), so that the sample does not depend on how the
    images were split. ``image`` (S,) are the numbers, ascending; ``largest`` (S, C) is NaN where a channel was not
    finite.
    """

    every: int
    image: Array
    largest: Array

    @classmethod
    def empty(cls, channels: int) -> Responses:
        """No images yet."""
        return cls(1, np.zeros(0, np.int64), np.zeros((0, channels), np.float32))

    def channels(self, part: slice) -> Responses:
        """Of some channels only."""
        return Responses(self.every, self.image, self.largest[:, part])

    def histogram(self, channel: int, bins: int, most: float | None = None) -> tuple[float, float, Array]:
        """Least value, largest value, and how many images lie in each of ``bins`` equal parts between them.

        Args:
            most: a larger value that the parts must reach, such as the largest of all images.
        """
        values = self.largest[:, channel]
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return float("nan"), float("nan"), np.zeros(bins, np.int64)
        low, high = float(values.min()), max(float(values.max()), -np.inf if most is None else most)
        counts = np.zeros(bins, np.int64)
        scale = bins / (high - low) if high > low else 0.0
        np.add.at(counts, np.minimum((values - low) * scale, bins - 1).astype(np.intp), 1)
        return low, high, counts

    def sparseness(self) -> Array:
        """How few images excite each channel, (C,): 0 if all do alike, 1 if only one does; NaN for a dead channel.

        The lifetime sparseness of Vinje and Gallant (Science, 2000) of the activations above 0:
        (1 − mean(a)² / mean(a²)) / (1 − 1/S).
        """
        fine = np.isfinite(self.largest)
        values = np.where(fine, np.maximum(self.largest, 0), 0).astype(np.float64)
        counted = fine.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means, squares = values.sum(0) / counted, (values * values).sum(0) / counted
            found: Array = (1 - means**2 / squares) / (1 - 1 / counted)
        return np.where(counted > 1, found, np.nan)

    def correlated(self, count: int) -> tuple[Array, Array]:
        """For each channel the others that go up and down with it: their numbers and Pearson's r, each (C, ``count``).

        The most correlated comes first. Where there are fewer, or a channel never changes, the number is -1 and r NaN.
        """
        values = self.largest.astype(np.float64)
        fine = np.isfinite(values)
        values = np.where(fine, values, 0) - np.where(fine, values, 0).sum(0) / np.maximum(fine.sum(0), 1)
        values = np.where(fine, values, 0)
        length = np.sqrt((values * values).sum(0))
        # Differences at the level of rounding are none.
        flat = length <= 1e-6 * np.sqrt(len(values)) * np.abs(np.where(fine, self.largest, 0)).max(
            0, initial=0
        )
        unit = values / np.where(flat, 1, length)
        channels = unit.shape[1]
        number = np.full((channels, count), -1, np.int64)
        r = np.full((channels, count), np.nan, np.float32)
        kept = min(count, channels - 1)
        for start in range(0, channels if kept > 0 else 0, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, channels))
            # In which order a product adds depends on the number of cores; what is shown, and what is equal, does not.
            found = np.round(unit[:, rows].T @ unit, 6)
            found[rows - start, rows] = -np.inf
            found[:, flat] = -np.inf
            order = np.argsort(-found, axis=1, kind="stable")[:, :kept]
            best = np.take_along_axis(found, order, 1)
            usable = np.isfinite(best) & ~flat[rows][:, None]
            number[rows, :kept] = np.where(usable, order, -1)
            r[rows, :kept] = np.where(usable, np.clip(best, -1, 1), np.nan)
        return number, r

    def merge(self, other: Responses, most: int | None = None) -> Responses:
        """Of the images of both, none of which is in both; thinned out if there are more than ``most``.

        A sample of up to so many images, however it came about, is that of the smallest ``every`` that leaves no more.
        """
        every = max(self.every, other.every)
        image, largest = (np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("image", "largest"))
        while True:
            kept = np.flatnonzero(taken(image, every))
            if most is None or len(kept) <= most:
                break
            every *= 2
        kept = kept[np.argsort(image[kept], kind="stable")]
        return Responses(every, image[kept], largest[kept])


def taken(images: Array, every: int) -> Array:
    """Which of some images, by number, belong to a sample of one in ``every``, a power of 2.

    Those whose multiple of the golden ratio has a fraction below 1/every: they lie evenly, and never in step with an
    order that repeats itself, as of classes that take turns. Of a smaller sample all are in the larger ones.
    """
    spread: Array = images.astype(np.uint64) * _GOLDEN
    return spread <= np.uint64(2**64 // every - 1)


def capacity(channels: int, most_bytes: int = _MOST_BYTES) -> int:
    """How many images a sample may have: what ``most_bytes`` hold, but 512 whatever they take."""
    return max(_LEAST_IMAGES, most_bytes // max(4 * channels, 1))


class ResponsesBuilder:
    """Takes a sample as the images come in: all of them until there are too many, then one in 2, 4, 8 …

    It goes on from a sample ``found`` before, if only `Responses.empty`.

    Args:
        most_bytes: what the sample may take (`capacity`).
    """

    def __init__(self, found: Responses, most_bytes: int = _MOST_BYTES) -> None:
        # All at once, and touched as it fills: small pieces that live long would keep freed memory from being used.
        count, channels = found.largest.shape
        most = max(capacity(channels, most_bytes), count)
        self._image = np.empty(most, np.int64)
        self._largest = np.empty((most, channels), np.float32)
        self._image[:count], self._largest[:count] = found.image, found.largest
        self._count = count
        self._every = found.every

    def add(self, images: Array, largest: Array) -> None:
        """Count a batch: the numbers of its images (N,), and (N, C) of largest activations, NaN where not finite."""
        for row in range(len(images)):
            while self._takes(images[row]) and self._count == len(self._image):
                self._thin_out()
            if self._takes(images[row]):
                self._image[self._count], self._largest[self._count] = images[row], largest[row]
                self._count += 1

    def _takes(self, image: Any) -> bool:
        return bool(taken(np.array([image]), self._every)[0])

    def _thin_out(self) -> None:
        self._every *= 2
        kept = np.flatnonzero(taken(self._image[: self._count], self._every))
        for to, at in enumerate(kept.tolist()):  # in place, a row at a time
            self._image[to], self._largest[to] = self._image[at], self._largest[at]
        self._count = len(kept)

    def responses(self) -> Responses:
        """The sample so far."""
        order = np.argsort(self._image[: self._count], kind="stable")
        return Responses(self._every, self._image[order], self._largest[order])
