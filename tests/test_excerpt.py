"""Fewer images of each channel: the same report, and the same tiles, as an analysis that kept no more."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import tempfile

import numpy as np
import pytest
from PIL import Image

import onnxviz
from onnxviz.errors import AtlasError, UsageError
from tests.model.nets import build, conv_weights, node, write

LAYERS = ["conv1", "relu3"]
"""Cards without loss and strips with it; cards with it, of tiles that JPEG's blocks do not fit, and strips without."""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Analyse with any top: two layers on 24 images of 96×96."""
    folder = tmp_path_factory.mktemp("excerpt")
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", "x a", "c1", "conv1", pads=[1, 1, 1, 1]),
        node("Conv", "c1 b", "c2", "conv2", pads=[2, 2, 2, 2], strides=[4, 4]),
        node("Conv", "c2 c", "c3", "conv3", pads=[4, 4, 4, 4]),
        node("Relu", "c3", "r3", "relu3"),
    ]
    shapes = {"a": (4, 3, 3, 3), "b": (5, 4, 5, 5), "c": (6, 5, 9, 9)}
    weights = {name: conv_weights(rng, *shape) for name, shape in shapes.items()}
    weights["c"][2] = 0  # a dead channel
    model = write(folder / "net.onnx", build(nodes, weights, x=("N", 3, 96, 96)))
    coarse = rng.normal(size=(24, 3, 12, 12)).astype(np.float32).repeat(8, 2).repeat(8, 3)
    np.savez(folder / "x.npz", x=coarse, y=np.arange(24) % 3)

    def run(top: int, **options):
        ways = {"method": ("deconvnet", "guided"), "control": True}
        options = {"preprocess": "raw", "provider": "cpu", "layers": LAYERS, "montage": True} | ways | options
        return onnxviz.analyze(model, images=folder / "x.npz", top=top, **options)

    return run


@pytest.fixture(scope="module")
def nine(job):
    return job(9)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _facts(atlas) -> dict:
    facts = dataclasses.asdict(atlas.report_data())
    facts["provenance"].pop("date")
    return json.loads(json.dumps(facts))


