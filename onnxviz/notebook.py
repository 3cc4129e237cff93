"""How an atlas and projections show themselves in a notebook: fragments and pictures that stand on their own."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.images import render
from onnxviz.report import format as shown

if TYPE_CHECKING:
    from onnxviz.atlas import Atlas
    from onnxviz.report.data import ChannelData, LayerData

__all__ = ["atlas_html", "projections_png"]

Array: TypeAlias = NDArray[Any]

_CARDS = 4
_MOST = 36
_SIDE = 96
_TYPES = {".jpg": "jpeg", ".webp": "webp", ".png": "png"}


def atlas_html(atlas: Atlas) -> str:
    """A table of the layers, each with the cards of its strongest channels, as HTML that refers to nothing else."""
    data = atlas.report_data()
    rows = "".join(_row(atlas, layer) for layer in data.layers)
    heads = "".join(
        f"<th>{name}</th>" for name in ("Layer", "Channels", "Size", "Field", "Dead", "Strongest channels")
    )
    images = f"{shown.integer(data.provenance.images)} images, {escape(data.provenance.method)}"
    return (
        f"<div><p><b>{_text(data.title)}</b>: {images}</p>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(atlas: Atlas, layer: LayerData) -> str:
    best = sorted((row for row in layer.rows if row.card is not None), key=lambda row: -row.largest)
    field = f"{shown.size(layer.receptive_field)} px"
    facts = (shown.integer(layer.channels), shown.size(layer.size), field, shown.integer(layer.dead))
    cells = "".join(f"<td>{text}</td>" for text in facts)
    cards = "".join(_card(atlas, row) for row in best[:_CARDS])
    return f"<tr><th>{_text(layer.title)}</th>{cells}<td>{cards}</td></tr>"


def _card(atlas: Atlas, row: ChannelData) -> str:
    assert row.card is not None
    path = atlas.folder / row.card.path
    content = b64encode(path.read_bytes()).decode("ascii")
    height = max(_SIDE, row.card.rows * row.card.tile[0]) if not row.card.pixelated else _SIDE
    style = "margin:0 4px 4px 0" + (";image-rendering:pixelated" if row.card.pixelated else "")
    return (
        f'<img src="data:image/{_TYPES[path.suffix]};base64,{content}" height="{min(height, 2 * _SIDE)}" '
        f'style="{style}" alt="Channel {row.index}: projections, then patches" title="channel {row.index}">'
    )


def _text(name: str) -> str:
    return escape(name.encode("utf-8", errors="replace").decode("utf-8"))


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
    zoom = max(1, _SIDE // max(tiles[0].shape[:2]))
    tiles = [tile.repeat(zoom, 0).repeat(zoom, 1) for tile in tiles]
    return render.encode(render.grid(tiles, min(6, len(tiles)), gap=4, fill=255), "png")
