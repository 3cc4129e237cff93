"""Render a report: `ReportData` in, a folder of pages out that open from the file system.

index.html                    the network, its layers, where everything came from
layers/<slug>/index.html      a layer: a wall of channels
layers/<slug>/all.html        all channels together
layers/<slug>/c0007.html      a channel: its hits, six pictures each
layers/<slug>/compare.html    all its channels by several methods, if the run made several
report.json                   the same facts
static/                       style and script, named after their content

The pages come from `layer_pages` and the context of the index from `index_context`: `onnxviz.report.single` puts the
same pages into one file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnxviz.errors import UsageError
from onnxviz.report import format as shown
from onnxviz.report.data import ChannelData, DiagramNode, LayerData, ReportData
from onnxviz.report.diagram import lay_out
from onnxviz.report.folder import Folder
from onnxviz.report.folding import chain_concats, find_runs
from onnxviz.report.templating import open_templates

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "THEMES",
    "ReportWriter",
    "as_json",
    "check_data",
    "check_theme",
    "index_context",
    "layer_pages",
    "make_environment",
    "page_of",
    "pictures_of",
    "static_names",
    "static_text",
    "write_report",
]

STATIC = ("report.css", "report.js")
THEMES = ("auto", "light", "dark")
"""The colours of a report; ``auto`` is what the reader's system prefers."""
T = TypeVar("T")
PREVIEWS = 6  # cards of a layer on the index
READABLE = 60  # boxes; a diagram of more folds its repeated blocks


def write_report(data: ReportData, out: Path, *, pictures: Iterable[str] = (), theme: str = "auto") -> Path:
    """Write all pages into ``out`` and return its index.html; the index comes last.

    The pictures that ``data`` refers to are in ``out`` already. Those named in ``pictures`` (paths relative
    to ``out``) count as written by this report, so that the next one in the folder may remove them.

    Raises UsageError if the folder holds somebody else's index.html, or ``theme`` is none of `THEMES`; ValueError for
    data that breaks the contract of `onnxviz.report.data`.
    """
    check_data(data)
    writer = ReportWriter(out, theme)
    writer.expect(pictures)
    for layer in data.layers:
        writer.layer(data, layer)
    return writer.finish(data)


class ReportWriter:
    """Writes a report layer by layer; what is there can be read at any time.

    Pages of a former report are replaced one by one, and those that are left go in the end.

    Raises:
        UsageError: the folder holds somebody else's index.html, or ``theme`` is none of `THEMES`.
    """

    def __init__(self, out: Path, theme: str = "auto") -> None:
        check_theme(theme)
        self._theme = theme
        self._folder = Folder(out)
        self._static = static_names()
        self.expect(["index.html", "report.json", *self._static.values()])
        for name, path in self._static.items():
            self._folder.write(path, static_text(name))

    def expect(self, paths: Iterable[str]) -> None:
        """Note files that others write for this report, relative to its folder."""
        self._folder.expect(paths)

    def begin(self, drawing: str) -> bool:
        """Note which pictures are drawn, and whether a run that drew the same was cut off here (`Folder.begin`)."""
        return self._folder.begin(drawing)

    def drop(self, folder: str) -> None:
        """Remove what a former report has in a folder, relative to the report's."""
        self._folder.drop(folder)

    def layer(self, data: ReportData, layer: LayerData, *, channels: bool = True) -> None:
        """Write the pages of a layer, one of ``data``; without ``channels`` only those that show them all."""
        pages = (*_walls(data), *(page_of(channel) for channel in _channels(layer) if channels))
        self.expect(f"layers/{layer.slug}/{page}" for page in pages)
        for path, text in layer_pages(self._environment(data), data, layer, channels=channels):
            self._folder.write(path, text)

    def index(self, data: ReportData) -> Path:
        """Write the index of the layers that ``data`` has."""
        page = self._environment(data).get_template("index.html")
        self._folder.write("index.html", page.render(index_context(data)))
        return self._folder.out / "index.html"

    def facts(self, data: ReportData) -> None:
        """Write report.json."""
        self._folder.write("report.json", as_json(data))

    def finish(self, data: ReportData) -> Path:
        """Write the facts and the index, remove what a former report left behind, and return the index."""
        self._folder.adopt(pictures_of(data))
        self.facts(data)
        page = self.index(data)
        self._folder.finish()
        return page

    def _environment(self, data: ReportData) -> Environment:
        return make_environment(data, self._static, self._theme)


