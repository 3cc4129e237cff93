"""A report that is written while its pictures are drawn, and opens at any time."""

from __future__ import annotations

from dataclasses import replace

from onnxviz.atlas import Atlas, LayerAtlas
from onnxviz.places import IMAGES, PICTURES
from onnxviz.report.data import LayerData, ReportData
from onnxviz.report.folder import Folder
from onnxviz.report.render import ReportWriter

__all__ = ["Publisher"]


class Publisher:
    """Writes an atlas and its report into the atlas's folder, layer by layer.

    All that a layer's pages say is known once its images are ranked: they are written before its pictures, which are
    drawn into their places. Until the end the index says that it is not the end.

    Where a run was cut off that drew the same, its pictures are used (`drawn_before`).

    Args:
        planned: the atlas with all its layers, none of them drawn.
        theme: of the pages, as of `Atlas.report`.
        drawing: all that the pictures follow from, as a digest; None if nobody knows.
    """

    def __init__(self, planned: Atlas, theme: str = "auto", drawing: str | None = None) -> None:
        self._planned, self._folder, self._theme = planned, planned.folder, theme
        self._drawing, self._goes_on = drawing, False
        self._layers: dict[str, LayerAtlas] = {}
        self._shown: dict[str, LayerData] = {}
        self._writer = ReportWriter(self._folder, theme)

    def begin(self, one: LayerAtlas) -> None:
        """Write the pages of a layer that is about to be drawn; with the first, a former report begins to go."""
        if not self._layers:
            # A former atlas must not outlive its pictures, whatever happens on the way.
            (self._folder / "atlas.json").unlink(missing_ok=True)
            self._goes_on = self._drawing is not None and self._writer.begin(self._drawing)
            for name in () if self._goes_on else (IMAGES, *(layer.slug for layer in self._planned.layers)):
                self._writer.drop(f"{PICTURES}/{name}")
        self._layers[one.slug] = one
        self._shown[one.slug] = self._planned.layer_data(one)
        data = self._unfinished(one)
        self._writer.expect(self._planned.pictures([one]))
        self._writer.layer(data, self._shown[one.slug])
        if len(data.layers) > 1:
            self._writer.layer(data, data.layers[-2], channels=False)  # it has a neighbour now
        else:
            self._writer.facts(data)  # pages link to them; the rest of the layers follow in the end
        self._writer.index(data)

    def drawn_before(self, one: LayerAtlas, channel: int) -> bool:
        """Whether all pictures of a channel are there from a run that was cut off."""
        thumbnails = {self._planned.images[hit.image][2] for hit in one.topk.hits(channel)}
        return (
            self._goes_on
            and self._drawn(one, channel)
            and all((self._folder / path).is_file() for path in thumbnails)
        )

    def done(self, one: LayerAtlas) -> None:
        """Take a layer with all its pictures in the place of the one that was begun; its montage is what is new."""
        self._layers[one.slug] = one
        if one.montage:
            self._shown[one.slug] = replace(self._shown[one.slug], montage=one.montage)
            self._writer.expect([one.montage])
            self._writer.layer(self._unfinished(one), self._shown[one.slug], channels=False)

    def finish(self) -> Atlas:
        """Write what is left and the atlas itself, and return it."""
        atlas = self._planned.with_layers(tuple(self._layers.values()))
        self._writer.expect(atlas.pictures())
        self._writer.finish(self._data(atlas))
        return replace(atlas, folder=atlas.save(self._folder))

    def stop(self) -> Atlas | None:
        """The run is broken off: make a whole of what is drawn, with a note of what is not, and return it.

        None if no layer was begun: a former report is still as it was.
        """
        if not self._layers:
            return None
        kept, missing = [], []
        for one in self._planned.layers:
            begun = self._layers.get(one.slug)
            if begun is None or not self._drawn(begun, None):
                missing.append(f"{one.layer} was not reached")
                continue
            there = tuple(c for c in begun.pictured if begun.dead(c) or self._drawn(begun, c))
            if len(there) < len(begun.pictured):
                missing.append(f"{one.layer} shows {len(there):,} of {len(begun.pictured):,} channels")
            kept.append(replace(begun, pictured=there))
        atlas = self._planned.with_layers(tuple(kept))
        if missing:
            atlas = atlas.noted(f"The run was broken off: {'; '.join(missing)}.")
        if kept:
            atlas.publish(self._folder, theme=self._theme)
        else:
            atlas.report(self._folder, theme=self._theme)
        if self._drawing is not None:
            Folder(self._folder).begin(self._drawing)
        return atlas

    def _unfinished(self, one: LayerAtlas) -> ReportData:
        """What there is to show while a layer is drawn."""
        atlas = self._planned.with_layers(tuple(self._layers.values()))
        coming = [str(other.layer) for other in self._planned.layers if other.slug not in self._layers]
        then = f" Then come {', '.join(coming)}." if coming else ""
        note = f"This report is being written, or its run was cut off: {one.layer} is being drawn.{then}"
        return self._data(atlas.noted(note))

    def _data(self, atlas: Atlas) -> ReportData:
        """Everything that the report of these layers shows; the facts of each are worked out once."""
        return atlas.report_data(tuple(self._shown[one.slug] for one in atlas.layers))

    def _drawn(self, one: LayerAtlas, channel: int | None) -> bool:
        """Whether all pictures of a channel, or of the row of all channels, are there."""
        if channel is None and not one.overall_hits:
            return True
        return all((self._folder / path).is_file() for path in self._planned.pictures_of(one, channel))
