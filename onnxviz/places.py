"""Where an atlas and its report keep the pictures of layers and channels."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnxviz.images.plates import PlateStyle
from onnxviz.model.layers import Layer

__all__ = ["FILTERS", "IMAGES", "PICTURES", "compared_path", "picture_paths", "plate_style", "slugs"]

PICTURES = "pictures"
FILTERS = "filters"
IMAGES = "images"
_FOLDERS = (IMAGES, FILTERS)
"""Folders of pictures that belong to no layer."""


def plate_style(layer: Layer, frame: tuple[int, int]) -> PlateStyle:
    """How a layer's pictures are drawn, on images of ``frame`` (height, width)."""
    return PlateStyle(layer.receptive_field, frame, layer.stride, layer.offset, layer.grid)


def picture_paths(slug: str, channel: int | None, style: PlateStyle) -> tuple[str, str]:
    """Paths of a channel's card and strips, relative to the report; None is the row of all channels."""
    stem = _picture_stem(slug, channel)
    return stem + style.card_ending, f"{stem}-strips{style.strips_ending}"


def compared_path(slug: str, channel: int | None, style: PlateStyle) -> str:
    """The path of a channel's projections for comparison, likewise."""
    return f"{_picture_stem(slug, channel)}-compared{style.card_ending}"


def _picture_stem(slug: str, channel: int | None) -> str:
    return f"{PICTURES}/{slug}/{'all' if channel is None else f'{channel:05d}'}"


def slugs(layers: Sequence[Layer]) -> list[str]:
    """For each layer a name that is safe as a file name, unique among them: alias and name."""
    used: set[str] = set()
    found = []
    for layer in layers:
        base = re.sub(r"[^a-z0-9]+", "-", layer.name.casefold()).strip("-")[:48] or layer.alias
        slug = base if base not in {*used, *_FOLDERS} else f"{base}-{layer.alias}"
        while slug in used:
            slug += "-x"
        used.add(slug)
        found.append(slug)
    return found
