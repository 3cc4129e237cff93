"""What a notebook shows: well-formed, on its own, escaped, and the pictures of the atlas."""

from __future__ import annotations

import base64
import dataclasses
import gc
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import onnxviz
from onnxviz.errors import AtlasError, UnitError
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


def _images(page: _Tags) -> list[bytes]:
    sources = [values["src"] for tag, values in page.seen if tag == "img"]
    assert all(re.match(r"data:image/(jpeg|webp|png);base64,", source) for source in sources)
    return [base64.b64decode(source.split(",", 1)[1]) for source in sources]


def _stands_alone(page: _Tags) -> None:
    """Neither script nor style, and no address but those of pictures that are in it."""
    assert not {tag for tag, _ in page.seen} & {"script", "link", "style", "iframe", "object"}
    for tag, values in page.seen:
        assert not {name for name in values if name.startswith("on") or name in ("href", "srcset")}
        assert ("src" in values) == (tag == "img") and ("alt" in values) == (tag == "img")
        assert "url(" not in (values.get("style") or "")


@pytest.fixture(scope="module")
def part(model, atlas):
    """An atlas of layers with dead channels and some that are not shown."""
    net = small()
    weights = next(tensor for tensor in net.graph.initializer if tensor.name == "w1")
    values = np.frombuffer(weights.raw_data, np.float32).reshape(5, 3, 3, 3).copy()
    values[2] = 0
    weights.raw_data = values.tobytes()
    bias = next(tensor for tensor in net.graph.initializer if tensor.name == "b1")
    shift = np.frombuffer(bias.raw_data, np.float32).copy()
    shift[2] = -1
    bias.raw_data = shift.tobytes()
    options = {"preprocess": "raw", "provider": "cpu", "layers": ["relu1", "fc2"], "channels": "0-3"}
    other = write(model.with_name("dead.onnx"), net)
    return onnxviz.analyze(other, images=model.with_name("x.npy"), **options)


def test_a_layer_is_what_it_was_and_gives_its_channels(part):
    for layer, data in zip(part.layers, part.report_data().layers, strict=True):
        view = part[layer.layer.name]
        for field in dataclasses.fields(layer):
            assert getattr(view, field.name) is getattr(layer, field.name)
        assert view.alive == layer.alive and view.overall_hits == layer.overall_hits
        assert view.facts == data or repr(view.facts) == repr(data)  # NaN is not equal to itself
        assert [channel.index for channel in view] == [0, 1, 2, 3]
        for row in data.rows:
            channel = view[row.index]
            assert repr(channel.facts) == repr(row)
            assert channel.hits == row.hits and channel.index == row.index
            assert view[np.int64(row.index)].hits == row.hits
            if row.card is None:
                assert channel.card is None and channel.hits == ()
            else:
                with Image.open(part.folder / row.card.path) as image:
                    assert channel.card == image.convert("RGB")
    assert part["relu1"][2].facts.dead


def test_a_layer_shows_its_strongest_channels(part):
    view = part["relu1"]
    page = _Tags(view._repr_html_())
    _stands_alone(page)
    best = sorted((row for row in view.facts.rows if row.card), key=lambda row: -row.largest)
    assert len(best) == 3
    assert _images(page) == [(part.folder / row.card.path).read_bytes() for row in best]
    assert "5 channels (4 shown)" in page.text and "1 dead" in page.text


def test_a_layer_shows_no_more_than_a_dozen_channels(part, monkeypatch):
    monkeypatch.setattr("onnxviz.notebook._CARDS_OF_LAYER", 2)
    page = _Tags(part["relu1"]._repr_html_())
    assert len(_images(page)) == 2 and "The 2 channels with the largest activations" in page.text


def test_a_channel_shows_its_card_facts_and_hits(part):
    channel = part["relu1"][1]
    page = _Tags(channel._repr_html_())
    _stands_alone(page)
    paths = [channel.facts.card.path, *(hit.thumbnail for hit in channel.hits)]
    assert len(paths) == 10
    assert _images(page) == [(part.folder / path).read_bytes() for path in paths]
    words = " ".join(page.text.split())
    assert "relu1, channel 1" in words and f"{channel.facts.selectivity:.2f}" in words
    assert [tag for tag, _ in page.seen].count("tr") == 1 + len(channel.hits)
    for hit in channel.hits:
        assert hit.image in words and f"({hit.y}, {hit.x})" in words


def test_a_channels_picture_is_its_card(part):
    channel = part["relu1"][1]
    with Image.open(io.BytesIO(channel._repr_png_())) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    zoom = 96 // max(channel.facts.card.tile)
    assert zoom > 1
    np.testing.assert_array_equal(pixels[::zoom, ::zoom], np.asarray(channel.card))
    assert pixels.shape[1] == zoom * channel.card.width


def test_a_dead_channel_says_so(part):
    channel = part["relu1"][2]
    page = _Tags(channel._repr_html_())
    assert "Dead" in page.text and not _images(page)
    assert channel._repr_png_() is None
    assert "dead" in repr(channel)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (5, "relu1.* has channels 0 to 4; there is no channel 5"),
        (-1, "0 to 4; there is no channel -1"),
        (4, "Channel 4 of layer relu1.* has no pictures: the atlas shows 4 of its 5 channels"),
    ],
)
def test_a_channel_that_is_not_there(part, number, message):
    with pytest.raises(UnitError, match=message) as error:
        _ = part["relu1"][number]
    assert error.value.exit_code == 2 and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["7", 1.0, None, slice(0, 2)])
def test_what_is_no_number_is_no_channel(part, name):
    with pytest.raises(TypeError):
        _ = part["relu1"][name]


def test_names_of_images_classes_and_layers_stay_text(part):
    images = {index: (NASTY, NASTY, thumbnail) for index, (_, _, thumbnail) in part.images.items()}
    layers = tuple(
        dataclasses.replace(one, layer=dataclasses.replace(one.layer, name="<i>x"), names=(NASTY,) * 6)
        for one in part.layers[:1]
    )
    hostile = dataclasses.replace(part, images=images, layers=layers)
    view = hostile["<i>x"]
    for shown, count in ((view, 3), (view[1], 1 + 2 * 9)):
        text = shown._repr_html_()
        page = _Tags(text)
        _stands_alone(page)
        assert page.text.count('"><script>alert(1)</script>') == count
        assert "<i>x" in page.text and "i" not in [tag for tag, _ in page.seen]
        text.encode("utf-8")


def test_a_picture_that_is_lost_or_damaged_is_an_error(part, tmp_path):
    atlas = onnxviz.Atlas.load(part.save(tmp_path / "run"))
    channel = atlas["relu1"][1]
    (atlas.folder / channel.facts.card.path).write_bytes(b"text")
    with pytest.raises(AtlasError, match="damaged"):
        _ = channel.card
    (atlas.folder / channel.hits[0].thumbnail).unlink()
    with pytest.raises(AtlasError, match="cannot be read"):
        channel._repr_html_()


def test_a_channel_keeps_its_pictures(model):
    """The atlas's temporary folder stays as long as something of it can be asked for pictures."""
    options = {"preprocess": "raw", "provider": "cpu", "layers": ["conv1"], "channels": "0"}
    channel = onnxviz.analyze(model, images=model.with_name("x.npy"), **options)["conv1"][0]
    gc.collect()
    assert channel.card is not None and channel._repr_html_()


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
