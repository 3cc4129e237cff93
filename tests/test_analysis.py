"""The whole job, on every kind of network: what a report says is what plain onnxruntime computes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxviz
from onnxviz import analyze
from onnxviz.atlas import channel_ranges
from onnxviz.converters import alexnet, vgg16
from onnxviz.errors import (
    LayerNotFoundError,
    NoImagesError,
    ProviderError,
    UnitError,
    UnsupportedOpError,
    UsageError,
)
from onnxviz.images.render import crop, projection_rgb
from onnxviz.images.source import Sample, Source
from onnxviz.model.control import shuffled
from onnxviz.model.graph import ModelFile
from onnxviz.places import slugs
from onnxviz.progress import Progress
from tests.converters import synthetic
from tests.light import NAMES, write_light
from tests.model.nets import build, conv_weights, forward, node, small, write

MODELS = Path(__file__).parents[1] / "models"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _pictures(count: int, size: tuple[int, int], channels: int = 3, seed: int = 0) -> np.ndarray:
    """Coloured blobs (N, H, W, C) uint8: noise at a few scales."""
    rng = np.random.default_rng(seed)
    found = np.zeros((count, *size, channels))
    for cell in (4, 16, 50):
        small_ = rng.uniform(-1, 1, (count, -(-size[0] // cell), -(-size[1] // cell), channels))
        found += small_.repeat(cell, 1).repeat(cell, 2)[:, : size[0], : size[1]]
    return np.clip(128 + 60 * found, 0, 255).astype(np.uint8)


def _run(model: Path, images, out: Path, **options) -> onnxviz.Atlas:
    atlas = analyze(model, images=images, folder=out, provider="cpu", **options)
    page = atlas.report(out)
    assert page == out / "index.html"
    return atlas


def _check(atlas: onnxviz.Atlas, model: Path, x: np.ndarray, *, top: int = 9) -> None:
    """Scores, order, places, statistics and pictures against plain onnxruntime on the input array ``x``."""
    data = json.loads((atlas.folder / "report.json").read_text(encoding="utf-8"))
    assert (atlas.folder / "index.html").is_file()
    assert [layer["slug"] for layer in data["layers"]] == [one.slug for one in atlas.layers]
    for one, said in zip(atlas.layers, data["layers"], strict=True):
        layer = one.layer
        maps = np.transpose(forward(model, x, [layer.tensor])[layer.tensor], layer.order)
        assert maps.shape == (len(x), layer.channels, *layer.size)
        flat = maps.reshape(*maps.shape[:2], -1)
        scale = float(np.abs(flat).max())
        folder = atlas.folder / "layers" / one.slug
        assert (folder / "index.html").is_file()
        assert [row["index"] for row in said["rows"]] == list(one.pictured)
        for row in said["rows"]:
            values = flat[:, row["index"]]
            assert row["largest"] == pytest.approx(values.max(), rel=1e-3, abs=1e-4 * scale)
            assert row["dead"] == (values.max() <= 0)
            assert (folder / f"c{row['index']:04d}.html").is_file()
            if row["dead"]:
                assert row["hits"] == []
                assert row["card"] is row["strips"] is None
                continue
            ranked = np.sort(values.max(1))[::-1][:top]
            assert len(row["hits"]) == len(ranked)
            for hit, best in zip(row["hits"], ranked, strict=True):
                index = int(hit["image"].rpartition("[")[2].rstrip("]"))
                width = layer.size[1] if len(layer.size) > 1 else 1
                unit = values[index, hit["y"] * width + hit["x"]]
                # The activation of that very unit, and the order of a sort (up to what rounding turns round).
                assert hit["activation"] == hit["score"] == pytest.approx(unit, rel=1e-3, abs=1e-4 * scale)
                assert unit == pytest.approx(best, rel=1e-3, abs=1e-4 * scale)
                assert tuple(hit["box"]) == layer.box(hit["y"], hit["x"])
                assert (atlas.folder / hit["thumbnail"]).is_file()
            _check_sprites(atlas.folder, row, len(ranked))
        _check_sprites(atlas.folder, said["all_channels"], min(top, len(x)))


def _check_sprites(folder: Path, row: dict, hits: int) -> None:
    columns = int(np.ceil(np.sqrt(hits)))
    assert row["card"]["columns"] == 2 * columns
    assert row["card"]["rows"] == int(np.ceil(hits / columns))
    assert (row["strips"]["rows"], row["strips"]["columns"]) == (2, hits)
    for sprite in (row["card"], row["strips"]):
        height, width = sprite["tile"]
        with Image.open(folder / sprite["path"]) as image:
            assert image.size == (width * sprite["columns"], height * sprite["rows"])


def _save(folder: Path, pictures: np.ndarray) -> Path:
    path = folder / "pictures.npy"
    np.save(path, pictures)
    return path


# Networks that the project ships


def test_the_shipped_mnist_net(tmp_path):
    digits = np.load(Path(onnxviz.__file__).parent / "data" / "digits.npz")["x"][::100]
    path = _save(tmp_path, digits)
    atlas = _run(MODELS / "simple.onnx", path, tmp_path / "out", layers=["conv2", "fc2"], channels="0-9")
    _check(atlas, MODELS / "simple.onnx", digits[:, None].astype(np.float32) / 255)
    assert [one.layer.channels for one in atlas.layers] == [64, 10]
    assert atlas["fc2"].names == tuple("0123456789")
    assert atlas.provenance.preprocess_origin == "model metadata"


def test_the_shipped_mnist_net_on_its_own_digits(tmp_path):
    atlas = _run(MODELS / "simple.onnx", None, tmp_path / "out", layers=["conv1"], limit=100, channels="0-3")
    assert atlas.provenance.images == 100
    assert "MNIST digits" in atlas.provenance.data_set
    assert "the first 100" in atlas.provenance.data_set
    assert any("No images were given" in note for note in atlas.provenance.notes)
    assert {label for label, _ in atlas.provenance.classes} == set("0123456789")


def test_the_shipped_squeezenet(tmp_path):
    pictures = _pictures(6, (227, 227))
    model = MODELS / "squeezenet1_1.onnx"
    names = ["conv1", "fire6/squeeze1x1"]
    atlas = _run(model, _save(tmp_path, pictures), tmp_path / "out", layers=names, channels="0-3", top=4)
    x = pictures[..., ::-1] - np.array([103.939, 116.779, 123.68])
    x = x.transpose(0, 3, 1, 2).astype(np.float32)
    _check(atlas, model, x, top=4)


def test_the_shipped_squeezenet_on_built_in_samples(tmp_path):
    model = MODELS / "squeezenet1_1.onnx"
    atlas = _run(model, None, tmp_path / "out", layers=["conv1"], channels="0-1", limit=20)
    assert "photographs" in atlas.provenance.data_set
    assert atlas.provenance.images == 20


# Networks that the converters make from files of the original formats (their fc layers would only cost time)


def test_alexnet(tmp_path, monkeypatch):
    network = alexnet.network(units=(20, 16, 11))
    monkeypatch.setattr(alexnet, "network", lambda padding: network)
    entries = synthetic.paired(synthetic.he_weights(network, seed=3))
    weights = synthetic.write_python2_npy(tmp_path / "bvlc_alexnet.npy", entries)
    model = alexnet.convert(weights, tmp_path / "alexnet.onnx")
    pictures = _pictures(11, (227, 227))
    atlas = _run(model, _save(tmp_path, pictures), tmp_path / "out", layers=["conv5"], channels="0-3")
    x = pictures[..., ::-1] - np.array([104.00699, 116.66877, 122.67892])
    _check(atlas, model, x.transpose(0, 3, 1, 2).astype(np.float32))
    assert atlas["conv5"].layer.receptive_field == (163, 163)
    assert atlas["conv5"].layer.stride == (16, 16)
    assert "BGR" in atlas.provenance.preprocess


def test_vgg16(tmp_path, monkeypatch):
    """At half the width, which keeps geometry and names and costs a quarter of the time."""
    filters, units = (32, 64, 128, 256, 256), (16, 16, 10)
    network = vgg16.network(filters, units)
    monkeypatch.setattr(vgg16, "network", lambda units=units: network)
    weights = synthetic.vgg16_npz(tmp_path / "vgg16_weights.npz", seed=1, fc=units)
    model = vgg16.convert(weights, tmp_path / "vgg16.onnx")
    pictures = _pictures(3, (224, 224))
    images = _save(tmp_path, pictures)
    atlas = _run(model, images, tmp_path / "out", layers=["conv5_3"], channels="0-1", top=2)
    x = (pictures - np.array([123.68, 116.779, 103.939])).transpose(0, 3, 1, 2).astype(np.float32)
    _check(atlas, model, x, top=2)
    assert atlas["conv5_3"].layer.receptive_field == (196, 196)


# The nine light models of the onnx wheel

FIELDS = {
    "bvlc_alexnet": (163, 163),
    "densenet121": (27, 27),
    "inception_v1": (27, 27),
    "inception_v2": (27, 27),
    "resnet50": (11, 11),
    "squeezenet": (15, 15),
    "vgg19": (24, 24),
    "zfnet512": (139, 139),
}
LIMITS = {"squeezenet": 10, "shufflenet": 10, "resnet50": 10}  # the quick ones fill a top nine


@pytest.mark.parametrize("name", NAMES)
def test_light_models(tmp_path, name):
    model = write_light(name, tmp_path)
    limit = LIMITS.get(name, 4)
    pictures = _pictures(limit + 1, (224, 224))
    images = _save(tmp_path, pictures)
    atlas = _run(model, images, tmp_path / "out", layers=["conv5"], channels="0-1", limit=limit)
    x = ((pictures[:limit] / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    _check(atlas, model, x)
    (one,) = atlas.layers
    assert one.layer.alias == "conv5"
    assert one.layer.op == "Conv"
    if name in FIELDS:
        assert one.layer.receptive_field == FIELDS[name]
    for channel in one.alive:
        _check_something_is_drawn(atlas, channel)
    model.unlink()


def _check_something_is_drawn(atlas: onnxviz.Atlas, channel: int) -> None:
    """The projections on a card are not plain grey."""
    (row,) = (row for row in atlas.report_data().layers[0].rows if row.index == channel)
    with Image.open(atlas.folder / row.card.path) as image:
        card = np.asarray(image.convert("RGB")).astype(int)
    projections = card[:, : card.shape[1] // 2]
    assert np.abs(projections - 128).max() > 60
    assert 96 < projections.mean() < 160


# Every kind of input

CONV = [node("Conv", "x w b", "c", "conv1", pads=[1, 1, 1, 1]), node("Relu", "c", "r", "relu1")]


def _weights(channels: int) -> dict:
    rng = np.random.default_rng(1)
    return {"w": conv_weights(rng, 6, channels, 3, 3), "b": rng.normal(0, 0.2, 6).astype(np.float32)}


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_numbers_of_channels(tmp_path, channels):
    """Grey, two, RGBA-like, seven: from arrays of floats, which are the network's own values."""
    model = write(tmp_path / "m.onnx", build(CONV, _weights(channels), x=("N", channels, 14, 10)))
    x = np.random.default_rng(2).normal(size=(15, channels, 14, 10)).astype(np.float32)
    _check(_run(model, _save(tmp_path, x), tmp_path / "out", layers=["relu1"]), model, x)


