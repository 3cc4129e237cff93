"""The images that a report shows: read again when needed, the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.images import render
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
from onnxviz.runtime import cores

__all__ = ["Gallery"]

Array: TypeAlias = NDArray[Any]

_ARRAY_BYTES, _PICTURE_BYTES = 48 << 20, 128 << 20
_THUMBNAIL = 160
_QUALITY = 70
_PIXEL_ART = 48
"""Pictures up to this size are stored without loss."""


class _Latest:
    """Arrays by number, the latest ones of so many bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._arrays: OrderedDict[int, Array] = OrderedDict()

    def get(self, index: int) -> Array | None:
        if index in self._arrays:
            self._arrays.move_to_end(index)
        return self._arrays.get(index)

    def keep(self, index: int, array: Array) -> Array:
        self._arrays[index] = array
        self._bytes += array.nbytes
        while self._bytes > self._most and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


class Gallery:
    """Images of a source by number: as input arrays, as pictures, and as thumbnails in a folder.

    ``folder`` is where thumbnails go; ``relative`` is how a report in the folder above names it. ``known`` are pictures
    that are at hand already.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        folder: Path,
        relative: str,
        known: Mapping[int, NDArray[np.uint8]] | None = None,
    ) -> None:
        self._source = source
        self._preprocess = preprocess
        self._folder = folder
        self._relative = relative
        self._arrays = _Latest(_ARRAY_BYTES)
        self._pictures = _Latest(_PICTURE_BYTES)
        self._known = known or {}
        self._thumbnails: set[int] = set()
        self._ending: str | None = None

    def array(self, index: int) -> Array:
        """The input array (C, H, W) of an image.

        Raises:
            ImageError: it can no longer be read.
        """
        found = self._arrays.get(index)
        if found is None:
            found = self._arrays.keep(index, self._read(index))
        return found

    def batch(self, indices: Sequence[int]) -> Array:
        """Input arrays of several images, in the network's own layout; those not at hand are read in threads."""
        missing = [index for index in indices if self._arrays.get(index) is None]
        read: dict[int, Array] = {}
        if len(missing) > 1:
            with ThreadPoolExecutor(self._source.readers or cores(), "onnxviz-decode") as pool:
                read = dict(zip(missing, pool.map(self._read, missing), strict=True))
        for index, array in read.items():
            self._arrays.keep(index, array)
        return self._preprocess.batch([read[i] if i in read else self.array(i) for i in indices])

    def picture(self, index: int) -> NDArray[np.uint8]:
        """What the network saw: (H, W, 3) uint8."""
        found = self._known.get(index)
        if found is None:
            found = self._pictures.get(index)
        if found is None:
            found = self._pictures.keep(index, self._preprocess.picture(self.array(index)))
        return found if found.shape[2] == 3 else np.broadcast_to(found, (*found.shape[:2], 3))

    def _read(self, index: int) -> Array:
        return self._preprocess(self._source.samples[index].read())

    def name(self, index: int) -> tuple[str, str | None]:
        """An image's name and class."""
        sample = self._source.samples[index]
        return sample.name, sample.label

    def thumbnail(self, index: int, run: Callable[..., object] | None = None) -> str:
        """The path, relative to the report, of an image's thumbnail; written when first asked for.

        ``run`` is called with what writes it, a function and its arguments, to do so in another thread.
        """
        path = self.thumbnail_path(index)
        if index not in self._thumbnails:
            if not self._thumbnails:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._thumbnails.add(index)
            (run or _now)(_write_thumbnail, self.picture(index), self._folder / Path(path).name)
        return path

    def thumbnail_path(self, index: int) -> str:
        """Where `thumbnail` writes it."""
        if self._ending is None:  # the same for all: the network saw them in one size
            small = max(self.picture(index).shape[:2]) <= _PIXEL_ART
            self._ending = ".webp" if small else ".jpg"
        return f"{self._relative}/{index:07d}{self._ending}"


def _now(work: Callable[..., object], *arguments: object) -> object:
    return work(*arguments)


def _write_thumbnail(picture: NDArray[np.uint8], path: Path) -> None:
    render.save(render.fit(picture, _THUMBNAIL), path, lossless=True, quality=_QUALITY)
