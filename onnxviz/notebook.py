"""How an atlas, its parts and projections show themselves in a notebook: fragments that stand on their own."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import AtlasError
from onnxviz.images import render
from onnxviz.report.templating import open_templates

if TYPE_CHECKING:
    from jinja2 import Template

    from onnxviz.atlas import Atlas
    from onnxviz.report.data import ChannelData, Sprite
    from onnxviz.views import Channel, LayerView

__all__ = ["atlas_html", "card_png", "channel_html", "layer_html", "projections_png"]

Array: TypeAlias = NDArray[Any]

_CARDS = 4
"""Cards beside each layer of an atlas."""
_CARDS_OF_LAYER = 12
_MOST = 36
_SIDE = 96
_TYPES = {".jpg": "jpeg", ".webp": "webp", ".png": "png"}


def atlas_html(atlas: Atlas) -> str:
    """A table of the layers, each with the cards of its strongest channels."""
    data = atlas.report_data()
    best = {layer.slug: _strongest(layer.rows, _CARDS) for layer in data.layers}
    return _html("atlas", atlas.folder, data, best)


def layer_html(view: LayerView) -> str:
    """A layer's facts and the cards of its strongest channels."""
    return _html("layer", view.atlas.folder, view.facts, _strongest(view.facts.rows, _CARDS_OF_LAYER))


def channel_html(channel: Channel) -> str:
    """A channel's facts, its card, and a table of its hits."""
    return _html("channel", channel.layer.atlas.folder, channel.layer.facts, channel.facts)


def card_png(card: Array, sprite: Sprite) -> bytes:
    """A card (H, W, 3) as PNG, its pixels enlarged where its tiles are very small."""
    return render.encode(_enlarged(card, max(sprite.tile)), "png")


def _html(macro: str, folder: Path, *arguments: Any) -> str:
    """HTML that refers to nothing else: the pictures of a folder are in it."""

    def data_url(path: str) -> str:
        try:
            content = (folder / path).read_bytes()
        except OSError as error:
            raise AtlasError(f"{folder}: the picture {path} cannot be read ({error}).") from error
        return f"data:image/{_TYPES[Path(path).suffix]};base64,{b64encode(content).decode('ascii')}"

    text = str(getattr(_template().make_module({"data_url": data_url}), macro)(*arguments))
    return text.encode("utf-8", errors="replace").decode("utf-8")


@cache
def _template() -> Template:
    return open_templates().get_template("notebook.html")


def _strongest(rows: Sequence[ChannelData], count: int) -> list[ChannelData]:
    return sorted((row for row in rows if row.card is not None), key=lambda row: -row.largest)[:count]


def _enlarged(picture: Array, side: int) -> Array:
    """A picture whose largest tile has this side, each pixel as a square where that is small."""
    zoom = max(1, _SIDE // side)
    return picture.repeat(zoom, 0).repeat(zoom, 1)


def projections_png(pixels: Array) -> bytes | None:
    """The first 36 of some projections (M, C, h, w) side by side, each on a scale of its own; None for none.

    Three channels are taken for red, green and blue; any other number is averaged.
    """
    if not pixels.size:
        return None
    first = pixels[:_MOST]
    if first.shape[1] != 3:
        first = first.mean(axis=1, keepdims=True)
    tiles = [render.projection_rgb(np.moveaxis(one, 0, -1)) for one in first]
    tiles = [_enlarged(tile, max(tile.shape[:2])) for tile in tiles]
    return render.encode(render.grid(tiles, min(6, len(tiles)), gap=4, fill=255), "png")