def layer_pages(
    environment: Environment, data: ReportData, layer: LayerData, *, channels: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield path and text of each page of a layer: its channels' pages, then those that show them all."""
    layer_page = environment.get_template("layer.html")
    channel_page = environment.get_template("channel.html")
    rows = {channel.index: channel for channel in layer.rows}
    for previous, channel, following in _neighbours(tuple(_channels(layer)) if channels else ()):
        text = channel_page.render(
            root="../../",
            layer=layer,
            channel=channel,
            previous=previous,
            following=following,
            rows=rows,
        )
        yield f"layers/{layer.slug}/{page_of(channel)}", text
    at = next(place for place, one in enumerate(data.layers) if one.slug == layer.slug)
    labels = {hit.label for channel in layer.rows for hit in channel.hits if hit.label is not None}
    for name in _walls(data):
        text = layer_page.render(
            root="../../",
            page=name,
            layer=layer,
            previous=data.layers[at - 1] if at else None,
            following=data.layers[at + 1] if at + 1 < len(data.layers) else None,
            alive=[channel for channel in layer.rows if not channel.dead],
            dead=[channel for channel in layer.rows if channel.dead],
            shape=_shape(layer, _comparison(data) if name == "compare.html" else None),
            labels=sorted(labels),
        )
        yield f"layers/{layer.slug}/{name}", text


def index_context(data: ReportData) -> dict[str, Any]:
    """What index.html is rendered with."""
    previews = _previews(data)
    return {
        "root": "",
        **_diagrams(data.diagram, previews),
        "previews": previews,
        "filter_pages": _filter_pages(data),
    }


def check_theme(theme: str) -> None:
    """Raise UsageError if ``theme`` is none of `THEMES`."""
    if theme not in THEMES:
        raise UsageError(f"Theme {theme!r} is not known. Choose one of {', '.join(THEMES)}.")


def as_json(data: ReportData) -> str:
    """All that a report shows, as JSON; null stands for what is no number."""
    try:
        return json.dumps(data, default=_fields, allow_nan=False)
    except ValueError:  # in a list; to look into all of them takes twice as long as all the rest
        return json.dumps(_plain(data), allow_nan=False)


def page_of(channel: ChannelData) -> str:
    """Return the name of a channel's page in its layer's folder."""
    return "all.html" if channel.index is None else f"c{channel.index:04d}.html"


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """What the pages compare: ``rows`` have a title, and for each method the half of a channel's pictures to show.

    None is the card's own half, a number one of `ChannelData.compared`.
    """

    methods: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int | None, ...]], ...]


def _comparison(data: ReportData) -> _Comparison | None:
    compared = data.provenance.compared
    if not compared:
        return None
    others = [number for number, one in enumerate(compared) if not one.control]
    controls = tuple(number for number, one in enumerate(compared) if one.control)
    methods = (data.provenance.method, *(compared[number].method for number in others))
    rows = [("trained weights", (None, *others))] + ([("shuffled weights", controls)] if controls else [])
    return _Comparison(methods, tuple(rows))


def _walls(data: ReportData) -> tuple[str, ...]:
    """The pages of a layer that show all its channels."""
    return ("index.html", "compare.html") if data.provenance.compared else ("index.html",)


def check_data(data: ReportData) -> None:
    """Raise ValueError for slugs that are no file names, or not one layer's each."""
    slugs = [layer.slug for layer in data.layers]
    for slug, count in Counter(slugs).items():
        if count > 1 or not re.fullmatch(r"[a-z0-9_-]+", slug):
            raise ValueError(f"layer slug {slug!r}: expected to be unique and of a-z, 0-9, _ and -")
    for node in data.diagram:
        if node.slug is not None and node.slug not in slugs:
            raise ValueError(f"diagram node {node.id!r}: slug {node.slug!r} belongs to no layer")


