"""Render a report: `ReportData` in, a folder of pages out that open from the file system.

index.html                    the network, its layers, where everything came from
layers/<slug>/index.html      a layer: a wall of channels
layers/<slug>/all.html        all channels together
layers/<slug>/c0007.html      a channel: its hits, six pictures each
report.json                   the same facts
static/                       style and script, named after their content
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnxviz.report import format as shown
from onnxviz.report.data import ChannelData, LayerData, ReportData
from onnxviz.report.diagram import lay_out
from onnxviz.report.folder import Folder

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["as_json", "page_of", "write_report"]

STATIC = ("report.css", "report.js")
T = TypeVar("T")
PREVIEWS = 6  # cards of a layer on the index


def write_report(data: ReportData, out: Path, *, pictures: Iterable[str] = ()) -> Path:
    """Write all pages into ``out`` and return its index.html; the index comes last.

    The pictures that ``data`` refers to are in ``out`` already. Those named in ``pictures`` (paths relative
    to ``out``) count as written by this report, so that the next one in the folder may remove them.

    Raises UsageError if the folder holds somebody else's index.html; ValueError for data that breaks the
    contract of `onnxviz.report.data`.
    """
    _check(data)
    folder = Folder(out)
    static = dict(_static())
    names = {name: path for name, (path, _) in static.items()}
    folder.expect([path for path, _ in static.values()])
    folder.expect(["index.html", "report.json", *pictures])
    folder.adopt(_pictures(data))
    folder.expect(
        f"layers/{layer.slug}/{page}"
        for layer in data.layers
        for page in ("index.html", *(page_of(channel) for channel in _channels(layer)))
    )
    for path, content in static.values():
        folder.write(path, content)
    environment = _environment(data, names)
    layer_page, channel_page = (
        environment.get_template("layer.html"),
        environment.get_template("channel.html"),
    )
    for before, layer, after in _neighbours(data.layers):
        rows = {channel.index: channel for channel in layer.rows}
        for previous, channel, following in _neighbours(tuple(_channels(layer))):
            text = channel_page.render(
                root="../../",
                layer=layer,
                channel=channel,
                previous=previous,
                following=following,
                rows=rows,
            )
            folder.write(f"layers/{layer.slug}/{page_of(channel)}", text)
        text = layer_page.render(
            root="../../",
            layer=layer,
            previous=before,
            following=after,
            alive=[channel for channel in layer.rows if not channel.dead],
            dead=[channel for channel in layer.rows if channel.dead],
            shape=_shape(layer),
            labels=sorted(
                {hit.label for channel in layer.rows for hit in channel.hits if hit.label is not None}
            ),
        )
        folder.write(f"layers/{layer.slug}/index.html", text)
    folder.write("report.json", as_json(data))
    index = environment.get_template("index.html")
    folder.write(
        "index.html",
        index.render(
            root="",
            diagram=lay_out(data.diagram),
            previews=_previews(data),
            filter_pages=_filter_pages(data),
        ),
    )
    folder.finish()
    return out / "index.html"


def as_json(data: ReportData) -> str:
    """All that a report shows, as JSON; null stands for what is no number."""
    return json.dumps(_plain(data), allow_nan=False)


def page_of(channel: ChannelData) -> str:
    """Return the name of a channel's page in its layer's folder."""
    return "all.html" if channel.index is None else f"c{channel.index:04d}.html"


def _check(data: ReportData) -> None:
    slugs = [layer.slug for layer in data.layers]
    for slug, count in Counter(slugs).items():
        if count > 1 or not re.fullmatch(r"[a-z0-9_-]+", slug):
            raise ValueError(f"layer slug {slug!r}: expected to be unique and of a-z, 0-9, _ and -")
    for node in data.diagram:
        if node.slug is not None and node.slug not in slugs:
            raise ValueError(f"diagram node {node.id!r}: slug {node.slug!r} belongs to no layer")


def _static() -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each static file's name, its path with a hash of its content, and the content."""
    for name in STATIC:
        content = (files("onnxviz.report") / "static" / name).read_text(encoding="utf-8")
        stem, suffix = name.split(".")
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        yield name, (f"static/{stem}-{digest}.{suffix}", content)


def _environment(data: ReportData, static: dict[str, str]) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("onnxviz.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=shown.number,
        integer=shown.integer,
        percent=shown.percent,
        size=shown.size,
        date=shown.date,
    )
    environment.globals.update(
        report=data,
        static=static,
        url=shown.url,
        place=shown.place,
        part=shown.part,
        page_of=page_of,
    )
    return environment


def _channels(layer: LayerData) -> Iterator[ChannelData]:
    yield layer.all_channels
    yield from layer.rows


def _pictures(data: ReportData) -> Iterator[str]:
    """Yield every picture that the pages show, some of them several times."""
    if data.filters is not None:
        yield from (data.filters.shared.path, data.filters.own.path)
    for layer in data.layers:
        if layer.montage is not None:
            yield layer.montage
        for channel in _channels(layer):
            yield from (sprite.path for sprite in (channel.card, channel.strips) if sprite is not None)
            yield from (hit.thumbnail for hit in channel.hits)


def _shape(layer: LayerData) -> str:
    """The width to the height of a layer's tallest card: cards with fewer hits may be flatter."""
    cards = [channel.card for channel in layer.rows if channel.card is not None]
    sizes = [(card.columns * card.tile[1], card.rows * card.tile[0]) for card in cards]
    width, height = min(sizes, key=lambda size: size[0] / size[1], default=(2, 1))
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


def _plain(value: Any) -> Any:
    """Turn dataclasses into dicts, as `dataclasses.asdict`, and what JSON has no number for into None."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(content) for name, content in vars(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
