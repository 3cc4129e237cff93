"""Tables and figures of an atlas, for other programs and for print."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnxviz.atlas import Atlas
from onnxviz.errors import OnnxvizError
from onnxviz.files import write_atomically, writing
from onnxviz.images import render
from onnxviz.report.data import ChannelData, LayerData, ReportData
from onnxviz.report.render import as_json

__all__ = ["export_csv", "export_json", "export_parquet", "export_png"]

CHANNEL_COLUMNS: dict[str, type] = {
    "layer": str,
    "alias": str,
    "channel": int,
    "name": str,
    "dead": bool,
    "largest": float,
    "mean": float,
    "activity": float,
    "selectivity": float,
}
HIT_COLUMNS: dict[str, type] = {
    "layer": str,
    "alias": str,
    "channel": int,
    "rank": int,
    "image": str,
    "label": str,
    "score": float,
    "activation": float,
    "y": int,
    "x": int,
    "top": int,
    "left": int,
    "bottom": int,
    "right": int,
}
"""The columns of both tables, whatever the file, and what is in them."""

_PLATE = 24
"""Channels on a plate."""
_DPI = 300


@writing("the export")
def export_csv(atlas: Atlas, out: Path) -> tuple[Path, Path]:
    """Write ``channels.csv``, a row a channel, and ``hits.csv``, a row an image of a channel.

    Numbers have all their digits; what is no number is empty. The rows of all channels together have no channel.
    Text is UTF-8 with a mark at its start, by which spreadsheets know.
    """
    data = atlas.report_data()
    channels = out / "channels.csv"
    hits = out / "hits.csv"
    _write_csv(channels, CHANNEL_COLUMNS, _channel_rows(data))
    _write_csv(hits, HIT_COLUMNS, _hit_rows(data))
    return channels, hits


@writing("the export")
def export_parquet(atlas: Atlas, out: Path) -> tuple[Path, Path]:
    """Write ``channels.parquet`` and ``hits.parquet``: the tables of `export_csv` with types, and text as it is.

    What is no number is null. The files' metadata name onnxviz's version, the model and its hash.

    Raises:
        OnnxvizError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OnnxvizError(f"Parquet needs pyarrow ({error}). Install it: pip install pyarrow") from error
    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
    }
    data = atlas.report_data()
    facts = {
        "onnxviz.version": version("onnxviz"),
        "onnxviz.model": data.model.name,
        "onnxviz.sha256": data.model.sha256,
    }
    metadata = {name: text.encode("utf-8", errors="replace") for name, text in facts.items()}

    def write(name: str, columns: Mapping[str, type], rows: Iterable[tuple[Any, ...]]) -> Path:
        schema = pyarrow.schema([(column, types[kind]) for column, kind in columns.items()], metadata)
        values = [[_value(value) for value in row] for row in rows]
        arrays = [pyarrow.array([row[i] for row in values], field.type) for i, field in enumerate(schema)]
        table = pyarrow.table(arrays, schema=schema)
        path = out / name
        write_atomically(path, lambda partial: pyarrow.parquet.write_table(table, partial))
        return path

    out.mkdir(parents=True, exist_ok=True)
    channels = write("channels.parquet", CHANNEL_COLUMNS, _channel_rows(data))
    return channels, write("hits.parquet", HIT_COLUMNS, _hit_rows(data))


@writing("the export")
def export_json(atlas: Atlas, out: Path) -> Path:
    """Write ``report.json``: everything that a report shows, as the report's own JSON."""
    path = out / "report.json"
    out.mkdir(parents=True, exist_ok=True)
    content = as_json(atlas.report_data()).encode("utf-8", errors="replace")
    write_atomically(path, lambda partial: partial.write_bytes(content))
    return path


@writing("the export")
def export_png(atlas: Atlas, out: Path) -> list[Path]:
    """Write plates as in Fig. 2 of the paper: 24 channels each, strongest first, with a caption, for 300 dots an inch.

    Raises:
        OnnxvizError: a picture cannot be read.
    """
    data = atlas.report_data()
    written = []
    for layer in data.layers:
        rows = sorted((row for row in layer.rows if row.card is not None), key=lambda row: -row.largest)
        parts = [rows[start : start + _PLATE] for start in range(0, len(rows), _PLATE)]
        for number, part in enumerate(parts, start=1):
            sheet = _plate(atlas.folder, part, _caption(data, layer, number, len(parts)))
            path = out / f"{layer.slug}-{number:03d}.png"
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(path, dpi=(_DPI, _DPI))
            written.append(path)
    return written


def _rows(layer: LayerData) -> Iterator[tuple[tuple[Any, ...], ChannelData]]:
    for channel in (layer.all_channels, *layer.rows):
        yield (layer.name, layer.alias, channel.index), channel


def _channel_rows(data: ReportData) -> Iterator[tuple[Any, ...]]:
    for layer in data.layers:
        for start, one in _rows(layer):
            yield (*start, one.name, one.dead, one.largest, one.mean, one.activity, one.selectivity)


def _hit_rows(data: ReportData) -> Iterator[tuple[Any, ...]]:
    for layer in data.layers:
        for start, one in _rows(layer):
            for hit in one.hits:
                place = (hit.y, hit.x, *hit.box)
                yield (*start, hit.rank, hit.image, hit.label, hit.score, hit.activation, *place)


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> None:

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([_cell(value) for value in row] for row in rows)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _value(value: Any) -> Any:
    """A value of a table: None for what is no number, and text as UTF-8 can hold it."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    return value


def _cell(value: Any) -> Any:
    """A value as CSV has it: no number is an empty cell, true is 1, and no text starts a formula."""
    value = _value(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"  # a spreadsheet would run it
    return value


def _caption(data: ReportData, layer: LayerData, number: int, parts: int) -> list[str]:
    p = data.provenance
    first = f"{data.title}, {layer.title}" + (f" ({number} of {parts})" if parts > 1 else "")
    return [
        f"{first}: for each channel its strongest images, projections to the left, patches to the right.",
        f"{p.method}; images: {p.data_set}; zero is grey, each projection on a scale of its own.",
    ]


def _plate(folder: Path, rows: Sequence[ChannelData], caption: Sequence[str]) -> np.ndarray:
    """Cards under their channels' numbers, and a caption below."""
    cards = []
    for row in rows:
        assert row.card is not None
        try:
            with Image.open(folder / row.card.path) as picture:
                card = np.asarray(picture.convert("RGB"))
        except OSError as error:
            raise OnnxvizError(f"{folder / row.card.path}: the picture cannot be read: {error}") from error
        cards.append(card)
    names = [f"{row.index} {row.name}" if row.name else str(row.index) for row in rows]
    return render.captioned(render.montage(render.alike(cards, 216), names), caption)
