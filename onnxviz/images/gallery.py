"""The images that a report shows: read again when needed, the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.images import render
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source

__all__ = ["Gallery"]

Array: TypeAlias = NDArray[Any]

_CACHE_BYTES = 256 << 20
_THUMBNAIL = 160
_QUALITY = 70
_PIXEL_ART = 48
"""Pictures up to this size are stored without loss."""


class Gallery:
    """Images of a source by number: as input arrays, as pictures, and as thumbnails in a folder.

    ``folder`` is where thumbnails go; ``relative`` is how a report in the folder above names it.
    """

    def __init__(self, source: Source, preprocess: Preprocess, folder: Path, relative: str) -> None:
        self._source = source
        self._preprocess = preprocess
        self._folder = folder
        self._relative = relative
        self._arrays: OrderedDict[int, Array] = OrderedDict()
        self._thumbnails: dict[int, str] = {}
        self._bytes = 0
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    def array(self, index: int) -> Array:
        """The input array (C, H, W) of an image.

        Raises:
            ImageError: it can no longer be read.
        """
        if index in self._arrays:
            self._arrays.move_to_end(index)
            return self._arrays[index]
        array = self._preprocess(self._source.samples[index].read())
        self._arrays[index] = array
        self._bytes += array.nbytes
        while self._bytes > _CACHE_BYTES and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def batch(self, indices: list[int]) -> Array:
        """Input arrays of several images, in the network's own layout."""
        return self._preprocess.batch([self.array(index) for index in indices])

    def picture(self, index: int) -> NDArray[np.uint8]:
        """What the network saw: (H, W, 3) uint8. The last one is kept: hits come sorted by image."""
        if self._last is None or self._last[0] != index:
            picture = self._preprocess.picture(self.array(index))
            self._last = index, np.broadcast_to(picture, (*picture.shape[:2], 3))
        return self._last[1]

    def name(self, index: int) -> tuple[str, str | None]:
        """An image's name and class."""
        sample = self._source.samples[index]
        return sample.name, sample.label

    def thumbnail(self, index: int) -> str:
        """The path, relative to the report, of an image's thumbnail; written when first asked for."""
        if index not in self._thumbnails:
            picture = render.fit(self.picture(index), _THUMBNAIL)
            small = max(picture.shape[:2]) <= _PIXEL_ART
            file = f"{index:07d}{'.webp' if small else '.jpg'}"
            self._folder.mkdir(parents=True, exist_ok=True)
            render.save(picture, self._folder / file, lossless=True, quality=_QUALITY)
            self._thumbnails[index] = f"{self._relative}/{file}"
        return self._thumbnails[index]
