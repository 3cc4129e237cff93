"""Plates: the pictures of one channel's hits, laid out in two files, a card and strips.

A card is the paper's Fig. 2: a grid of projections beside the same grid of patches. The strips show each hit's
activation map, over the receptive field and over the whole frame. Each projection is drawn once: the report shows
the card's own tile again where it lies on the frame.
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

__all__ = ["Box", "HitTiles", "Plate", "PlateStyle", "card_grid", "first_tiles", "half_grid", "side_by_side"]

Array: TypeAlias = NDArray[Any]
Picture: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]

_CARD_TILE = 72
_STRIP_TILE = 80
_LOSSLESS_TILE = 24
_PIXELATED = 36
"""Receptive fields up to this many pixels are stored and shown pixel by pixel."""


@dataclass(frozen=True)
class HitTiles:
    """One hit's pictures, uint8: two for the card, (h, w, 3), and two maps, (side, side) colours of `PALETTE`."""

    projection: Picture
    patch: Picture
    maps: tuple[Picture, Picture]


@dataclass(frozen=True)
class PlateStyle:
    """Sizes of a layer's tiles, and the files that hold them.

    Args:
        field: the receptive field (height, width) in input pixels.
        frame: the image, likewise.
        stride, offset: where the unit at p sees from: stride·p + offset; stride None: all of the image.
        grid: rows and columns of units.
    """

    field: tuple[int, int]
    frame: tuple[int, int]
    stride: tuple[int, int] | None
    offset: tuple[int, int]
    grid: tuple[int, int]

    @property
    def card_ending(self) -> str:
        """Of a card's file: without loss where its tiles are so small that every pixel shows."""
        return ".webp" if max(self.card_tile) <= _LOSSLESS_TILE else ".jpg"

    @property
    def strips_ending(self) -> str:
        """Of the strips' file: without loss, sharp and small where every unit is a flat cell."""
        return ".png" if max(self.grid) <= self.strip_tile[0] else ".jpg"

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
        """(height, width) of a strip's tile: a square, in which maps of any shape are mounted."""
        larger = max(self.frame)
        size = min(larger * max(1, _STRIP_TILE // larger), _STRIP_TILE)
        return size, size

    def tiles(
        self, images: Sequence[Picture], projections: Array, activations: Array, boxes: Sequence[Box]
    ) -> list[HitTiles]:
        """Draw hits, all at once: each of these steps costs about the same for one as for several.

        Args:
            images: (H, W, 3) uint8 each, the frames that the network saw.
            projections: (m, h, w, 3 or 1) float, over the boxes.
            activations: (m, h, w) float, the channels' maps, or (m, 1, 1) for vectors.
            boxes: the units' receptive fields: top, left, bottom, right, not clipped.
        """
        cells = render.heatmap(activations)
        drawn = self.projections(projections)
        whole = self._map(cells, (0, 0, *self.frame), self.frame)
        frames = {id(image): image for image in images}
        opened = {key: Image.fromarray(image) for key, image in frames.items()} if self._shrinks else {}
        return [
            HitTiles(
                projection=drawn[i],
                patch=self._patch(image, opened.get(id(image)), box),
                maps=(self._map(cells[i], box, self.field), whole[i]),
            )
            for i, (image, box) in enumerate(zip(images, boxes, strict=True))
        ]

    @property
    def _shrinks(self) -> bool:
        """Whether a field is drawn smaller than it is."""
        return self.card_tile != self.field and all(
            tile <= side for tile, side in zip(self.card_tile, self.field, strict=True)
        )

    def _patch(self, image: Picture, opened: Image.Image | None, box: Box) -> Picture:
        """What a unit sees of an image, as a tile; ``opened`` is the image as Pillow has it, where patches shrink."""
        top, left, bottom, right = box
        if opened and min(top, left) >= 0 and bottom <= opened.height and right <= opened.width:
            size = self.card_tile[::-1]
            return np.asarray(opened.resize(size, Image.Resampling.BOX, (left, top, right, bottom)))
        return _scaled(render.crop(image, box), self.card_tile)

    def projections(self, projections: Array) -> Picture:
        """Draw projections (m, h, w, 3 or 1), float, as tiles (m, h, w, 3) of cards.

        They shrink before they are scaled to full contrast: fine structure of both signs averages out, and what is
        left would be nearly grey.
        """
        size = self.card_tile
        height, width = projections.shape[1:3]
        if height > size[0] or width > size[1]:
            projections = _shrunk(projections, (min(size[0], height), min(size[1], width)))
        drawn = render.projection_rgb(projections)
        if drawn.shape[1:3] == size:
            return drawn
        return np.stack([_scaled(one, size) for one in drawn])

    def _map(self, cells: Picture, box: Box, shape: tuple[int, int]) -> Picture:
        """The part of maps (…, h, w) that lies over ``box``, of that shape, mounted in a strip's tile each."""
        side = self.strip_tile[0]
        size = inscribed(shape, side)
        top, left, bottom, right = box
        scale = (size[0] / (bottom - top), size[1] / (right - left))
        if self.stride is not None:
            drawn = render.resize_map(
                cells,
                size,
                (self.stride[0] * scale[0], self.stride[1] * scale[1]),
                ((self.offset[0] - top) * scale[0], (self.offset[1] - left) * scale[1]),
                (self.field[0] * scale[0], self.field[1] * scale[1]),
            )
        else:
            drawn = render.resize_map(cells, size, None)
        if top < 0 or left < 0 or bottom > self.frame[0] or right > self.frame[1]:
            for axis, (low, scale_, limit) in enumerate(zip((top, left), scale, self.frame, strict=True)):
                at = low + (np.arange(size[axis]) + 0.5) / scale_
                np.moveaxis(drawn, axis - 2, 0)[(at < 0) | (at >= limit)] = render.OUTSIDE
        return _mounted(drawn, side)


def _within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """``size``, or less of the same shape where a side exceeds ``most``; slivers are stretched."""
    return inscribed(size, min(max(size), most))


def _mounted(cells: Picture, side: int) -> Picture:
    """Colours (…, h, w) in the middle of a square of the report's dark mat."""
    height, width = cells.shape[-2:]
    if height == width == side:
        return cells
    tile = np.full((*cells.shape[:-2], side, side), render.MAT, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    tile[..., top : top + height, left : left + width] = cells
    return tile


def _scaled(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture at ``size``: averaged when it shrinks, pixel by pixel when it grows."""
    if picture.shape[:2] == size:
        return picture
    shrinks = picture.shape[0] >= size[0] and picture.shape[1] >= size[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0]), how))


def _shrunk(pictures: Array, size: tuple[int, int]) -> Array:
    """Pictures (m, h, w, C) averaged down to ``size``, as float32: all their planes at once."""
    planes = np.moveaxis(pictures, 3, 1).astype(np.float32, copy=False)
    rows = np.ascontiguousarray(_mean_rows(planes, size[0]))
    width = rows.shape[3]
    # As fromarray, without its copies: all rows one above the other.
    image = Image.frombuffer("F", (width, rows.size // width), rows, "raw", "F", 0, 1)
    small = np.asarray(image.resize((size[1], image.height), Image.Resampling.BOX))
    return np.moveaxis(small.reshape(*planes.shape[:2], *size), 1, 3)


def _mean_rows(planes: Array, count: int) -> Array:
    """Planes (…, h, w) with ``count`` rows, each the mean of those whose middle is in its share.

    As Pillow does it, which sums columns first: of rows fewer are then left, and NumPy sums them whole.
    """
    height = planes.shape[-2]
    # A pixel whose middle is on a border goes to the share below.
    edges = (2 * np.arange(count + 1) * height + count) // (2 * count)
    sizes, first = np.diff(edges), edges[:-1]
    least = sizes.min()
    sums: Array = planes.take(first, axis=-2)
    for more in range(1, least):
        sums += planes.take(first + more, axis=-2)
    (larger,) = np.nonzero(sizes > least)
    sums[..., larger, :] += planes.take(first[larger] + least, axis=-2)
    sums /= sizes[:, None].astype(np.float32)
    return sums


def half_grid(hits: int) -> tuple[int, int]:
    """Rows and columns of one half of a card with so many hits: as nearly square as can be."""
    columns = math.ceil(math.sqrt(hits))
    return math.ceil(hits / columns), columns


def card_grid(hits: int) -> tuple[int, int]:
    """Rows and columns of a card: a half of projections, and one of patches."""
    rows, columns = half_grid(hits)
    return rows, 2 * columns


def side_by_side(groups: Sequence[Sequence[Picture]]) -> Picture:
    """Groups of as many tiles of one size, each laid out as a half of a card, in one picture (H, W, 3)."""
    rows, columns = half_grid(len(groups[0]))
    return np.concatenate([render.grid(tiles, columns, rows=rows) for tiles in groups], axis=1)


def first_tiles(picture: Picture, groups: int, hits: int, count: int) -> Picture:
    """Of each of the groups of ``hits`` tiles that `side_by_side` laid out, the first ``count``, laid out anew."""
    rows, columns = half_grid(hits)
    kept = []
    for half in np.split(picture, groups, axis=1):
        lines = [np.split(line, columns, axis=1) for line in np.split(half, rows)]
        kept.append([tile for line in lines for tile in line][:count])
    return side_by_side(kept)


@dataclass(frozen=True)
class Plate:
    """The finished pictures of one channel, and how they are divided.

    ``card`` is (H, W, 3) uint8, ``strips`` (H, W) uint8, colours of `PALETTE`; read from a file with loss, (H, W, 3).
    """

    card: Picture
    strips: Picture
    card_grid: tuple[int, int]
    strip_grid: tuple[int, int]

    @classmethod
    def of(cls, hits: Sequence[HitTiles]) -> Plate:
        """Lay hits out: projections beside patches in a square-ish grid; strips with one column a hit."""
        strips = [np.concatenate(tiles, axis=1) for tiles in zip(*(hit.maps for hit in hits), strict=True)]
        card = side_by_side([[hit.projection for hit in hits], [hit.patch for hit in hits]])
        return cls(card, np.concatenate(strips), card_grid(len(hits)), (len(strips), len(hits)))

    def first(self, count: int) -> Plate:
        """The first ``count`` hits alone, laid out as `of` would."""
        rows, columns = self.strip_grid
        strips = self.strips[:, : self.strips.shape[1] // columns * count]
        return Plate(first_tiles(self.card, 2, columns, count), strips, card_grid(count), (rows, count))
