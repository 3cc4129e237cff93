"""What a report says of a layer and its channels, worked out from an atlas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxviz.forward.topk import Hit
from onnxviz.images.plates import half_grid
from onnxviz.places import compared_path, picture_paths, plate_style
from onnxviz.report.data import ChannelData, ClassShare, Histogram, HitData, LayerData, Related, Sprite

if TYPE_CHECKING:
    from onnxviz.atlas import Atlas, LayerAtlas

__all__ = ["layer_data"]

_BINS = 32
_RELATED = 6
_NEAR_DEAD = 0.01
"""A channel that is above 0 in a smaller share of the images is said to be nearly dead."""


def layer_data(atlas: Atlas, one: LayerAtlas) -> LayerData:
    """What the report shows of a layer."""
    layer, stats, responses = one.layer, one.stats, one.responses
    size: tuple[int, ...] = layer.size
    shares = Counter(label for label in atlas.labels if label is not None)
    share = {label: count / len(atlas.labels) for label, count in shares.items()}
    active = stats.active_images / np.maximum(stats.images, 1)
    selectivity = responses.sparseness()
    others, correlations = responses.correlated(_RELATED)
    pictured = frozenset(one.pictured)
    overall_hits = _hits(atlas, one, one.overall_hits)
    overall = ChannelData(
        index=None,
        name=None,
        dead=not one.overall_hits,
        largest=_finite(stats.largest.max(initial=-math.inf)),
        mean=_share(stats.total.sum(), stats.images.sum() * stats.positions),
        activity=_share(stats.active_images.sum(), stats.images.sum()),
        selectivity=math.nan,
        histogram=None,
        classes=_classes(overall_hits, share),
        related=(),
        hits=overall_hits,
        **_sprites(atlas, one, None, len(one.overall_hits)),
    )
    rows = []
    for channel in one.pictured:
        dead = one.dead(channel)
        hits = () if dead else _hits(atlas, one, one.topk.hits(channel))
        low, high, counts = responses.histogram(channel, _BINS, _finite(stats.largest[channel]))
        rows.append(
            ChannelData(
                index=channel,
                name=one.names[channel] if one.names else None,
                dead=dead,
                largest=_finite(stats.largest[channel]),
                mean=_share(stats.total[channel], int(stats.images[channel]) * stats.positions),
                activity=_share(stats.active_images[channel], int(stats.images[channel])),
                selectivity=math.nan if dead else float(selectivity[channel]),
                histogram=Histogram(low, high, tuple(counts.tolist())) if counts.any() else None,
                classes=_classes(hits, share),
                related=()
                if dead
                else tuple(
                    Related(int(other), float(r))
                    for other, r in zip(others[channel], correlations[channel], strict=True)
                    if other in pictured and r > 0
                ),
                hits=hits,
                **_sprites(atlas, one, channel, len(hits)),
            )
        )
    return LayerData(
        name=layer.name,
        alias=layer.alias,
        op=layer.op,
        slug=one.slug,
        channels=layer.channels,
        size=size,
        receptive_field=layer.receptive_field,
        stride=layer.stride,
        dead=sum(one.dead(channel) for channel in range(layer.channels)),
        near_dead=int(((active > 0) & (active < _NEAR_DEAD)).sum()),
        activity=float(active.mean()),
        all_channels=overall,
        rows=tuple(rows),
        montage=one.montage,
    )


def _hits(atlas: Atlas, one: LayerAtlas, found: Sequence[Hit]) -> tuple[HitData, ...]:
    hits = []
    for rank, hit in enumerate(found, start=1):
        name, label, thumbnail = atlas.images[hit.image]
        hits.append(
            HitData(
                rank=rank,
                score=hit.score,
                activation=hit.activation,
                image=name,
                label=label,
                y=hit.y,
                x=hit.x,
                box=one.layer.box(hit.y, hit.x),
                thumbnail=thumbnail,
            )
        )
    return tuple(hits)


def _sprites(atlas: Atlas, one: LayerAtlas, channel: int | None, hits: int) -> dict[str, Sprite | None]:
    if not hits:
        return {"card": None, "strips": None, "compared": None}
    style, ways = plate_style(one.layer, atlas.provenance.input_size), len(atlas.provenance.compared)
    rows, columns = half_grid(hits)
    card, strips = picture_paths(one.slug, channel, style)

    def tiles(path: str, halves: int) -> Sprite:
        return Sprite(path, rows, halves * columns, style.card_tile, style.pixelated)

    return {
        "card": tiles(card, 2),
        "strips": Sprite(strips, 2, hits, style.strip_tile, style.pixelated),
        "compared": tiles(compared_path(one.slug, channel, style), ways) if ways else None,
    }


def _classes(hits: Sequence[HitData], share: Mapping[str, float]) -> tuple[ClassShare, ...]:
    """The classes among hits, the commonest first, with the share of each in the data."""
    counted = Counter(hit.label for hit in hits if hit.label is not None)
    return tuple(ClassShare(label, count, share.get(label, 0.0)) for label, count in counted.most_common())


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else math.nan
