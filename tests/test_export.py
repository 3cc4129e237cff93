"""Tables and figures of an atlas: the numbers are the atlas's own, and the plates show its pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli, export
from onnxviz.images import render
from tests.model.nets import small, write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = write(folder / "small.onnx", small())
    x = np.random.default_rng(2).normal(size=(12, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, y=np.arange(12) % 3)
    options = {"labels": ["=1+1", "an é", 'q"u,o'], "preprocess": "raw", "provider": "cpu"}
    atlas = onnxviz.analyze(model, images=folder / "x.npz", layers=["relu1", "fc2"], **options)
    atlas.publish(folder / "run")
    model.unlink()
    (folder / "x.npz").unlink()
    return folder / "run"


def _call(*arguments):
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


def _table(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_tables(run, tmp_path):
    result = _call(run, "--csv", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "channels.csv"), str(tmp_path / "hits.csv")]
    data = onnxviz.Atlas.load(run).report_data()
    channels, hits = _table(tmp_path / "channels.csv"), _table(tmp_path / "hits.csv")
    expected = [(layer, one) for layer in data.layers for one in (layer.all_channels, *layer.rows)]
    assert len(channels) == len(expected)
    for row, (layer, one) in zip(channels, expected, strict=True):
        assert (row["layer"], row["alias"]) == (layer.name, layer.alias)
        assert row["channel"] == ("" if one.index is None else str(one.index))
        assert row["dead"] == str(int(one.dead))
        for name in ("largest", "mean", "activity", "selectivity"):
            value = getattr(one, name)
            assert (row[name] == "") if math.isnan(value) else (float(row[name]) == value)
    flat = [(layer, one, hit) for layer, one in expected for hit in one.hits]
    assert len(hits) == len(flat)
    for row, (layer, _, hit) in zip(hits, flat, strict=True):
        assert (row["layer"], row["image"], int(row["rank"])) == (layer.name, hit.image, hit.rank)
        assert float(row["score"]) == hit.score and float(row["activation"]) == hit.activation
        assert (int(row["y"]), int(row["x"])) == (hit.y, hit.x)
        assert tuple(int(row[name]) for name in ("top", "left", "bottom", "right")) == hit.box
        assert row["label"] == ("'" if hit.label[0] == "=" else "") + hit.label
    # A spreadsheet must not run what a class is called.
    assert {row["label"] for row in hits} == {"'=1+1", "an é", 'q"u,o'}


NAMES = ("=1+1", "-x", "\ttab", '"><b>', "שלום \u202egpj.exe", "broken \udc80", "zero \0 byte", "")


def _read_parquet(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def test_parquet_has_the_atlas_own_numbers(run, tmp_path):
    result = _call(run, "--parquet", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / f"{n}.parquet") for n in ("channels", "hits")]
    channels, hits = (_read_parquet(tmp_path / f"{name}.parquet") for name in ("channels", "hits"))
    kinds = {field.name: str(field.type) for table in (channels, hits) for field in table.schema}
    assert {name for name, kind in kinds.items() if kind == "string"} == {
        "layer", "alias", "name", "image", "label",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "int64"} == {
        "channel", "rank", "y", "x", "top", "left", "bottom", "right",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "bool"} == {"dead"}
    assert {name for name, kind in kinds.items() if kind == "double"} == {
        "largest", "mean", "activity", "selectivity", "score", "activation",
    }  # fmt: skip
    data = onnxviz.Atlas.load(run).report_data()
    expected = [(layer, one) for layer in data.layers for one in (layer.all_channels, *layer.rows)]
    for row, (layer, one) in zip(channels.to_pylist(), expected, strict=True):
        numbers = {name: getattr(one, name) for name in ("largest", "mean", "activity", "selectivity")}
        numbers = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        facts = {"channel": one.index, "name": one.name, "dead": one.dead}
        assert row == {"layer": layer.name, "alias": layer.alias, **facts, **numbers}
    flat = [(layer, one, hit) for layer, one in expected for hit in one.hits]
    for row, (layer, one, hit) in zip(hits.to_pylist(), flat, strict=True):
        box = dict(zip(("top", "left", "bottom", "right"), hit.box, strict=True))
        own = {n: getattr(hit, n) for n in ("rank", "image", "label", "score", "activation", "y", "x")}
        assert row == {"layer": layer.name, "alias": layer.alias, "channel": one.index, **own, **box}
    assert None in channels["selectivity"].to_pylist()  # of all channels together


def test_parquet_and_csv_are_the_same_tables(run, tmp_path):
    assert _call(run, "--csv", "--parquet", "--out", tmp_path).exit_code == 0
    for name in ("channels", "hits"):
        plain, typed = _table(tmp_path / f"{name}.csv"), _read_parquet(tmp_path / f"{name}.parquet")
        assert list(plain[0]) == typed.column_names
        for row, other in zip(plain, typed.to_pylist(), strict=True):
            for column, value in other.items():
                text = row[column].removeprefix("'")
                if value is None:
                    assert text == ""
                else:
                    assert (type(value)(int(text)) if isinstance(value, bool) else type(value)(text)) == value


def test_parquet_says_where_it_comes_from(run, tmp_path):
    atlas = onnxviz.Atlas.load(run)
    model = dataclasses.replace(atlas.model, name="net \udc80 é")
    for path in export.export_parquet(dataclasses.replace(atlas, model=model), tmp_path):
        metadata = _read_parquet(path).schema.metadata
        assert metadata[b"onnxviz.version"].decode() == version("onnxviz")
        assert metadata[b"onnxviz.model"].decode() == "net ? é"
        assert metadata[b"onnxviz.sha256"].decode() == atlas.model.sha256 != ""


def test_parquet_keeps_hostile_names_as_they_are(run, tmp_path):
    atlas = onnxviz.Atlas.load(run)
    images = {
        index: (NAMES[i % len(NAMES)], NAMES[-1 - i % len(NAMES)], thumbnail)
        for i, (index, (_, _, thumbnail)) in enumerate(atlas.images.items())
    }
    atlas = dataclasses.replace(atlas, images=images)
    _, path = export.export_parquet(atlas, tmp_path)
    rows = _read_parquet(path).to_pylist()
    shown = [hit for layer in atlas.report_data().layers for hit in layer.all_channels.hits]
    found = [row for row in rows if row["channel"] is None]
    assert [row["image"] for row in found] == [hit.image.replace("\udc80", "?") for hit in shown]
    assert [row["label"] for row in found] == [hit.label.replace("\udc80", "?") for hit in shown]
    assert {row["image"] for row in rows} == {name.replace("\udc80", "?") for name in NAMES}


@pytest.mark.parametrize("missing", ["pyarrow", "pyarrow.parquet"])
def test_without_pyarrow_it_says_what_to_install(run, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    result = _call(run, "--csv", "--parquet", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Parquet needs pyarrow")
    assert "pip install pyarrow" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_json_is_the_reports(run, tmp_path):
    assert _call(run, "--json", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "report.json").read_bytes() == (run / "report.json").read_bytes()


def test_plates(run, tmp_path):
    result = _call(run, "--png", "--layer", "relu1", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    assert path.name == "relu1-001.png"
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        sheet = np.asarray(image.convert("RGB"))
    atlas = onnxviz.Atlas.load(run)
    rows = [row for row in atlas.report_data().layers[0].rows if row.card is not None]
    strongest = max(rows, key=lambda row: row.largest)
    with Image.open(run / strongest.card.path) as image:
        card = np.asarray(image.convert("RGB"))
    zoom = max(1, round(216 / max(row.card.rows * row.card.tile[0] for row in rows)))
    card = card.repeat(zoom, 0).repeat(zoom, 1)
    places = [
        (y, x)
        for y in range(60)
        for x in range(30)
        if np.array_equal(sheet[y : y + card.shape[0], x : x + card.shape[1]], card)
    ]
    assert len(places) == 1
    assert (sheet[-60:] < 100).any()  # the caption


def test_several_plates(run, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxviz.export._PLATE", 2)
    assert _call(run, "--png", "-l", "relu1", "--channels", "0-4", "--out", tmp_path).exit_code == 0
    alive = len(onnxviz.Atlas.load(run)["relu1"].alive)
    assert len(list(tmp_path.iterdir())) == -(-alive // 2)


def test_captions_are_wrapped():
    picture = np.zeros((10, 200, 3), np.uint8)
    short, long = (render.captioned(picture, [text]) for text in ("word", "word " * 40))
    assert short.shape[1] == long.shape[1] == 200
    assert long.shape[0] > short.shape[0] + 100
    assert (long[10:, -3:] == 255).all()


def test_it_goes_into_the_run_by_default(run):
    assert _call(run, "--csv").exit_code == 0
    assert (run / "export" / "hits.csv").is_file()


def test_wrong_calls(run, tmp_path):
    for arguments, part in (
        ([run], "--csv, --parquet, --json, --png"),
        ([run, "--csv", "-l", "conv9"], "No layer is called 'conv9'"),
    ):
        result = _call(*arguments, "--out", tmp_path / "out")
        assert result.exit_code == 2 and part in result.stderr
    result = _call(tmp_path, "--csv")
    assert result.exit_code == 1 and "holds no atlas" in result.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_lost_of_the_facts(run, tmp_path):
    assert _call(run, "--json", "--out", tmp_path).exit_code == 0
    facts = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    data = onnxviz.Atlas.load(run).report_data()
    assert set(facts) == {field.name for field in dataclasses.fields(data)}