def test_four_channels_of_bytes(tmp_path):
    model = write(tmp_path / "m.onnx", build(CONV, _weights(4), x=("N", 4, 14, 10)))
    pictures = _pictures(12, (14, 10), channels=4)
    atlas = _run(model, _save(tmp_path, pictures), tmp_path / "out", layers=["relu1"])
    _check(atlas, model, (pictures / 255).transpose(0, 3, 1, 2).astype(np.float32))
    assert "RGBA" in atlas.provenance.preprocess


def test_a_network_of_four_channels_sees_the_alpha_of_picture_files(tmp_path):
    model = write(tmp_path / "m.onnx", build(CONV, _weights(4), x=("N", 4, 14, 10)))
    pictures = _pictures(12, (14, 10), channels=4)
    (tmp_path / "images").mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture, "RGBA").save(tmp_path / "images" / f"image[{index}].png")
    atlas = _run(model, tmp_path / "images", tmp_path / "out", layers=["relu1"])
    maps = forward(model, (pictures / 255).transpose(0, 3, 1, 2).astype(np.float32), ["r"])["r"]
    for channel in range(6):
        best = np.sort(maps[:, channel].max((1, 2)))[::-1][:9]
        np.testing.assert_allclose([h.score for h in atlas["relu1"].topk.hits(channel)], best, rtol=1e-4)