def static_text(name: str) -> str:
    """The content of a static file."""
    return (files("onnxviz.report") / "static" / name).read_text(encoding="utf-8")


def static_names() -> dict[str, str]:
    """Where the pages expect each static file: a path with a hash of its content."""
    paths = {}
    for name in STATIC:
        stem, suffix = name.split(".")
        digest = hashlib.sha256(static_text(name).encode()).hexdigest()[:8]
        paths[name] = f"static/{stem}-{digest}.{suffix}"
    return paths


def make_environment(data: ReportData, static: Mapping[str, str], theme: str = "auto") -> Environment:
    """The templates, with the report's data, the paths of its static files, and its theme."""
    environment = open_templates()
    environment.globals.update(
        report=data,
        static=static,
        theme=theme,
        url=shown.url,
        place=shown.place,
        part=shown.part,
        page_of=page_of,
        comparison=_comparison(data),
    )
    return environment


def _channels(layer: LayerData) -> Iterator[ChannelData]:
    yield layer.all_channels
    yield from layer.rows


def pictures_of(data: ReportData) -> Iterator[str]:
    """Yield every picture that the pages show, some of them several times."""
    if data.filters is not None:
        yield from (data.filters.shared.path, data.filters.own.path)
    for layer in data.layers:
        if layer.montage is not None:
            yield layer.montage
        for channel in _channels(layer):
            yield from (
                sprite.path
                for sprite in (channel.card, channel.strips, channel.compared)
                if sprite is not None
            )
            yield from (hit.thumbnail for hit in channel.hits)


def _shape(layer: LayerData, comparison: _Comparison | None) -> str:
    """The width to the height of a layer's tallest card, on the wall of methods too: those of few hits are flatter."""
    cards = [channel.card for channel in layer.rows if channel.card is not None]
    sizes = [(card.columns * card.tile[1], card.rows * card.tile[0]) for card in cards]
    width, height = min(sizes, key=lambda size: size[0] / size[1], default=(2, 1))
    if comparison:
        width, height = (len(comparison.methods) + 1) * width, 2 * len(comparison.rows) * height
    return f"{width}/{height}"


def _neighbours(items: Sequence[T]) -> Iterator[tuple[T | None, T, T | None]]:
    for i, item in enumerate(items):
        yield items[i - 1] if i else None, item, items[i + 1] if i + 1 < len(items) else None


def _filter_pages(data: ReportData) -> dict[int | None, str]:
    """The pages of the channels that the first filters make, as far as they are in the report."""
    return {
        channel.index: f"layers/{layer.slug}/{page_of(channel)}"
        for layer in data.layers
        if data.filters is not None and layer.name == data.filters.layer
        for channel in layer.rows
    }


def _previews(data: ReportData) -> dict[str, list[ChannelData]]:
    """Choose for each layer the channels with the largest activations that have a card."""
    return {
        layer.slug: sorted(
            (channel for channel in layer.rows if channel.card is not None),
            key=lambda channel: -channel.largest,
        )[:PREVIEWS]
        for layer in data.layers
    }


def _diagrams(nodes: Sequence[DiagramNode], previews: dict[str, list[ChannelData]]) -> dict[str, Any]:
    """The network as one diagram, or as two where it is large and has repeated blocks: folded, and whole."""
    drawn = chain_concats(nodes)
    shown = {slug: channels[0] for slug, channels in previews.items() if channels}
    cards = {slug: channel.card for slug, channel in shown.items() if channel.card is not None}
    diagram, whole = lay_out(drawn, cards=cards), None
    if len(diagram.boxes) > READABLE and (runs := find_runs(drawn)):
        diagram, whole = lay_out(drawn, runs=runs, cards=cards), diagram
    return {
        "diagram": diagram,
        "whole": whole,
        "chained": drawn != tuple(nodes),
        "channel_of": {slug: channel.index for slug, channel in shown.items()},
    }


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, None for what JSON has no number for."""
    return {
        name: None if isinstance(content, float) and not math.isfinite(content) else content
        for name, content in vars(value).items()
    }


def _plain(value: Any) -> Any:
    """Turn dataclasses into dicts, as `dataclasses.asdict`, and what JSON has no number for into None, anywhere."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(content) for name, content in vars(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
