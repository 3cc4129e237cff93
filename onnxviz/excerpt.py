"""Fewer images of each channel: a layer's pictures, cut and laid out anew, with neither the model nor the images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxviz.atlas import LayerAtlas
from onnxviz.errors import AtlasError
from onnxviz.images import render
from onnxviz.images.plates import Plate, card_grid, first_tiles
from onnxviz.pictures import write_montage
from onnxviz.places import compared_path, picture_paths, plate_style
from onnxviz.runtime import cores

__all__ = ["cut_layer"]

Array: TypeAlias = NDArray[Any]

_QUALITY = 95
"""Of tiles that are stored with loss a second time, in JPEG's terms: much above the first, so that it does not show."""


def cut_layer(
    one: LayerAtlas, whole: LayerAtlas, folder: Path, frame: tuple[int, int], ways: int = 0
) -> LayerAtlas:
    """Replace the pictures of ``whole`` in a folder by those of ``one``, the same layer with fewer hits.

    What is stored without loss stays exact.

    Args:
        frame: the images' size (height, width).
        ways: how many ways of projecting it is compared with.

    Returns:
        The layer with its montage, if it had one.

    Raises:
        AtlasError: a picture is damaged.
    """
    style = plate_style(one.layer, frame)

    def cut(channel: int | None) -> Array:
        had, kept = (
            len(layer.overall_hits if channel is None else layer.topk.hits(channel)) for layer in (whole, one)
        )
        card, strips = (folder / path for path in picture_paths(one.slug, channel, style))
        plate = Plate(
            _read(card, card_grid(had), style.card_tile), _read(strips, (2, had), style.strip_tile),
            card_grid(had), (2, had),
        )  # fmt: skip
        if kept < had:
            plate = plate.first(kept)
            render.save(plate.card, card, lossless=True, quality=_QUALITY)
            render.save(plate.strips, strips, quality=_QUALITY)
            if ways:
                path = folder / compared_path(one.slug, channel, style)
                rows, columns = card_grid(had)
                sheet = _read(path, (rows, columns // 2 * ways), style.card_tile)
                render.save(first_tiles(sheet, ways, had, kept), path, lossless=True, quality=_QUALITY)
        return plate.card

    channels = [*([None] if one.overall_hits else []), *one.alive]
    with ThreadPoolExecutor(cores(), "onnxviz-encode") as pool:
        cards = {
            channel: card
            for channel, card in zip(channels, pool.map(cut, channels), strict=True)
            if channel is not None and one.montage
        }
    return replace(one, montage=write_montage(cards, one, folder) if cards else None)


def _read(path: Path, grid: tuple[int, int], tile: tuple[int, int]) -> Array:
    """A picture of that many tiles: (H, W) colours of `render.PALETTE` if it is stored so, else (H, W, 3)."""
    try:
        with Image.open(path) as image:
            picture = np.asarray(image if image.mode == "P" else image.convert("RGB"))
    except OSError as error:
        raise AtlasError(
            f"{path.name}: the atlas is damaged: this picture cannot be read ({error})."
        ) from error
    expected = (grid[0] * tile[0], grid[1] * tile[1])
    if picture.shape[:2] != expected:
        raise AtlasError(
            f"{path.name}: the atlas is damaged: this picture has {picture.shape[0]}×{picture.shape[1]} pixels, "
            f"not {expected[0]}×{expected[1]}."
        )
    return picture