def test_channels_last(tmp_path):
    nodes = [
        node("Transpose", "x", "t", "first", perm=[0, 3, 1, 2]),
        node("Conv", "t w b", "c", "conv1", strides=[2, 2]),
        node("Transpose", "c", "l", "last", perm=[0, 2, 3, 1]),
        node("Relu", "l", "r", "relu1"),
    ]
    model = write(tmp_path / "m.onnx", build(nodes, _weights(3), x=("N", 21, 17, 3)))
    pictures = _pictures(13, (21, 17))
    images = _save(tmp_path, pictures)
    atlas = _run(model, images, tmp_path / "out", layers=["conv1", "relu1"], preprocess="unit")
    _check(atlas, model, (pictures / 255).astype(np.float32))
    assert atlas["relu1"].layer.size == (10, 8)
    assert "NHWC" in atlas.model.input


def test_bytes(tmp_path):
    nodes = [
        node("Cast", "x", "f", "cast", to=1),
        node("Conv", "f w", "c", "conv1"),
        node("Relu", "c", "r", "relu1"),
    ]
    model = write(tmp_path / "m.onnx", build(nodes, {"w": _weights(3)["w"]}, x=("N", 3, 14, 10), dtype=2))
    pictures = _pictures(12, (14, 10))
    atlas = _run(model, _save(tmp_path, pictures), tmp_path / "out", layers=["relu1"])
    _check(atlas, model, pictures.transpose(0, 3, 1, 2))


def test_half_precision(tmp_path):
    weights = {name: array.astype(np.float16) for name, array in _weights(3).items()}
    nodes = [*CONV, node("MaxPool", "r", "p", "pool1", kernel_shape=[2, 2], strides=[2, 2])]
    model = write(tmp_path / "m.onnx", build(nodes, weights, x=("N", 3, 14, 10), dtype=10))
    x = np.random.default_rng(2).normal(size=(15, 3, 14, 10)).astype(np.float16)
    images = _save(tmp_path, x.astype(np.float32))
    atlas = _run(model, images, tmp_path / "out", layers=["pool1"])
    hits = atlas["pool1"].topk.hits(0)
    best = np.sort(forward(model, x, ["p"])["p"][:, 0].max((1, 2)))[::-1][:9]
    np.testing.assert_allclose([hit.score for hit in hits], best, rtol=2e-3)


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batches(tmp_path, batch):
    model = write(tmp_path / "fixed.onnx", small(x=(batch, 3, 12, 12)))
    plain = write(tmp_path / "plain.onnx", small())
    x = np.random.default_rng(2).normal(size=(15, 3, 12, 12)).astype(np.float32)
    atlas = _run(model, _save(tmp_path, x), tmp_path / "out", layers=["conv2", "fc1"])
    _check(atlas, plain, x)


def test_a_batch_that_the_graph_mixes_is_run_one_by_one(tmp_path):
    nodes = [*CONV, node("ReduceMean", "r", "m", axes=[0]), node("Add", "r m", "y", "add1")]
    model = write(tmp_path / "m.onnx", build(nodes, _weights(3), x=(1, 3, 14, 10)))
    x = np.random.default_rng(2).normal(size=(15, 3, 14, 10)).astype(np.float32)
    _check(_run(model, _save(tmp_path, x), tmp_path / "out", layers=["add1"]), model, x)


@pytest.mark.parametrize("size", [None, (20, 26)])
def test_an_open_size(tmp_path, size):
    model = write(tmp_path / "m.onnx", build(CONV, _weights(3), x=("N", 3, "H", "W")))
    height, width = size or (224, 224)
    pictures = _pictures(10, (height, width))
    images = _save(tmp_path, pictures)
    atlas = _run(
        model, images, tmp_path / "out", layers=["relu1"], size=size, preprocess="unit", channels="0"
    )
    _check(atlas, model, (pictures / 255).transpose(0, 3, 1, 2).astype(np.float32))
    assert atlas.provenance.input_size == (height, width)
    assert any(f"{height}×{width} was used" in note for note in atlas.provenance.notes)


# Pictures


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A small network, its images as an array, and a finished analysis of two of its layers."""
    folder = tmp_path_factory.mktemp("job")
    model = write(folder / "small.onnx", small())
    x = np.random.default_rng(2).normal(size=(15, 3, 12, 12)).astype(np.float32)
    images = _save(folder, x)
    options = {"layers": ["relu1", "conv2"], "preprocess": "raw"}
    return model, x, images, _run(model, images, folder / "out", **options)


def _card(atlas, layer, channel) -> list[tuple[np.ndarray, np.ndarray]]:
    """(projection, patch) of each hit, cut from a channel's card."""
    (found,) = (one for one in atlas.report_data().layers if one.slug == atlas[layer].slug)
    row = found.all_channels if channel is None else next(r for r in found.rows if r.index == channel)
    with Image.open(atlas.folder / row.card.path) as image:
        card = np.asarray(image.convert("RGB"))
    (height, width), half = row.card.tile, row.card.columns // 2
    pairs = []
    for rank in range(len(row.hits)):
        y, x = rank // half * height, rank % half * width
        pairs.append(
            tuple(card[y : y + height, x + d : x + d + width] for d in (0, half * width))  # type: ignore[misc]
        )
    return pairs


