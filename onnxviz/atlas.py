"""The result of a scan: what each channel's best images are, with their pictures; save, load, report.

An atlas on disk is a folder: ``atlas.json`` (facts), ``arrays.npz`` (top-k and statistics) and ``pictures/``.
It renders again with neither the model nor the images.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import AtlasError, UnitError, UsageError
from onnxviz.files import write_atomically, writing
from onnxviz.forward.responses import Responses
from onnxviz.forward.topk import ChannelStats, Hit, TopK
from onnxviz.images.decode import quiet
from onnxviz.model.layers import Layer, find_layer, find_layers
from onnxviz.places import compared_path, picture_paths, plate_style
from onnxviz.report.data import DiagramNode, FilterBank, LayerData, ModelData, Provenance, ReportData
from onnxviz.soundness import check_atlas
from onnxviz.typed import typed

if TYPE_CHECKING:
    from onnxviz.views import LayerView

__all__ = [
    "Atlas",
    "LayerAtlas",
    "channel_ranges",
    "channels_of",
]

Array: TypeAlias = NDArray[Any]

FORMAT = 5
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
    RecursionError,
    RuntimeError,
)
_PICTURE_PATH = re.compile(r"(pictures/[a-z0-9_-]+/)?[a-z0-9_-]+\.(webp|png|jpg)")


@dataclass(frozen=True)
class LayerAtlas:
    """One layer: its channels' hits and statistics, and which of them have pictures.

    ``overall`` ranks images by all channels together. ``responses`` are of a sample of the images. ``pictured`` are
    the channels that the report shows.
    """

    layer: Layer
    slug: str
    topk: TopK
    overall: TopK
    stats: ChannelStats
    responses: Responses
    pictured: tuple[int, ...]
    names: tuple[str, ...] | None
    montage: str | None

    def dead(self, channel: int) -> bool:
        """Whether no image brought any unit of the channel above 0."""
        return not self.stats.largest[channel] > 0

    @property
    def overall_hits(self) -> tuple[Hit, ...]:
        """The images that excite the layer as a whole; none if all its channels are dead."""
        return self.overall.hits(0) if (self.stats.largest > 0).any() else ()

    @property
    def alive(self) -> tuple[int, ...]:
        """The pictured channels that are not dead."""
        return tuple(channel for channel in self.pictured if not self.dead(channel))

    @property
    def top(self) -> int:
        """How many images are kept of each channel, where there are so many."""
        return int(self.topk.score.shape[1])

    def first(self, top: int) -> LayerAtlas:
        """With the ``top`` strongest images of each channel only; pictures stay what they are (`Atlas.only` cuts them).

        Raises:
            UsageError: there are fewer.
        """
        if not 1 <= top <= self.top:
            raise UsageError(
                f"The atlas has the {self.top} strongest images of each channel; a part can have 1 to {self.top}, "
                f"not {top}."
            )
        return replace(self, topk=self.topk.first(top), overall=self.overall.first(top))

    @property
    def hits_shown(self) -> int:
        """How many hits have pictures, those of all channels together included."""
        return sum(len(self.topk.hits(channel)) for channel in self.alive) + len(self.overall_hits)


@dataclass
class Atlas:
    """A finished analysis. ``folder`` holds its ``pictures/``; `save` copies them with everything else.

    ``images`` gives (name, class, thumbnail) of every image that is somewhere among the hits; ``labels`` are the
    classes of the images that `LayerAtlas.responses` are of. ``whole`` is the atlas that a part is of: a temporary
    ``folder`` lives as long as the atlas that it was made for.
    """

    model: ModelData
    provenance: Provenance
    diagram: tuple[DiagramNode, ...]
    filters: FilterBank | None
    layers: tuple[LayerAtlas, ...]
    images: Mapping[int, tuple[str, str | None, str]]
    labels: tuple[str | None, ...]
    folder: Path
    whole: Atlas | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> LayerView:
        """A layer by any name that `Network.layer` takes; it gives its channels by number.

        Raises:
            LayerNotFoundError: none or several of the atlas's layers have it.
        """
        found = find_layer([one.layer for one in self.layers], name)
        from onnxviz.views import LayerView

        return LayerView.of(next(one for one in self.layers if one.layer is found), self)

    def report(self, out: str | Path, *, theme: str = "auto") -> Path:
        """Write the HTML report into a folder and return its ``index.html``.

        Args:
            theme: ``light``, ``dark``, or ``auto``: as the reader's system prefers.
        """
        from onnxviz.report.folder import check_folder
        from onnxviz.report.render import check_theme, write_report

        out = Path(out)
        check_theme(theme)
        check_folder(out)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        _copy_pictures(self.folder, out, self.pictures())
        return write_report(self.report_data(), out, pictures=self.pictures(), theme=theme)

    def report_file(self, path: str | Path, *, theme: str = "auto") -> Path:
        """Write the HTML report into one file, pictures included, and return its path.

        Args:
            theme: as of `report`.

        Raises:
            UsageError: the path does not end in .html, or there is something that this did not write.
        """
        from onnxviz.report.render import check_theme
        from onnxviz.report.single import check_file, write_single

        path = Path(path)
        check_theme(theme)
        check_file(path)
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        data = self.report_data()
        write_atomically(path, lambda partial: write_single(data, self.folder, partial, theme=theme))
        return path

    def _repr_html_(self) -> str:
        """What a notebook shows: the layers and their strongest channels."""
        from onnxviz.notebook import atlas_html

        return atlas_html(self)

    def publish(self, out: str | Path, *, theme: str = "auto") -> Path:
        """Write the report and the atlas itself into one folder, and return the ``index.html``.

        Args:
            theme: as of `report`.
        """
        out = Path(out)
        # An atlas of a former run must not outlive its pictures, whatever happens on the way.
        (out / "atlas.json").unlink(missing_ok=True)
        page = self.report(out, theme=theme)
        replace(self, folder=out).save(out)
        return page

    def only(
        self,
        layers: str | Sequence[str] | None = None,
        channels: str | Sequence[int] | None = None,
        top: int | None = None,
    ) -> Atlas:
        """A part of the atlas, for a smaller report.

        Args:
            layers: names, globs, ranges as `Network.select` takes them; None for all.
            channels: as ``0-15,40``, or numbers; None for all that have pictures.
            top: how many images of each channel; None for all. Their pictures are cut from the atlas's own and laid
                out anew in a temporary folder, which lives as long as the part.

        Raises:
            LayerNotFoundError: a name fits no layer, or several.
            UnitError: a layer has none of the channels.
            UsageError: the atlas has fewer images of each channel.
            AtlasError: a picture is damaged.
        """
        kept = self.layers
        if layers is not None:
            found = find_layers([one.layer for one in kept], [layers] if isinstance(layers, str) else layers)
            kept = tuple(one for one in kept if one.layer in found)
        if channels is not None:
            asked = channel_ranges(channels)
            kept = tuple(replace(one, pictured=channels_of(one.layer, asked, one.pictured)) for one in kept)
        if top is not None:
            kept = tuple(one.first(top) for one in kept)
        part = replace(self.with_layers(kept), whole=self)
        return part if top is None else part._with_pictures_of_its_own()

    def with_layers(self, layers: Sequence[LayerAtlas]) -> Atlas:
        """The atlas with these of its layers, and the images that they show."""
        slugs = {one.slug for one in layers}
        shown = {hit.image for one in layers for hit in one.overall_hits}
        for one in layers:
            shown.update(hit.image for channel in one.alive for hit in one.topk.hits(channel))
        return replace(
            self,
            layers=tuple(layers),
            diagram=tuple(node if node.slug in slugs else replace(node, slug=None) for node in self.diagram),
            images={index: image for index, image in self.images.items() if index in shown},
        )

    def _with_pictures_of_its_own(self) -> Atlas:
        """A part whose layers have fewer hits than the whole, with pictures to match in a temporary folder."""
        from onnxviz.excerpt import cut_layer

        assert self.whole is not None
        stored = {one.slug: one for one in self.whole.layers}
        with ExitStack() as cleanup:
            folder = Path(tempfile.mkdtemp(prefix="onnxviz-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            _copy_pictures(self.folder, folder, self.pictures())
            size = self.provenance.input_size
            ways = len(self.provenance.compared)
            layers = tuple(cut_layer(one, stored[one.slug], folder, size, ways) for one in self.layers)
            part = replace(self, layers=layers, folder=folder)
            weakref.finalize(part, cleanup.pop_all().close)
        return part

    def noted(self, note: str) -> Atlas:
        """The atlas with one note more for the reader."""
        provenance = replace(self.provenance, notes=(*self.provenance.notes, note))
        return replace(self, provenance=provenance)

    def pictures(self, layers: Sequence[LayerAtlas] | None = None) -> list[str]:
        """Every picture file of the report, or of some of its layers alone, relative to its folder."""
        paths = [thumbnail for _, _, thumbnail in self.images.values()]
        if self.filters:
            paths += [self.filters.shared.path, self.filters.own.path]
        for one in self.layers if layers is None else layers:
            for channel in (*((None,) if one.overall_hits else ()), *one.alive):
                paths += self.pictures_of(one, channel)
            if one.montage:
                paths.append(one.montage)
        return paths

    def pictures_of(self, one: LayerAtlas, channel: int | None) -> list[str]:
        """The picture files of a channel, or of the row of all channels (None)."""
        style = plate_style(one.layer, self.provenance.input_size)
        compared = [compared_path(one.slug, channel, style)] if self.provenance.compared else []
        return [*picture_paths(one.slug, channel, style), *compared]

    def save(self, folder: str | Path) -> Path:
        """Write the atlas into a folder, which `load` reads back."""
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _copy_pictures(self.folder, folder, self.pictures())
        arrays: dict[str, Array] = {}
        facts: dict[str, Any] = {
            "format": FORMAT,
            "model": asdict(self.model),
            "provenance": asdict(self.provenance),
            "diagram": [asdict(node) for node in self.diagram],
            "filters": asdict(self.filters) if self.filters else None,
            "images": [[index, *image] for index, image in self.images.items()],
            "labels": list(self.labels),
            "layers": [],
        }
        for number, one in enumerate(self.layers):
            facts["layers"].append(
                {
                    "layer": asdict(one.layer),
                    "slug": one.slug,
                    "pictured": list(one.pictured),
                    "names": one.names,
                    "montage": one.montage,
                    "positions": one.stats.positions,
                    "every": one.responses.every,
                }
            )
            for part, group in (("topk", one.topk), ("overall", one.overall), ("stats", one.stats)):
                arrays.update({f"{number}/{part}/{name}": a for name, a in group.arrays().items()})
            arrays[f"{number}/responses/largest"] = one.responses.largest
            arrays["sampled"] = one.responses.image
        write_atomically(folder / "arrays.npz", lambda path: _savez(path, arrays))
        text = json.dumps(facts, ensure_ascii=False, indent=1)
        write_atomically(folder / "atlas.json", lambda path: path.write_text(text, encoding="utf-8"))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Atlas:
        """Read a saved atlas.

        Raises:
            AtlasError: the folder holds none, or one that this version cannot read.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / "atlas.json").read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise AtlasError(
                    f"{folder}: the atlas has format {facts['format']}; this version reads format {FORMAT}."
                )
            arrays = _read_arrays(folder / "arrays.npz")
            entries = typed(tuple[_LayerFacts, ...], facts["layers"], "layers")
            layers = tuple(_read_layer(n, entry, arrays) for n, entry in enumerate(entries))
            images = typed(tuple[tuple[int, str, str | None, str], ...], facts["images"], "images")
            atlas = cls(
                model=typed(ModelData, facts["model"], "model"),
                provenance=typed(Provenance, facts["provenance"], "provenance"),
                diagram=typed(tuple[DiagramNode, ...], facts["diagram"], "diagram"),
                filters=typed(FilterBank | None, facts["filters"], "filters"),
                layers=layers,
                images={index: tuple(image) for index, *image in images},
                labels=typed(tuple[str | None, ...], facts["labels"], "labels"),
                folder=folder,
            )
            check_atlas(atlas)
            atlas._check_pictures()
            return atlas
        except FileNotFoundError as error:
            raise AtlasError(
                f"{folder} holds no atlas: there is no {Path(error.filename).name} in it."
            ) from error
        except (OSError, *_DAMAGE) as error:
            raise AtlasError(f"{folder}: the atlas is damaged ({type(error).__name__}: {error}).") from error

    def _check_pictures(self) -> None:
        """Raise if a picture is missing, or would lie outside the folder."""
        for path in self.pictures():
            if not _PICTURE_PATH.fullmatch(path):
                raise AtlasError(f"{self.folder}: the atlas is damaged: {path!r} is no picture of it.")
            if not (self.folder / path).is_file():
                raise AtlasError(f"{self.folder}: the atlas is damaged: its picture {path} is missing.")

    def report_data(self, layers: tuple[LayerData, ...] | None = None) -> ReportData:
        """Everything that the report shows; ``layers``: of all its layers, where that is known (`layer_data`)."""
        return ReportData(
            title=self.model.name,
            model=self.model,
            provenance=self.provenance,
            diagram=self.diagram,
            filters=self.filters,
            layers=tuple(self.layer_data(one) for one in self.layers) if layers is None else layers,
        )

    def layer_data(self, one: LayerAtlas) -> LayerData:
        """What the report shows of a layer."""
        from onnxviz.findings import layer_data

        return layer_data(self, one)