def _pixels(atlas, path: str) -> np.ndarray:
    with Image.open(atlas.folder / path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _loss(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean square of what differs, of 255."""
    assert found.shape == expected.shape
    return float(np.sqrt(((found - expected) ** 2).mean()))


def _tiles(atlas, sprite) -> np.ndarray:
    """Tiles (rows, columns, h, w, 3) of a picture."""
    picture = _pixels(atlas, sprite.path)
    height, width = sprite.tile
    return picture.reshape(sprite.rows, height, sprite.columns, width, 3).swapaxes(1, 2)


@pytest.mark.parametrize("top", [1, 4, 5])
def test_it_is_what_an_analysis_of_so_many_gives(job, nine, top):
    part, fewer = nine.only(top=top), job(top)
    assert json.dumps(_facts(part)) == json.dumps(_facts(fewer))
    assert part.images == fewer.images and part.images.keys() < nine.images.keys()
    kinds = set()
    for one in part.report_data().layers:
        for row in (one.all_channels, *one.rows):
            if row.card is None:
                assert row.dead and row.strips is None and row.compared is None
                continue
            for sprite, rows in ((row.card, None), (row.strips, 2), (row.compared, None)):
                kind = sprite.path.rsplit(".", 1)[1], rows
                kinds.add(kind)
                found, expected = _pixels(part, sprite.path), _pixels(fewer, sprite.path)
                if kind[0] == "jpg" and sprite is row.compared:
                    continue  # guided projections are purer noise yet: `test_tiles_keep_their_pixels` has them
                if kind[0] == "jpg":  # each has a loss of its own, of noise, in blocks that lie otherwise
                    assert _loss(found, expected) < 20 < 40 < _loss(found[::-1], expected)
                else:
                    np.testing.assert_array_equal(found, expected)
    assert kinds == {("webp", None), ("jpg", 2), ("jpg", None), ("png", 2)}
    for one in part.layers:
        assert one.montage == f"{one.slug}-top{top}.png"
        sheets = [_pixels(atlas, one.montage) for atlas in (part, fewer)]
        assert _loss(*sheets) <= (20 if one.layer.name == "relu3" else 0)


@pytest.mark.parametrize("top", [1, 4, 5, 8])
def test_tiles_keep_their_pixels(nine, top):
    """As stored; where JPEG loses something a second time, little even of noise, which is what it is worst at."""
    part = nine.only(top=top)
    for before, after in zip(nine.report_data().layers, part.report_data().layers, strict=True):
        for old, new in zip(before.rows, after.rows, strict=True):
            if new.card is None:
                continue
            assert len(new.hits) == top and new.hits == old.hits[:top]
            stored, cut = _tiles(nine, old.card), _tiles(part, new.card)
            limit = 0 if new.card.path.endswith(".webp") else 6
            for rank in range(top):
                for half in (0, 1):
                    row, column = divmod(rank, old.card.columns // 2)
                    expected = stored[row, column + half * old.card.columns // 2]
                    row, column = divmod(rank, new.card.columns // 2)
                    found = cut[row, column + half * new.card.columns // 2]
                    assert _loss(found, expected) <= limit
            assert _loss(_tiles(part, new.strips), _tiles(nine, old.strips)[:, :top]) <= 6
            stored, cut = _tiles(nine, old.compared), _tiles(part, new.compared)
            for rank in range(top):
                for way in range(3):  # guided, and both with shuffled weights
                    row, column = divmod(rank, old.card.columns // 2)
                    expected = stored[row, column + way * old.card.columns // 2]
                    row, column = divmod(rank, new.card.columns // 2)
                    assert _loss(cut[row, column + way * new.card.columns // 2], expected) <= limit


def test_the_whole_is_not_touched(nine, tmp_path):
    before = {p: p.read_bytes() for p in nine.folder.rglob("*") if p.is_file()}
    nine.only(top=2).report(tmp_path / "out")
    assert {p: p.read_bytes() for p in nine.folder.rglob("*") if p.is_file()} == before
    assert len(nine["conv1"].topk.hits(0)) == 9


def test_all_of_them_are_the_same_files(nine):
    part = nine.only(top=9)
    assert part.folder != nine.folder
    for path in part.pictures():
        if not path.endswith("-top9.png"):
            assert (part.folder / path).read_bytes() == (nine.folder / path).read_bytes()


def test_channels_with_fewer_hits_stay_as_they_are(job):
    few = job(9, limit=3)
    part = few.only(top=4)
    assert [len(row.hits) for row in part.report_data().layers[0].rows] == [3] * 4
    for row in part.report_data().layers[0].rows:
        assert (part.folder / row.card.path).read_bytes() == (few.folder / row.card.path).read_bytes()


def test_a_part_can_be_saved_and_divided_further(nine, tmp_path):
    part = nine.only("relu3", "0-3", top=4)
    again = onnxviz.Atlas.load(part.save(tmp_path / "run"))
    assert json.dumps(_facts(again)) == json.dumps(_facts(part))
    smaller = again.only(top=2)
    assert [one.index for one in smaller.report_data().layers[0].rows] == [0, 1, 2, 3]
    assert {len(row.hits) for row in smaller.report_data().layers[0].rows} == {0, 2}
    with pytest.raises(UsageError, match=r"has the 4 strongest.* not 9"):
        again.only(top=9)
    page = smaller.report(tmp_path / "out")
    assert page.is_file() and not list((tmp_path / "out").glob("*-top4.png"))


@pytest.mark.parametrize("top", [10, 0, -1])
def test_more_than_there_are_is_bad_usage(nine, temporary, top):
    with pytest.raises(
        UsageError, match=f"has the 9 strongest images of each channel.*1 to 9, not {top}"
    ) as error:
        nine.only(top=top)
    assert error.value.exit_code == 2
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("kind", ["cut", "no-picture", "small"])
def test_a_damaged_picture_is_named(nine, tmp_path, temporary, kind):
    saved = nine.save(tmp_path / "run")
    path = saved / nine.report_data().layers[1].rows[0].card.path
    if kind == "small":
        Image.new("RGB", (8, 8)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:300] if kind == "cut" else b"text")
    atlas = onnxviz.Atlas.load(saved)
    with pytest.raises(AtlasError, match=path.name) as error:
        atlas.only(top=4)
    assert len(str(error.value).splitlines()) == 1
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("options", [{"layers": "conv1"}, {"top": 4}, {"channels": "0"}])
def test_pictures_live_as_long_as_a_part_needs_them(job, tmp_path, temporary, options):
    part = job(9).only(**options)
    last = part.only(channels=[0])
    del part
    gc.collect()
    assert last.report(tmp_path / "out").is_file()
    del last
    gc.collect()
    assert not list(temporary.iterdir())
    shutil.rmtree(tmp_path / "out")