@pytest.mark.parametrize("layer", ["relu1", "conv2"])
def test_cards_show_each_hits_own_projection_and_patch(job, layer):
    """Small fields are stored without loss: every pixel must be the one that the API gives."""
    model, x, _, atlas = job
    net = onnxviz.load(model, provider="cpu")
    one = atlas[layer]
    for channel in one.alive[:3]:
        hits = one.topk.hits(channel)
        units = np.array([[hit.image, channel, hit.y, hit.x] for hit in hits])
        expected = net.project_units(x, layer, units)
        for hit, pixels, (projection, patch) in zip(
            hits, expected.pixels, _card(atlas, layer, channel), strict=True
        ):
            drawn = projection_rgb(pixels.transpose(1, 2, 0))
            assert np.abs(projection.astype(int) - drawn).max() <= 1
            frame = np.rint(np.clip(x[hit.image].transpose(1, 2, 0), 0, 255)).astype(np.uint8)
            np.testing.assert_array_equal(patch, crop(frame, one.layer.box(hit.y, hit.x)))


@pytest.mark.parametrize("method", ["gradient", "guided", "deconvnet"])
def test_the_method_is_the_one_drawn(job, tmp_path, method):
    model, x, images, _ = job
    atlas = _run(
        model, images, tmp_path / "out", layers=["conv2"], channels="1", method=method, preprocess="raw"
    )
    net = onnxviz.load(model, provider="cpu")
    hit = atlas["conv2"].topk.hits(1)[0]
    unit = np.array([[hit.image, 1, hit.y, hit.x]])
    expected = net.project_units(x, "conv2", unit, method=method).pixels[0]
    drawn = projection_rgb(expected.transpose(1, 2, 0))
    assert np.abs(_card(atlas, "conv2", 1)[0][0].astype(int) - drawn).max() <= 1
    assert atlas.provenance.method == method
    assert atlas.provenance.seed.startswith("1 at the") == (method == "gradient")


@pytest.mark.parametrize("layer", ["relu1", "conv2"])
def test_the_seed_can_be_the_whole_map(job, tmp_path, layer):
    """Its positive part, as after the rectifier that follows."""
    model, x, images, unit = job
    options = {"layers": [layer], "channels": "0-2", "preprocess": "raw"}
    atlas = _run(model, images, tmp_path / "out", seed="map", **options)
    net = onnxviz.load(model, provider="cpu")
    for channel in atlas[layer].alive:
        hit = atlas[layer].topk.hits(channel)[0]
        maps = net.activations(x[hit.image][None], layer)
        seed = np.zeros_like(maps)
        seed[:, channel] = np.maximum(maps[:, channel], 0)
        whole = net.vjp({"x": x[hit.image][None]}, {layer: seed}, method="deconvnet")["x"][0]
        part = crop(whole.transpose(1, 2, 0), atlas[layer].layer.box(hit.y, hit.x), fill=0)
        drawn = projection_rgb(part)
        assert np.abs(_card(atlas, layer, channel)[0][0].astype(int) - drawn).max() <= 1
    assert "whole map" in atlas.provenance.seed
    assert "strongest unit" in unit.provenance.seed


