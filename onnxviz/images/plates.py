"""Plates: the pictures of one channel's hits, laid out in two files, a card and strips.

A card is the paper's Fig. 2: a grid of projections beside the same grid of patches. The strips show each hit's
activation map and projection once more, inside the receptive field and on the whole frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxviz.images import render
from onnxviz.images.fitting import inscribed

__all__ = ["HitTiles", "Plate", "PlateStyle"]

Array: TypeAlias = NDArray[Any]
Picture: TypeAlias = NDArray[np.uint8]

_MAT = (29, 30, 33)
_CARD_TILE = 72
_STRIP_TILE = 80
_PIXELATED = 36
"""Receptive fields up to this many pixels are stored and shown pixel by pixel."""


@dataclass(frozen=True)
class HitTiles:
    """One hit's pictures: two for the card, five for the strips, each (h, w, 3) uint8."""

    projection: Picture
    patch: Picture
    strips: tuple[Picture, ...]


@dataclass(frozen=True)
class PlateStyle:
    """Sizes of a layer's tiles.

    Args:
        field: the receptive field (height, width) in input pixels.
        frame: the image, likewise.
        stride, offset: where the unit at p sees from: stride·p + offset; stride None: all of the image.
    """

    field: tuple[int, int]
    frame: tuple[int, int]
    stride: tuple[int, int] | None
    offset: tuple[int, int]

    @property
    def pixelated(self) -> bool:
        """Whether tiles are to be enlarged without smoothing."""
        return max(self.field) <= _PIXELATED

    @property
    def card_tile(self) -> tuple[int, int]:
        """(height, width) of a card's tile: the receptive field's own size, or less."""
        return _within(self.field, _CARD_TILE)

    @property
    def strip_tile(self) -> tuple[int, int]:
        """(height, width) of a strip's tile: a square, in which fields and frames of any shape are mounted."""
        larger = max(self.frame)
        size = min(larger * max(1, _STRIP_TILE // larger), _STRIP_TILE)
        return size, size

    def tiles(
        self, image: Picture, projection: Array, activation: Array, box: tuple[int, int, int, int]
    ) -> HitTiles:
        """Draw one hit.

        Args:
            image: (H, W, 3) uint8, the frame that the network saw.
            projection: (h, w, 3 or 1) float, over the box.
            activation: (h, w) float, the channel's map, or (1, 1) for a vector.
            box: the unit's receptive field: top, left, bottom, right, not clipped.
        """
        patch = render.crop(image, box)
        side = self.strip_tile[0]
        field, frame = inscribed(self.field, side), inscribed(self.frame, side)
        strips = (
            self._map(activation, box, field),
            _scaled(patch, field),
            _drawn(projection, field),
            self._map(activation, (0, 0, *self.frame), frame),
            self._on_frame(projection, box, frame),
        )
        return HitTiles(
            projection=_drawn(projection, self.card_tile),
            patch=_scaled(patch, self.card_tile),
            strips=tuple(_mounted(strip, side) for strip in strips),
        )

    def _map(self, activation: Array, box: tuple[int, int, int, int], size: tuple[int, int]) -> Picture:
        """The part of an activation map that lies over ``box``, drawn at ``size``; grey outside the image."""
        top, left, bottom, right = box
        scale = (size[0] / (bottom - top), size[1] / (right - left))
        stride = None
        if self.stride is not None:
            stride = (self.stride[0] * scale[0], self.stride[1] * scale[1])
            offset = ((self.offset[0] - top) * scale[0], (self.offset[1] - left) * scale[1])
            field = (self.field[0] * scale[0], self.field[1] * scale[1])
            cells = render.resize_map(activation, size, stride, offset, field)
        else:
            cells = render.resize_map(activation, size, None)
        drawn = render.heatmap_rgb(cells, largest=float(activation.max(initial=0)))
        for axis, (low, scale_, limit) in enumerate(zip((top, left), scale, self.frame, strict=True)):
            at = low + (np.arange(size[axis]) + 0.5) / scale_
            outside = (at < 0) | (at >= limit)
            if outside.any():
                drawn[(slice(None),) * axis + (outside,)] = render.GREY
        return drawn

    def _on_frame(self, projection: Array, box: tuple[int, int, int, int], size: tuple[int, int]) -> Picture:
        """A projection where it lies on the whole frame, the rest mid-grey."""
        top, left, bottom, right = box
        height, width = self.frame
        clipped = render.crop(
            projection, (max(-top, 0), max(-left, 0), min(bottom, height) - top, min(right, width) - left)
        )
        full = np.full((*size, 3), render.GREY, np.uint8)
        if not clipped.size:
            return full
        scale = (size[0] / height, size[1] / width)
        y0, x0 = int(max(top, 0) * scale[0]), int(max(left, 0) * scale[1])
        y1 = max(y0 + 1, min(size[0], round(min(bottom, height) * scale[0])))
        x1 = max(x0 + 1, min(size[1], round(min(right, width) * scale[1])))
        full[y0:y1, x0:x1] = _drawn(clipped, (y1 - y0, x1 - x0))
        return full


def _within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """``size``, or less of the same shape where a side exceeds ``most``; slivers are stretched."""
    return inscribed(size, min(max(size), most))


def _mounted(picture: Picture, side: int) -> Picture:
    """A picture in the middle of a square of the report's dark mat."""
    height, width = picture.shape[:2]
    if height == width == side:
        return picture
    tile = np.full((side, side, 3), _MAT, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = picture
    return tile


def _scaled(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture at ``size``: averaged when it shrinks, pixel by pixel when it grows."""
    if picture.shape[:2] == size:
        return picture
    shrinks = picture.shape[0] >= size[0] and picture.shape[1] >= size[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0]), how))


def _drawn(projection: Array, size: tuple[int, int]) -> Picture:
    """A projection (h, w, 3 or 1) drawn at ``size``.

    It shrinks before it is scaled to full contrast: fine structure of both signs averages out, and what is left
    would be nearly grey.
    """
    height, width = projection.shape[:2]
    if height > size[0] or width > size[1]:
        shrunk = [
            Image.fromarray(np.ascontiguousarray(projection[:, :, c], np.float32)).resize(
                (min(size[1], width), min(size[0], height)), Image.Resampling.BOX
            )
            for c in range(projection.shape[2])
        ]
        projection = np.stack([np.asarray(image) for image in shrunk], axis=2)
    return _scaled(render.projection_rgb(projection), size)


@dataclass(frozen=True)
class Plate:
    """The finished pictures of one channel: (H, W, 3) uint8, and how they are divided."""

    card: Picture
    strips: Picture
    card_grid: tuple[int, int]
    strip_grid: tuple[int, int]

    @classmethod
    def of(cls, hits: Sequence[HitTiles]) -> Plate:
        """Lay hits out: projections beside patches in a square-ish grid; strips with one column a hit."""
        columns = math.ceil(math.sqrt(len(hits)))
        rows = math.ceil(len(hits) / columns)
        halves = [
            render.grid(tiles, columns, rows=rows)
            for tiles in ([hit.projection for hit in hits], [hit.patch for hit in hits])
        ]
        strips = [hit.strips[row] for row in range(5) for hit in hits]
        return cls(
            np.concatenate(halves, axis=1),
            render.grid(strips, len(hits)),
            (rows, 2 * columns),
            (5, len(hits)),
        )
