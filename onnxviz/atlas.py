"""The result of a scan: what each channel's best images are, with their pictures; save, load, report.

An atlas on disk is a folder: ``atlas.json`` (facts), ``arrays.npz`` (top-k and statistics) and ``pictures/``.
It renders again with neither the model nor the images.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import AtlasError
from onnxviz.forward.topk import ChannelStats, Hit, TopK
from onnxviz.images.plates import PlateStyle
from onnxviz.model.layers import Layer, find_layer
from onnxviz.report.data import (
    ChannelData,
    DiagramNode,
    HitData,
    LayerData,
    ModelData,
    Provenance,
    ReportData,
    Sprite,
)

__all__ = ["Atlas", "LayerAtlas", "slugs"]

Array: TypeAlias = NDArray[Any]

FORMAT = 3
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError)
_PICTURE_PATH = re.compile(r"(pictures/[a-z0-9_-]+/)?[a-z0-9_-]+\.(webp|png|jpg)")
PICTURES = "pictures"


@dataclass(frozen=True)
class LayerAtlas:
    """One layer: its channels' hits and statistics, and which of them have pictures.

    ``overall`` ranks images by all channels together. ``pictured`` are the channels that the report shows.
    """

    layer: Layer
    slug: str
    topk: TopK
    overall: TopK
    stats: ChannelStats
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
    def hits_shown(self) -> int:
        """How many hits have pictures, those of all channels together included."""
        return sum(len(self.topk.hits(channel)) for channel in self.alive) + len(self.overall_hits)


@dataclass
class Atlas:
    """A finished analysis. ``folder`` holds its ``pictures/``; `save` copies them with everything else.

    ``images`` gives (name, class, thumbnail) of every image that is somewhere among the hits.
    """

    model: ModelData
    provenance: Provenance
    diagram: tuple[DiagramNode, ...]
    layers: tuple[LayerAtlas, ...]
    images: Mapping[int, tuple[str, str | None, str]]
    folder: Path

    def __getitem__(self, name: str) -> LayerAtlas:
        """A layer by any name that `Network.layer` takes.

        Raises:
            LayerNotFoundError: none or several of the atlas's layers have it.
        """
        found = find_layer([one.layer for one in self.layers], name)
        return next(one for one in self.layers if one.layer is found)

    def report(self, out: str | Path) -> Path:
        """Write the HTML report into a folder and return its ``index.html``."""
        from onnxviz.report.folder import check_folder
        from onnxviz.report.render import write_report

        out = Path(out)
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        _copy_pictures(self.folder, out, self._pictures())
        return write_report(self.report_data(), out, pictures=self._pictures())

    def _pictures(self) -> list[str]:
        """Every picture file of the report, relative to its folder."""
        paths = [thumbnail for _, _, thumbnail in self.images.values()]
        for one in self.layers:
            style = plate_style(one.layer, self.provenance.input_size)
            if one.overall_hits:
                paths += picture_paths(one.slug, None, style)
            for channel in one.alive:
                paths += picture_paths(one.slug, channel, style)
            if one.montage:
                paths.append(one.montage)
        return paths

    def save(self, folder: str | Path) -> Path:
        """Write the atlas into a folder, which `load` reads back."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _copy_pictures(self.folder, folder, self._pictures())
        arrays: dict[str, Array] = {}
        facts: dict[str, Any] = {
            "format": FORMAT,
            "model": asdict(self.model),
            "provenance": asdict(self.provenance),
            "diagram": [asdict(node) for node in self.diagram],
            "images": [[index, *image] for index, image in self.images.items()],
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
                }
            )
            for part, group in (("topk", one.topk), ("overall", one.overall), ("stats", one.stats)):
                arrays.update({f"{number}/{part}/{name}": a for name, a in group.arrays().items()})
        _write_atomically(folder / "arrays.npz", lambda path: _savez(path, arrays))
        text = json.dumps(facts, ensure_ascii=False, indent=1)
        _write_atomically(folder / "atlas.json", lambda path: path.write_text(text, encoding="utf-8"))
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
            # Opened here: np.load leaves the file open when it is no archive.
            with (folder / "arrays.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            layers = tuple(_read_layer(n, entry, arrays) for n, entry in enumerate(facts["layers"]))
            atlas = cls(
                model=ModelData(**facts["model"]),
                provenance=_read_provenance(facts["provenance"]),
                diagram=tuple(
                    DiagramNode(**{**node, "inputs": tuple(node["inputs"])}) for node in facts["diagram"]
                ),
                layers=layers,
                images={index: (name, label, thumbnail) for index, name, label, thumbnail in facts["images"]},
                folder=folder,
            )
            atlas._check_pictures()
            return atlas
        except FileNotFoundError as error:
            raise AtlasError(
                f"{folder} holds no atlas: there is no {Path(error.filename).name} in it."
            ) from error
        except (OSError, EOFError, BadZipFile, zlib.error, *_DAMAGE) as error:
            raise AtlasError(f"{folder}: the atlas is damaged ({type(error).__name__}: {error}).") from error

    def _check_pictures(self) -> None:
        """Raise if a picture is missing, or would lie outside the folder."""
        for path in self._pictures():
            if not _PICTURE_PATH.fullmatch(path):
                raise AtlasError(f"{self.folder}: the atlas is damaged: {path!r} is no picture of it.")
            if not (self.folder / path).is_file():
                raise AtlasError(f"{self.folder}: the atlas is damaged: its picture {path} is missing.")

    def report_data(self) -> ReportData:
        """Everything that the report shows."""
        return ReportData(
            title=self.model.name,
            model=self.model,
            provenance=self.provenance,
            diagram=self.diagram,
            layers=tuple(self._layer_data(one) for one in self.layers),
        )

    def _layer_data(self, one: LayerAtlas) -> LayerData:
        layer = one.layer
        size: tuple[int, ...] = layer.size
        overall = ChannelData(
            index=None,
            name=None,
            dead=not one.overall_hits,
            largest=_finite(one.stats.largest.max(initial=-math.inf)),
            mean=_share(one.stats.total.sum(), one.stats.images.sum() * one.stats.positions),
            activity=_share(one.stats.active_images.sum(), one.stats.images.sum()),
            hits=self._hits(one, one.overall_hits),
            **self._sprites(one, None, len(one.overall_hits)),
        )
        rows = []
        for channel in one.pictured:
            dead = one.dead(channel)
            stats, count = one.stats, int(one.stats.images[channel])
            rows.append(
                ChannelData(
                    index=channel,
                    name=one.names[channel] if one.names else None,
                    dead=dead,
                    largest=_finite(stats.largest[channel]),
                    mean=_share(stats.total[channel], count * stats.positions),
                    activity=_share(stats.active_images[channel], count),
                    hits=() if dead else self._hits(one, one.topk.hits(channel)),
                    **self._sprites(one, channel, 0 if dead else len(one.topk.hits(channel))),
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
            all_channels=overall,
            rows=tuple(rows),
            montage=one.montage,
        )

    def _hits(self, one: LayerAtlas, found: Sequence[Hit]) -> tuple[HitData, ...]:
        hits = []
        for rank, hit in enumerate(found, start=1):
            name, label, thumbnail = self.images[hit.image]
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

    def _sprites(self, one: LayerAtlas, channel: int | None, hits: int) -> dict[str, Sprite | None]:
        if not hits:
            return {"card": None, "strips": None}
        style = plate_style(one.layer, self.provenance.input_size)
        columns = math.ceil(math.sqrt(hits))
        card, strips = picture_paths(one.slug, channel, style)
        return {
            "card": Sprite(card, math.ceil(hits / columns), 2 * columns, style.card_tile, style.pixelated),
            "strips": Sprite(strips, 2, hits, style.strip_tile, style.pixelated),
        }


def plate_style(layer: Layer, frame: tuple[int, int]) -> PlateStyle:
    """How a layer's pictures are drawn, on images of ``frame`` (height, width)."""
    return PlateStyle(layer.receptive_field, frame, layer.stride, layer.offset, layer.grid)


def picture_paths(slug: str, channel: int | None, style: PlateStyle) -> tuple[str, str]:
    """Paths of a channel's card and strips, relative to the report; None is the row of all channels."""
    stem = f"{PICTURES}/{slug}/{'all' if channel is None else f'{channel:05d}'}"
    return stem + style.card_ending, f"{stem}-strips{style.strips_ending}"


def slugs(layers: Sequence[Layer]) -> list[str]:
    """For each layer a name that is safe as a file name, unique among them: alias and name."""
    used: set[str] = set()
    found = []
    for layer in layers:
        base = re.sub(r"[^a-z0-9]+", "-", layer.name.casefold()).strip("-")[:48] or layer.alias
        slug = base if base not in used and base != "images" else f"{base}-{layer.alias}"
        while slug in used:
            slug += "-x"
        used.add(slug)
        found.append(slug)
    return found


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else math.nan


def _copy_pictures(source: Path, target: Path, paths: Iterable[str]) -> None:
    if source.resolve() == target.resolve():
        return
    paths = list(paths)
    for folder in {(target / path).parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(source / path, target / path)


def _savez(path: Path, arrays: Mapping[str, Array]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _write_atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _read_provenance(entry: Mapping[str, Any]) -> Provenance:
    return Provenance(**{name: _tuples(value) for name, value in entry.items()})


def _read_layer(number: int, entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> LayerAtlas:
    def group(part: str, names: Iterable[str]) -> dict[str, Array]:
        return {name: arrays[f"{number}/{part}/{name}"] for name in names}

    ranked = ("score", "activation", "image", "y", "x")
    counted = ("images", "largest", "total", "active_images", "not_finite")
    return LayerAtlas(
        layer=Layer(**{name: _tuples(value) for name, value in entry["layer"].items()}),
        slug=entry["slug"],
        topk=TopK(**group("topk", ranked)),
        overall=TopK(**group("overall", ranked)),
        stats=ChannelStats(positions=entry["positions"], **group("stats", counted)),
        pictured=tuple(entry["pictured"]),
        names=_tuples(entry["names"]),
        montage=entry["montage"],
    )
