"""What an atlas that was read must hold for a report of it: its arrays and facts fit together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from onnxviz.forward.exact import PLACES
from onnxviz.report.data import Sprite

if TYPE_CHECKING:
    from onnxviz.atlas import Atlas, LayerAtlas
    from onnxviz.forward.topk import TopK

__all__ = ["check_atlas"]

_SLUG = re.compile(r"[a-z0-9_-]{1,200}")
_LARGEST = 1 << 24
"""Of a size in pixels or units."""


def check_atlas(atlas: Atlas) -> None:
    """Make sure that an atlas that was read from files can be reported.

    Raises:
        ValueError: naming what does not fit.
    """
    _check(_sizes(atlas.provenance.input_size), "provenance.input_size", atlas.provenance.input_size)
    slugs = [one.slug for one in atlas.layers]
    _check(len(set(slugs)) == len(slugs) and bool(slugs), "layers", slugs)
    names = [node.id for node in atlas.diagram]
    _check(len(set(names)) == len(names), "diagram", "nodes of one id")
    known = set[str]()
    for node in atlas.diagram:  # in topological order, so that it has an end
        _check(known.issuperset(node.inputs), "diagram", node.id)
        _check(node.slug is None or node.slug in slugs, "diagram", node.slug)
        known.add(node.id)
    if bank := atlas.filters:
        for sprite in (bank.shared, bank.own):
            _check_sprite(sprite, len(bank.filters))
        _check(_sizes(bank.size), "filters.size", bank.size)
    for one in atlas.layers:
        _check_layer(one, len(atlas.labels))
        for channel in (None, *one.alive):
            hits = one.overall_hits if channel is None else one.topk.hits(channel)
            height, width = one.layer.grid
            for hit in hits:
                _check(hit.image in atlas.images, f"{one.slug}: a hit's image", hit.image)
                inside = channel is None or (0 <= hit.y < height and 0 <= hit.x < width)
                _check(inside, f"{one.slug}: a hit's place", (hit.y, hit.x))


def _check_layer(one: LayerAtlas, sampled: int) -> None:
    layer, count, where = one.layer, one.layer.channels, f"layer {one.slug}"
    _check(_SLUG.fullmatch(one.slug) is not None, "slug", one.slug)
    depth = len(layer.size)
    _check(
        depth <= 2 and 0 < count <= _LARGEST and _sizes(layer.size), f"{where}: size", (count, *layer.size)
    )
    _check(sorted(layer.order) == list(range(2 + depth)), f"{where}: order", layer.order)
    _check(_sizes(layer.receptive_field), f"{where}: receptive_field", layer.receptive_field)
    _check(
        layer.stride is None or all(0 <= n < _LARGEST for n in layer.stride), f"{where}: stride", layer.stride
    )
    _check(all(abs(n) < _LARGEST for n in layer.offset), f"{where}: offset", layer.offset)
    increasing = all(a < b for a, b in zip((-1, *one.pictured), (*one.pictured, count), strict=True))
    _check(increasing, f"{where}: pictured", one.pictured[:8])
    _check(one.names is None or len(one.names) == count, f"{where}: names", len(one.names or ()))
    _check(one.stats.positions == math.prod(layer.size), f"{where}: positions", one.stats.positions)
    every = one.responses.every
    _check(0 < every < 2**62 and every & (every - 1) == 0, f"{where}: every", every)
    _check(0 < one.top <= 1000, f"{where}: images of a channel", one.top)
    _check_ranking(one.topk, (count, one.top), where)
    _check_ranking(one.overall, (1, one.top), where)
    stats = one.stats.arrays()
    _check_arrays({"sums": stats.pop("sums")}, (PLACES, count), {}, where)
    _check_arrays(stats, (count,), {"largest": "f"}, where)
    _check_arrays({"sampled": one.responses.image}, (sampled,), {}, where)
    _check_arrays({"largest": one.responses.largest}, (sampled, count), {"largest": "f"}, where)


def _check_ranking(ranking: TopK, shape: tuple[int, int], where: str) -> None:
    _check_arrays(ranking.arrays(), shape, {"score": "f", "activation": "f"}, where)


def _check_arrays(
    arrays: Mapping[str, NDArray[Any]], shape: tuple[int, ...], kinds: Mapping[str, str], where: str
) -> None:
    """``kinds`` are those that hold no integers."""
    for name, array in arrays.items():
        good = array.shape == shape and array.dtype.kind == kinds.get(name, "i") and array.dtype.isnative
        _check(good, f"{where}: {name}", f"{array.dtype} {array.shape}")


def _check_sprite(sprite: Sprite, tiles: int) -> None:
    fits = (
        0 < sprite.rows < _LARGEST and 0 < sprite.columns < _LARGEST and sprite.rows * sprite.columns >= tiles
    )
    _check(
        fits and _sizes(sprite.tile), "filters: a picture's grid", (sprite.rows, sprite.columns, *sprite.tile)
    )


def _sizes(sizes: tuple[int, ...]) -> bool:
    return all(0 < size < _LARGEST for size in sizes)


def _check(good: bool, what: str, found: object) -> None:
    if not good:
        raise ValueError(f"{what} cannot be {str(found)[:60]}")
