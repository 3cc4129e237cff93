"""What a notebook shows: well-formed, on its own, escaped, and the pictures of the atlas."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import onnxviz
from tests.model.nets import small, write

NASTY = '"><script>alert(1)</script> \udc80'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("notebook") / "small.onnx", small())


@pytest.fixture(scope="module")
def atlas(model):
    x = np.random.default_rng(2).normal(size=(12, 3, 12, 12)).astype(np.float32)
    np.save(model.with_name("x.npy"), x)
    options = {"preprocess": "raw", "provider": "cpu", "layers": ["conv1", "relu1", "fc2"]}
    return onnxviz.analyze(model, images=model.with_name("x.npy"), **options)


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_atlas_shows_its_layers(atlas):
    page = _Tags(atlas._repr_html_())
    for layer in atlas.report_data().layers:
        assert layer.title in page.text and str(layer.channels) in page.text
    cards = [values["src"] for tag, values in page.seen if tag == "img"]
    expected = []
    for layer in atlas.report_data().layers:
        best = sorted((row for row in layer.rows if row.card), key=lambda row: -row.largest)[:4]
        expected += [(atlas.folder / row.card.path).read_bytes() for row in best]
    assert [base64.b64decode(card.split(",", 1)[1]) for card in cards] == expected
    assert all(re.match(r"data:image/(jpeg|webp|png);base64,", card) for card in cards)
    assert not {tag for tag, _ in page.seen} & {"script", "link", "style"}


def test_names_stay_text(atlas):
    renamed = dataclasses.replace(atlas, model=dataclasses.replace(atlas.model, name=NASTY))
    page = _Tags(renamed._repr_html_())
    assert '"><script>alert(1)</script>' in page.text
    assert "script" not in [tag for tag, _ in page.seen]
    renamed._repr_html_().encode("utf-8")


def test_a_loaded_atlas_shows_itself_too(atlas, tmp_path):
    assert onnxviz.Atlas.load(atlas.save(tmp_path / "run"))._repr_html_() == atlas._repr_html_()


@pytest.mark.parametrize("count", [1, 7, 50])
def test_projections_show_themselves(model, count):
    net = onnxviz.load(model, provider="cpu")
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    units = [(i % 2, i % 5, 3 + i % 4, 5) for i in range(count)]
    found = net.project_units(x, "conv1", units)
    with Image.open(io.BytesIO(found._repr_png_())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    tile = 32 * 3
    columns, rows = min(6, count), -(-min(count, 36) // 6)
    assert pixels.shape == (rows * (tile + 4) - 4, columns * (tile + 4) - 4, 3)
    for number in range(min(count, 36)):
        y, x_ = (100 * part for part in divmod(number, columns))
        own = pixels[y : y + tile : 32, x_ : x_ + tile : 32]
        values = np.moveaxis(found.pixels[number], 0, -1)
        largest = np.abs(values).max()
        expected = 128 + 127 * values / largest if largest > 0 else np.full_like(values, 128)
        np.testing.assert_allclose(own, expected, atol=0.51)


def test_projections_of_other_images_than_rgb():
    found = onnxviz.Projections(np.ones((2, 5, 7, 7), np.float32), np.zeros((2, 4), np.int64))
    with Image.open(io.BytesIO(found._repr_png_())) as image:
        assert image.size == (2 * 91 + 4, 91)
    assert (
        onnxviz.Projections(np.zeros((0, 3, 7, 7), np.float32), np.zeros((0, 4), np.int64))._repr_png_()
        is None
    )
