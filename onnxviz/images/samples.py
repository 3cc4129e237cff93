"""Built-in samples, for whoever has no images at hand: digits, or photographs and generated stimuli."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache, partial
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxviz.images.decode import Picture, decode
from onnxviz.images.source import Listing, Sample, Source
from onnxviz.images.stimuli import stimuli

__all__ = ["builtin_source"]

DIGITS = 1000  # of 5,000: enough for every stroke, and a scan stays a matter of seconds
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "china",
    "clock_motion",
    "coffee",
    "coins",
    "flower",
    "grace_hopper",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "rocket",
)
# A photograph's shorter side is cut into so many tiles, besides the whole picture, and every tile is used, or
# every other one as on a chessboard. A unit that likes one thing finds it at each scale, so more tiles would
# fill top nines with one photograph (SqueezeNet's fire8: 6 or more in 7 % of the channels, with this in 3 %).
SCALES = ((2, 1), (3, 2))
# Much the same everywhere: a few tiles say it all, and more would fill a top nine by themselves.
TEXTURES = frozenset({"brick", "clock_motion", "coins", "grass", "gravel", "hubble_deep_field", "moon"})
TEXTURE_TILES = 2
LEAST_CONTRAST = 14.0  # standard deviation of a tile's luminance (0..255) below which it is too plain to tell


def builtin_source(channels: int, height: int, width: int) -> Source:
    """Samples that suit a network's input: digits for one channel, else photographs and stimuli, in RGB.

    Photographs come whole and as tiles of ``height`` to ``width`` that do not overlap; stimuli are drawn at
    ``height`` × ``width`` pixels. The same call gives the same samples in the same order.
    """
    return _digits() if channels == 1 else _photographs_and_stimuli(height, width)


def _digits() -> Source:
    images, marks = _digit_arrays()
    # The file is sorted by digit, as many of each: taken in turn, 0 to 9, any first few are mixed.
    order = np.arange(len(images)).reshape(10, -1)[:, : DIGITS // 10].T.ravel()

    def make(index: int) -> Sample:
        number = int(order[index])
        return Sample(f"digits[{number}]", str(marks[number]), lambda: images[number][:, :, None])

    return Source(
        f"built-in samples ({len(order):,} MNIST digits)", Listing(make, range(len(order))), builtin=True
    )


def _photographs_and_stimuli(height: int, width: int) -> Source:
    tiles = [sample for name in PHOTOGRAPHS for sample in _tiles(name, height, width)]
    drawn = [Sample(made.name, made.kind, made.draw) for made in stimuli(height, width)]
    description = f"{len(tiles)} views of {len(PHOTOGRAPHS)} photographs, {len(drawn)} generated stimuli"
    return Source(f"built-in samples ({description})", (*tiles, *drawn), builtin=True)


def _tiles(name: str, height: int, width: int) -> Iterator[Sample]:
    """A photograph whole, then its tiles, scale by scale."""
    title = name.replace("_", " ")
    photograph = _photograph(name)
    yield Sample(title, title, partial(_cut, name, (0, 0, *photograph.shape[:2])))
    for scale, step in SCALES:
        rows, columns, boxes = _boxes(photograph.shape[0], photograph.shape[1], height, width, scale)
        found = []
        for index, box in enumerate(boxes):
            row, column = divmod(index, columns)
            if (row + column) % step == 0 and _contrast(_cut(name, box)) >= LEAST_CONTRAST:
                place = f"row {row + 1}, column {column + 1}"
                found.append(Sample(f"{title} {rows}×{columns} ({place})", title, partial(_cut, name, box)))
        yield from found[: TEXTURE_TILES if name in TEXTURES else None]


def _boxes(
    height: int, width: int, tile_height: int, tile_width: int, scale: int
) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Rows, columns and boxes (top, left, bottom, right) of as many tiles of the network's shape as fit."""
    factor = min(height / tile_height, width / tile_width) / scale
    h, w = max(1, int(factor * tile_height)), max(1, int(factor * tile_width))
    rows, columns = height // h, width // w
    top, left = (height - rows * h) // 2, (width - columns * w) // 2
    corners = [(top + row * h, left + column * w) for row in range(rows) for column in range(columns)]
    return rows, columns, [(y, x, y + h, x + w) for y, x in corners]


def _cut(name: str, box: tuple[int, int, int, int]) -> Picture:
    top, left, bottom, right = box
    return np.ascontiguousarray(_photograph(name)[top:bottom, left:right])


def _contrast(picture: Picture) -> float:
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    return float(np.asarray(image.convert("L")).std())


@cache
def _photograph(name: str) -> Picture:
    return decode((files("onnxviz") / "data" / "photos" / f"{name}.jpg").read_bytes(), name)


@cache
def _digit_arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    data = (files("onnxviz") / "data" / "digits.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return arrays["x"], arrays["y"]