def _compared(atlas, layer, channel) -> list[list[np.ndarray]]:
    """For each of the ways compared with, the projections of a channel's hits."""
    (found,) = (one for one in atlas.report_data().layers if one.slug == atlas[layer].slug)
    row = found.all_channels if channel is None else next(r for r in found.rows if r.index == channel)
    with Image.open(atlas.folder / row.compared.path) as image:
        sheet = np.asarray(image.convert("RGB"))
    height, width = row.compared.tile
    assert sheet.shape[:2] == (height * row.compared.rows, width * row.compared.columns)
    columns = row.card.columns // 2
    return [
        [
            sheet[y * height : (y + 1) * height, x * width : (x + 1) * width]
            for y, x in ((n // columns, way * columns + n % columns) for n in range(len(row.hits)))
        ]
        for way in range(len(atlas.provenance.compared))
    ]


@pytest.mark.parametrize("memory", [1 << 30, 40 << 10])
@pytest.mark.parametrize("seed", ["unit", "map"])
def test_several_methods_are_compared(job, tmp_path, seed, memory):
    """Each method beside the first shows what a run with that method alone shows, of the row of all channels too."""
    model, _, images, _ = job
    options = {"layers": ["relu1", "conv2"], "channels": "0-2", "preprocess": "raw", "seed": seed}
    methods = ["guided", "gradient", "deconvnet", "guided"]
    atlas = _run(model, images, tmp_path / "all", method=methods, memory=memory, **options)
    assert atlas.provenance.method == "guided"
    assert [(one.method, one.control) for one in atlas.provenance.compared] == [
        ("gradient", False),
        ("deconvnet", False),
    ]
    for number, method in enumerate(["guided", "gradient", "deconvnet"]):
        alone = _run(model, images, tmp_path / method, method=method, **options)
        assert alone.provenance.compared == ()
        for layer in ("relu1", "conv2"):
            for channel in (None, *alone[layer].alive):
                expected = [projection for projection, _ in _card(alone, layer, channel)]
                if number:
                    found = _compared(atlas, layer, channel)[number - 1]
                else:
                    found = [projection for projection, _ in _card(atlas, layer, channel)]
                for one, other in zip(found, expected, strict=True):
                    assert np.abs(one.astype(int) - other).max() <= 1
    again = onnxviz.Atlas.load(atlas.save(tmp_path / "saved"))
    assert again.report_data() == atlas.report_data()
    page = again.report(tmp_path / "again")
    assert (page.parent / "layers" / atlas["conv2"].slug / "compare.html").is_file()


def test_the_control_is_the_network_with_the_weights_in_another_order(job, tmp_path):
    """The same units, from a seed of 1, in a file written here with the same order."""
    model, x, images, _ = job
    options = {"layers": ["conv2"], "preprocess": "raw", "method": ["gradient", "deconvnet"]}
    atlas = _run(model, images, tmp_path / "out", control=True, **options)
    assert [(one.method, one.control) for one in atlas.provenance.compared] == [
        ("deconvnet", False),
        ("gradient", True),
        ("deconvnet", True),
    ]
    proto = onnx.load(model)
    own = shuffled(ModelFile(model), ["conv2"])
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(own.initializers[tensor.name])
    net = onnxviz.load(write(tmp_path / "shuffled.onnx", proto), provider="cpu")
    one, differ = atlas["conv2"], 0
    for channel in one.alive[:4]:
        hits = one.topk.hits(channel)
        found = _compared(atlas, "conv2", channel)
        for rank, hit in enumerate(hits):
            picture = x[hit.image][None]
            seed = np.zeros((1, one.layer.channels, *one.layer.size), np.float32)
            seed[0, channel, hit.y, hit.x] = 1
            for method, way in (("gradient", 1), ("deconvnet", 2)):
                whole = net.vjp({"x": picture}, {"conv2": seed}, method=method)["x"][0]
                part = crop(whole.transpose(1, 2, 0), one.layer.box(hit.y, hit.x), fill=0)
                assert np.abs(found[way][rank].astype(int) - projection_rgb(part)).max() <= 1
            differ += np.abs(found[2][rank].astype(int) - found[0][rank]).max() > 20
    assert differ > 20


def test_a_control_needs_weights(tmp_path):
    model = write(tmp_path / "m.onnx", build([node("Relu", "x", "y")]))
    heard = Heard()
    with pytest.raises(UsageError, match="no weights to shuffle"):
        analyze(model, layers=["y"], control=True, progress=heard, provider="cpu")
    assert [phase[0] for phase in heard.phases] == ["Opening"]


def test_images_in_their_own_order(job, tmp_path):
    model, x, images, _ = job
    atlas = _run(model, images, tmp_path / "out", layers=["relu1"], rank="first", top=4, preprocess="raw")
    maps = forward(model, x, ["r1"])["r1"]
    for channel in range(5):
        hits = atlas["relu1"].topk.hits(channel)
        assert [hit.image for hit in hits] == [0, 1, 2, 3]
        for hit in hits:
            assert hit.activation == pytest.approx(maps[hit.image, channel].max(), rel=1e-5)
            assert maps[hit.image, channel, hit.y, hit.x] == pytest.approx(hit.activation, rel=1e-5)
    assert [hit.image for hit in atlas["relu1"].overall.hits(0)] == [0, 1, 2, 3]
    assert "in order" in atlas.provenance.ranking


def test_ranking_by_the_sum(job, tmp_path):
    model, x, images, _ = job
    atlas = _run(model, images, tmp_path / "out", layers=["relu1"], rank="sum", preprocess="raw")
    sums = forward(model, x, ["r1"])["r1"].sum((2, 3))
    for channel in range(5):
        hits = atlas["relu1"].topk.hits(channel)
        assert [hit.image for hit in hits] == np.argsort(-sums[:, channel])[:9].tolist()
        np.testing.assert_allclose(
            [hit.score for hit in hits], np.sort(sums[:, channel])[::-1][:9], rtol=1e-4
        )
    assert "sum" in atlas.provenance.ranking


@pytest.mark.parametrize("top", [1, 5, 40])
def test_other_numbers_than_nine(job, tmp_path, top):
    model, x, images, _ = job
    atlas = _run(model, images, tmp_path / "out", layers=["relu1"], top=top, preprocess="raw")
    _check(atlas, model, x, top=top)


def test_montage(job, tmp_path):
    model, _, images, unit = job
    atlas = _run(model, images, tmp_path / "out", layers=["relu1", "conv2"], montage=True, preprocess="raw")
    for one, data in zip(atlas.layers, atlas.report_data().layers, strict=True):
        assert data.montage == one.montage
        with Image.open(atlas.folder / one.montage) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
    assert all(one.montage is None for one in unit.layers)
    page = (atlas.folder / "layers" / atlas.layers[0].slug / "index.html").read_text(encoding="utf-8")
    assert atlas.layers[0].montage in page


def test_some_channels(job, tmp_path):
    model, x, images, _ = job
    options = {"layers": ["relu1", "conv2"], "preprocess": "raw"}
    atlas = _run(model, images, tmp_path / "out", channels="0-2,6", **options)
    assert [one.pictured for one in atlas.layers] == [(0, 1, 2), (0, 1, 2, 6)]  # relu1 has five
    _check(atlas, model, x)
    names = sorted(p.name for p in (atlas.folder / "layers" / atlas.layers[1].slug).glob("c*.html"))
    assert names == ["c0000.html", "c0001.html", "c0002.html", "c0006.html"]
    again = _run(model, images, tmp_path / "again", channels=[6, 0, 1, 2], **options)
    assert [one.pictured for one in again.layers] == [(0, 1, 2), (0, 1, 2, 6)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-15,40", (*range(16), 40)),
        ("3", (3,)),
        (" 1 - 3 , 5 ", (1, 2, 3, 5)),
        ("2,1", (2, 1)),
        ("7-7", (7,)),
    ],
)
def test_channels_as_text(text, numbers):
    assert tuple(number for part in channel_ranges(text) for number in part) == numbers


def test_channels_far_beyond_the_layer_cost_nothing(job, tmp_path):
    model, _, images, _ = job
    heard = Heard()
    options = {"layers": ["conv2"], "provider": "cpu", "progress": heard}
    atlas = analyze(model, images=images, channels="5-999999999999,2", **options)
    assert atlas["conv2"].pictured == (2, 5, 6)
    assert any("has channels 0 to 6" in note for note in heard.notes)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0..5", "1.5", "٣-"])
def test_channels_that_are_no_numbers(text):
    with pytest.raises(UsageError, match="0-15,40") as error:
        channel_ranges(text)
    assert repr(text) in str(error.value)


# Dead channels


def _with_bias(value, channels) -> dict:
    weights = _weights(3)
    weights["b"][channels] = value
    return weights


def test_dead_channels_are_said_to_be_dead(tmp_path):
    model = write(tmp_path / "m.onnx", build(CONV, _with_bias(-1000, [2, 4]), x=("N", 3, 14, 10)))
    x = np.random.default_rng(2).normal(size=(12, 3, 14, 10)).astype(np.float32)
    out = tmp_path / "out"
    atlas = _run(model, _save(tmp_path, x), out, layers=["conv1", "relu1"], preprocess="raw", montage=True)
    _check(atlas, model, x)
    for one in atlas.layers:
        assert [c for c in range(6) if one.dead(c)] == [2, 4]
        assert one.alive == (0, 1, 3, 5)
        pictures = {p.name for p in (out / "pictures" / one.slug).iterdir()}
        assert "00000.webp" in pictures
        assert not {"00002.webp", "00004-strips.png"} & pictures
        for page in ("index.html", "c0002.html"):
            assert "dead" in (out / "layers" / one.slug / page).read_text(encoding="utf-8")


def test_a_layer_that_is_all_dead(tmp_path):
    model = write(tmp_path / "m.onnx", build(CONV, _with_bias(-1000, slice(None)), x=("N", 3, 14, 10)))
    x = np.random.default_rng(2).normal(size=(12, 3, 14, 10)).astype(np.float32)
    atlas = _run(
        model, _save(tmp_path, x), tmp_path / "out", layers=["relu1"], montage=True, preprocess="raw"
    )
    (layer,) = atlas.report_data().layers
    assert all(row.dead for row in layer.rows)
    assert layer.all_channels.dead
    # As the contract of report.data has it.
    assert layer.all_channels.card is None
    assert layer.all_channels.strips is None


def test_an_activation_of_zero_is_dead_one_just_above_is_not(tmp_path):
    weights = {"w": np.zeros((2, 3, 1, 1), np.float32), "b": np.array([0, 1e-6], np.float32)}
    model = write(
        tmp_path / "m.onnx", build([node("Conv", "x w b", "c", "conv1")], weights, x=("N", 3, 6, 6))
    )
    x = np.ones((3, 3, 6, 6), np.float32)
    atlas = _run(model, _save(tmp_path, x), tmp_path / "out", layers=["conv1"], preprocess="raw")
    assert [atlas["conv1"].dead(c) for c in (0, 1)] == [True, False]


def test_activations_that_are_not_finite_are_noted(tmp_path):
    model = write(tmp_path / "m.onnx", build([node("Relu", "x", "r", "relu1")], x=("N", 3, 6, 6)))
    x = np.random.default_rng(0).uniform(1, 9, (12, 3, 6, 6)).astype(np.float32)
    x[4, 1, 2, 3] = 3e38
    nodes = [node("Mul", "x ten", "m", "times"), node("Relu", "m", "r", "relu1")]
    weights = {"ten": np.float32(10)}
    model = write(tmp_path / "m.onnx", build(nodes, weights, x=("N", 3, 6, 6)))
    atlas = _run(model, _save(tmp_path, x), tmp_path / "out", layers=["relu1"], top=12, preprocess="raw")
    assert [len(atlas["relu1"].topk.hits(c)) for c in range(3)] == [12, 11, 12]
    assert any("up to 1 image(s) gave NaN or infinity" in note for note in atlas.provenance.notes)


# Labels and names


def test_folders_are_labels_and_bad_images_are_listed(tmp_path):
    model = write(tmp_path / "m.onnx", small())
    for index, picture in enumerate(_pictures(10, (12, 12))):
        folder = tmp_path / "photos" / ("dogs" if index % 2 else "cats")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index}.png")
    (tmp_path / "photos" / "cats" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    atlas = _run(model, tmp_path / "photos", tmp_path / "out", layers=["relu1"])
    assert atlas.provenance.classes == (("cats", 5), ("dogs", 5))
    assert atlas.provenance.images == 9
    assert [name for name, _ in atlas.provenance.skipped] == ["cats/4.png"]
    for row in atlas.report_data().layers[0].rows:
        for hit in row.hits:
            assert hit.label == hit.image.split("/")[0]
            assert hit.label == ("dogs" if int(Path(hit.image).stem) % 2 else "cats")
    assert "cats/4.png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["file", "sequence", "metadata"])
def test_class_names(tmp_path, kind):
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    metadata = {"onnxviz.labels": json.dumps(names)} if kind == "metadata" else None
    model = write(tmp_path / "m.onnx", small(metadata=metadata))
    given = {"metadata": None, "sequence": names, "file": tmp_path / "names.txt"}[kind]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    x = np.random.default_rng(2).normal(size=(10, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(10) % 6)
    atlas = _run(model, tmp_path / "x.npz", tmp_path / "out", layers=["fc1", "fc2"], labels=given)
    dense, output = atlas.report_data().layers
    assert [row.name for row in output.rows] == names
    assert {row.name for row in dense.rows} == {None}  # eight units, six names
    for hit in output.rows[0].hits:
        index = int(hit.image.rpartition("[")[2].rstrip("]"))
        assert hit.label == names[index % 6]


def test_slugs_are_unique_and_safe():
    from dataclasses import replace

    from tests.model.test_layers import _layer

    names = ["Images", "a/b", "a.b", "A b", "卷积", "/x" * 40, "/x" * 40 + "y", "..", "CON"]
    found = slugs([replace(_layer(name, f"conv{i}"), name=name) for i, name in enumerate(names)])
    assert len(set(found)) == len(names)
    assert "images" not in found
    assert all(part and set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for part in found)


# What is checked before an image is read


class Untouchable(Source):
    """Fails the test when an image is read."""

    def __new__(cls):
        def read():
            raise AssertionError("an image was read")

        return Source("untouchable", tuple(Sample(str(i), None, read) for i in range(3)))


UNSUPPORTED = [
    node("Conv", "x w b", "c", "conv1"),
    node("Gelu", "c", "e", "gelu1", domain="com.microsoft"),
    node("Relu", "e", "r", "relu1"),
]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"layers": ["conv9"]}, LayerNotFoundError),
        ({"layers": []}, LayerNotFoundError),
        ({"layers": ["conv1"], "channels": "6-9"}, UnitError),
        ({"layers": ["conv1"], "channels": "x"}, UsageError),
        ({"layers": ["conv1"], "method": "lime"}, UsageError),
        ({"layers": ["conv1"], "overlap": "max"}, UsageError),
        ({"layers": ["conv1"], "lrn": "no"}, UsageError),
        ({"layers": ["conv1"], "rank": "mean"}, UsageError),
        ({"layers": ["conv1"], "seed": "all"}, UsageError),
        ({"layers": ["conv1"], "top": 0}, UsageError),
        ({"layers": ["conv1"], "limit": 0}, UsageError),
        ({"layers": ["conv1"], "preprocess": "vgg"}, UsageError),
        ({"layers": ["conv1"], "mean": [1.0, 2.0]}, UsageError),
        ({"layers": ["conv1"], "size": (9, 9)}, UsageError),
        ({"layers": ["conv1"], "labels": "nowhere.txt"}, UsageError),
        ({"layers": ["conv1"], "provider": "tpu"}, UsageError),
        ({"layers": ["relu1"]}, UnsupportedOpError),
    ],
)
def test_wrong_calls_fail_before_an_image_is_read(tmp_path, options, error):
    model = write(tmp_path / "m.onnx", build(UNSUPPORTED, _weights(3), x=("N", 3, 14, 10)))
    with pytest.raises(error) as caught:
        analyze(model, images=Untouchable(), folder=tmp_path / "out", **{"provider": "cpu", **options})
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_an_unsupported_operator_is_named_with_its_node_and_where_to_read_what_is_supported(tmp_path):
    model = write(tmp_path / "m.onnx", build(UNSUPPORTED, _weights(3), x=("N", 3, 14, 10)))
    with pytest.raises(UnsupportedOpError) as caught:
        analyze(model, images=Untouchable(), layers=["relu1"], provider="cpu")
    message = str(caught.value)
    for part in ("com.microsoft.Gelu", "gelu1", "onnxviz operators"):
        assert part in message
    # The layer before it can be analysed.
    x = np.random.default_rng(2).normal(size=(3, 3, 14, 10)).astype(np.float32)
    _run(model, _save(tmp_path, x), tmp_path / "out", layers=["conv1"])


