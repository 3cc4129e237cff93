"""A layer and a channel of an atlas, as Python and a notebook see them: facts, hits and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onnxviz.atlas import Atlas, LayerAtlas
from onnxviz.errors import AtlasError, UnitError

if TYPE_CHECKING:
    from onnxviz.report.data import ChannelData, HitData, LayerData

__all__ = ["Channel", "LayerView"]


@dataclass(frozen=True, repr=False, eq=False)
class LayerView(LayerAtlas):
    """A layer that knows its atlas: it shows itself, and gives its channels by number.

    Iterating gives every channel that has pictures.
    """

    atlas: Atlas

    @classmethod
    def of(cls, one: LayerAtlas, atlas: Atlas) -> LayerView:
        """A layer of an atlas."""
        return cls(**{field.name: getattr(one, field.name) for field in fields(LayerAtlas)}, atlas=atlas)

    @cached_property
    def facts(self) -> LayerData:
        """What the report says of the layer."""
        return replace(self.atlas, layers=(self,)).report_data().layers[0]

    @cached_property
    def _rows(self) -> dict[int, ChannelData]:
        return {row.index: row for row in self.facts.rows if row.index is not None}

    def __getitem__(self, channel: int) -> Channel:
        """A channel by its number.

        Raises:
            UnitError: there is none, or the atlas has no pictures of it.
        """
        number, count = index(channel), self.layer.channels
        if not 0 <= number < count:
            raise UnitError(
                f"Layer {self.layer} has channels 0 to {count - 1}; there is no channel {number}."
            )
        if number not in self._rows:
            raise UnitError(
                f"Channel {number} of layer {self.layer} has no pictures: the atlas shows {len(self._rows)} of its "
                f"{count} channels."
            )
        return Channel(self, self._rows[number])

    def __iter__(self) -> Iterator[Channel]:
        return (Channel(self, row) for row in self._rows.values())

    def __repr__(self) -> str:
        return f"<layer {self.layer}: {self.layer.channels} channels, {len(self.pictured)} with pictures>"

    def _repr_html_(self) -> str:
        """What a notebook shows: its strongest channels."""
        from onnxviz.notebook import layer_html

        return layer_html(self)


@dataclass(frozen=True, repr=False, eq=False)
class Channel:
    """A channel of a layer. ``facts`` is what the report says of it: largest activation, mean, selectivity …"""

    layer: LayerView
    facts: ChannelData

    @property
    def index(self) -> int:
        """Its number in the layer."""
        assert self.facts.index is not None
        return self.facts.index

    @property
    def hits(self) -> tuple[HitData, ...]:
        """The images that excite it most, the strongest first; none if it is dead."""
        return self.facts.hits

    @property
    def card(self) -> Image.Image | None:
        """Projections beside the patches they belong to, in rank order, row by row; None if it is dead.

        Raises:
            AtlasError: the picture cannot be read.
        """
        if self.facts.card is None:
            return None
        path = self.layer.atlas.folder / self.facts.card.path
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise AtlasError(
                f"{path}: the atlas is damaged: this picture cannot be read ({error})."
            ) from error

    def __repr__(self) -> str:
        state = (
            "dead"
            if self.facts.dead
            else f"largest activation {self.facts.largest:.4g}, {len(self.hits)} hits"
        )
        return f"<channel {self.index} of {self.layer.layer}: {state}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the card, facts, and the images with their classes and names."""
        from onnxviz.notebook import channel_html

        return channel_html(self)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows where there is no HTML: the card."""
        from onnxviz.notebook import card_png

        card = self.card
        return (
            None if card is None or self.facts.card is None else card_png(np.asarray(card), self.facts.card)
        )