def channel_ranges(channels: str | Sequence[int]) -> tuple[range, ...]:
    """Channel numbers, given as such or as a text such as ``0-15,40``.

    Raises:
        UsageError: it is not made of numbers and ranges.
    """
    if not isinstance(channels, str):
        return tuple(range(channel, channel + 1) for channel in channels)
    ranges = []
    for part in channels.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f"Channels {channels!r}: write numbers and ranges, such as 0-15,40.")
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(ranges)


def channels_of(layer: Layer, asked: Sequence[range], among: Sequence[int] | None = None) -> tuple[int, ...]:
    """The channels of a layer that are asked for, of all or of some.

    Raises:
        UnitError: none of them is there.
    """
    there = range(layer.channels) if among is None else among
    found = tuple(channel for channel in there if any(channel in numbers for numbers in asked))
    if not found:
        have = f"channels 0 to {layer.channels - 1}" if among is None else f"{len(among)} channels here"
        raise UnitError(f"Layer {layer} has {have}; none of those asked for is there.")
    return found


def _copy_pictures(source: Path, target: Path, paths: Iterable[str]) -> None:
    if source.resolve() == target.resolve():
        return
    paths = list(paths)
    with writing(target):
        for folder in {(target / path).parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copyfile(source / path, target / path)


def _savez(path: Path, arrays: Mapping[str, Array]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an archive.

    Raises:
        ValueError: it is damaged.
        OSError: it is not there, or cannot be read.
    """
    # Opened here: np.load leaves the file open when it is no archive.
    with path.open("rb") as stream:
        try:
            with quiet(), np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except OSError:
            raise
        except Exception as error:  # the readers of zip and of headers raise what they stumble over
            raise ValueError(f"{path.name}: {error or type(error).__name__}") from error


@dataclass(frozen=True)
class _LayerFacts:
    """What ``atlas.json`` says of a layer."""

    layer: Layer
    slug: str
    pictured: tuple[int, ...]
    names: tuple[str, ...] | None
    montage: str | None
    positions: int
    every: int


def _read_layer(number: int, facts: _LayerFacts, arrays: Mapping[str, Array]) -> LayerAtlas:
    def group(part: str, names: Iterable[str]) -> dict[str, Array]:
        return {name: arrays[f"{number}/{part}/{name}"] for name in names}

    ranked = ("score", "activation", "image", "y", "x")
    counted = ("images", "largest", "sums", "active_images", "not_finite")
    return LayerAtlas(
        layer=facts.layer,
        slug=facts.slug,
        topk=TopK(**group("topk", ranked)),
        overall=TopK(**group("overall", ranked)),
        stats=ChannelStats(positions=facts.positions, **group("stats", counted)),
        responses=Responses(facts.every, arrays["sampled"], arrays[f"{number}/responses/largest"]),
        pictured=facts.pictured,
        names=facts.names,
        montage=facts.montage,
    )