def test_a_foreign_folder_is_refused_before_an_image_is_read(job, tmp_path):
    model = job[0]
    (tmp_path / "index.html").write_text("my own page")
    with pytest.raises(UsageError, match=r"index\.html"):
        analyze(model, images=Untouchable(), layers=["conv1"], provider="cpu", folder=tmp_path)
    assert (tmp_path / "index.html").read_text() == "my own page"


def test_no_usable_image_leaves_nothing_behind(job, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    with pytest.raises(NoImagesError, match=r"a\.png"):
        analyze(job[0], images=tmp_path / "bad", layers=["conv1"], provider="cpu", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cuda_is_refused_before_an_image_is_read(job, monkeypatch):
    from onnxviz.forward import session

    monkeypatch.setattr(session, "_cuda_problem", lambda: "there is no NVIDIA driver")
    with pytest.raises(ProviderError):
        analyze(job[0], images=Untouchable(), layers=["conv1"], provider="cuda")


# Progress, provenance, repeated runs


class Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[list] = []

    def note(self, text):
        self.notes.append(text)

    def start(self, task, total, unit):
        self.phases.append([task, total, 0, unit, False])

    def advance(self, count=1):
        self.phases[-1][2] += count

    def finish(self):
        self.phases[-1][4] = True


def test_progress_adds_up(job, tmp_path):
    model, _, images, _ = job
    heard = Heard()
    analyze(model, images=images, layers=["relu1", "fc1"], provider="cpu", progress=heard)
    assert [phase[0] for phase in heard.phases] == [
        "Opening",
        "Scanning",
        "Recording",
        "Projecting relu1",
        "Projecting dense1 (fc1)",
    ]
    assert all(done == total and finished for _, total, done, _, finished in heard.phases)
    assert [phase[1] for phase in heard.phases[:2]] == [0, 15]
    assert heard.notes[0].startswith("x: float32 N×3×12×12 (NCHW); 12×12")
    assert heard.notes[0].endswith("runs on CPU")


def test_built_in_samples_are_announced(job):
    heard = Heard()
    analyze(job[0], layers=["conv1"], limit=3, channels="0", provider="cpu", progress=heard)
    assert any(note.startswith("No --images given") for note in heard.notes)


def test_provenance(job):
    model, _, _, atlas = job
    said = atlas.provenance
    assert said.data_set == "pictures.npy (15 images)"
    assert said.images == 15
    assert said.input_size == (12, 12)
    assert said.preprocess_origin == "preset raw"
    assert said.method == "deconvnet"
    assert dict(said.policies) == {
        "overlapping pools": "sum",
        "LRN": "identity",
        "other activations": "rectify",
        "1 × Relu": "max(g, 0), whatever the activation was (Zeiler & Fergus 2014, 2.1)",
    }
    assert said.provider == "CPU"
    assert {"Python", "onnxviz", "onnx", "numpy"} <= dict(said.versions).keys()
    import hashlib

    assert atlas.model.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert atlas.model.name == "small"


def test_the_diagram_marks_the_layers_analysed(job):
    atlas = job[3]
    marked = {node_.label: node_.slug for node_ in atlas.diagram if node_.slug}
    assert marked == {"relu1": atlas["relu1"].slug, "conv2": atlas["conv2"].slug}
    assert [node_.op for node_ in atlas.diagram][:3] == ["Input", "Conv", "Relu"]


def test_the_same_job_gives_the_same_report(job, tmp_path):
    model, _, images, atlas = job
    again = _run(model, images, tmp_path / "again", layers=["relu1", "conv2"], preprocess="raw", batch_size=2)
    for one, other in zip(atlas.layers, again.layers, strict=True):
        np.testing.assert_array_equal(one.topk.image, other.topk.image)
        np.testing.assert_allclose(one.topk.score, other.topk.score, rtol=1e-5)
    assert dataclasses.replace(atlas.provenance, date="") == dataclasses.replace(again.provenance, date="")


def test_a_report_replaces_the_one_before_it(job, tmp_path):
    model, _, images, _ = job
    out = tmp_path / "out"
    _run(model, images, out, layers=["relu1", "conv2"], montage=True, preprocess="raw")
    (out / "mine.txt").write_text("keep me")
    atlas = _run(model, images, out, layers=["conv2"], channels="0-1", preprocess="raw")
    left = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert "mine.txt" in left
    assert not [name for name in left if "relu1" in name]
    fresh = tmp_path / "fresh"
    _run(model, images, fresh, layers=["conv2"], channels="0-1", preprocess="raw")
    assert left - {"mine.txt"} == {p.relative_to(fresh).as_posix() for p in fresh.rglob("*") if p.is_file()}
    assert atlas["conv2"].pictured == (0, 1)


def test_every_picture_of_the_report_exists_and_none_is_unused(job):
    atlas = job[3]
    data = atlas.report_data()
    used = {data.filters.shared.path, data.filters.own.path}
    for layer in data.layers:
        for row in (layer.all_channels, *layer.rows):
            used |= {sprite.path for sprite in (row.card, row.strips) if sprite}
            used |= {hit.thumbnail for hit in row.hits}
    there = {
        p.relative_to(atlas.folder).as_posix() for p in (atlas.folder / "pictures").rglob("*") if p.is_file()
    }
    assert there == used


def test_without_a_folder_pictures_live_as_long_as_the_atlas(job):
    model, _, images, _ = job
    atlas = analyze(model, images=images, layers=["conv1"], channels="0", provider="cpu")
    folder = atlas.folder
    assert (folder / "pictures").is_dir()
    del atlas
    import gc

    gc.collect()
    assert not folder.exists()


def test_images_can_be_one_picture_or_an_archive(job, tmp_path):
    import zipfile

    picture = _pictures(1, (30, 40))[0]
    Image.fromarray(picture).save(tmp_path / "one.png")
    atlas = _run(job[0], tmp_path / "one.png", tmp_path / "out", layers=["conv1"])
    assert [hit.image for hit in atlas["conv1"].topk.hits(0)] == [0]
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(tmp_path / "one.png", "a/one.png")
        archive.write(tmp_path / "one.png", "b/two.png")
    atlas = _run(job[0], tmp_path / "two.zip", tmp_path / "out2", layers=["conv1"])
    assert [hit.image for hit in atlas["conv1"].topk.hits(0)] == [0, 1]


def test_the_report_says_how_operators_were_treated(tmp_path):
    """Activations in pieces with their policy, which can be changed; what is exact needs no word."""
    nodes = [
        node("Conv", "x w b", "c", "conv1"),
        node("Sigmoid", "c", "s"),
        node("Mul", "c s", "m", "silu"),
        node("Conv", "m v", "y", "conv2"),
    ]
    weights = _weights(3) | {"v": np.ones((2, len(_weights(3)["w"]), 1, 1), np.float32)}
    model = write(tmp_path / "m.onnx", build(nodes, weights, x=("N", 3, 14, 10)))
    x = _save(tmp_path, np.random.default_rng(2).normal(size=(3, 3, 14, 10)).astype(np.float32))
    for policy, words in (
        ("rectify", "max(g, 0), whatever the activation was (Zeiler & Fergus 2014, 2.1); written as"),
        ("gradient", "exact; written as"),
    ):
        atlas = _run(model, x, tmp_path / policy, layers=["conv2"], activation=policy)
        said = dict(atlas.provenance.policies)
        assert said["1 × Swish"].startswith(words)
        assert not any("Conv" in name for name in said)
        assert not any(node.op == "Sigmoid" for node in atlas.diagram)


@pytest.mark.parametrize("method", ["deconvnet", "guided"])
@pytest.mark.parametrize("seed", ["unit", "map"])
def test_recordings_kept_for_all_layers_change_nothing(job, tmp_path, method, seed):
    """Each layer alone is run forward for itself; with little memory all are."""
    model, _, images, _ = job
    options = {"images": images, "provider": "cpu", "method": method, "seed": seed}
    layers = ["conv1", "relu1", "fc1"]
    heard, small = Heard(), Heard()
    kept = analyze(model, layers=layers, folder=tmp_path / "kept", progress=heard, **options)
    little = analyze(
        model, layers=layers, folder=tmp_path / "little", progress=small, memory=40 << 10, **options
    )
    assert "Recording" in [phase[0] for phase in heard.phases]
    assert "Recording" not in [phase[0] for phase in small.phases]
    for name in layers:
        alone = analyze(model, layers=[name], folder=tmp_path / f"alone-{name}", **options)
        pictures = list((tmp_path / f"alone-{name}" / "pictures" / alone[name].slug).iterdir())
        assert len(pictures) > 2
        for path in pictures:
            for other in (kept, little):
                assert_alike(other.folder / "pictures" / other[name].slug / path.name, path)


def assert_alike(found, expected):
    """Pictures of the same sums, taken in another order."""
    with Image.open(found) as one, Image.open(expected) as other:
        difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
    assert difference.mean() < 0.05
