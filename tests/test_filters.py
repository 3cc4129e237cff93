"""The first filters: the sheets' pixels are the weights, and unusual ones are marked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import onnxviz
from onnxviz.filters import draw_filters, first_filters
from onnxviz.images.preprocess import resolve_preprocess
from tests.model.nets import build, node, small, write

RNG = np.random.default_rng(0)


def _net(folder, nodes, weights, shape=("N", 3, 12, 12)):
    return onnxviz.load(write(folder / "m.onnx", build(nodes, weights, x=shape)), provider="cpu")


def _recipe(channels=3, **options):
    return resolve_preprocess(channels=channels, height=12, width=12, preset="raw", **options)


@pytest.mark.parametrize("bgr", [False, True])
def test_the_sheets_show_the_weights(tmp_path, bgr):
    model = small()
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    found = first_filters(net)
    assert found is not None and found.layer.alias == "conv1"
    (weights,) = (
        np.frombuffer(t.raw_data, np.float32).reshape(t.dims)
        for t in model.graph.initializer
        if t.name == "w1"
    )
    np.testing.assert_array_equal(found.weights, weights)
    bank = draw_filters(found, _recipe(bgr=bgr), tmp_path, "pictures/filters")
    assert (bank.layer, bank.size) == ("conv1", (3, 3))
    rgb = weights[:, ::-1] if bgr else weights
    for sprite in (bank.shared, bank.own):
        assert (sprite.rows, sprite.columns, sprite.tile) == (2, 3, (3, 3))
        sheet = np.asarray(Image.open(tmp_path / sprite.path)).astype(int)
        for number, one in enumerate(rgb):
            y, x = divmod(number, 3)
            tile = sheet[3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
            largest = np.abs(weights if sprite is bank.shared else one).max()
            np.testing.assert_allclose(tile, 128 + 127 * np.moveaxis(one, 0, -1) / largest, atol=0.51)
        assert (sheet[3:, 6:] == 128).all()
    for number, one in enumerate(bank.filters):
        assert one.index == number
        assert one.rms == pytest.approx(np.sqrt((weights[number] ** 2).mean()), rel=1e-6)
    assert bank.median == pytest.approx(np.median([one.rms for one in bank.filters]))


def test_dead_and_dominating_filters_are_marked(tmp_path):
    weights = RNG.normal(size=(6, 1, 5, 5)).astype(np.float32)
    weights[1] = 0
    weights[2] *= 0.01
    weights[4] *= 10
    net = _net(tmp_path, [node("Conv", "x w", "c", "first")], {"w": weights}, ("N", 1, 12, 12))
    bank = draw_filters(first_filters(net), _recipe(1), tmp_path, "pictures/filters")
    assert [one.state for one in bank.filters] == [None, "dead", "dead", None, "dominating", None]
    own = np.asarray(Image.open(tmp_path / bank.own.path))
    assert (own[:5, 5:10] == 128).all()  # nothing is drawn as nothing


W = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
NO_PICTURES = {
    "depthwise": ([node("Conv", "x w", "c", group=3)], {"w": W[:3, :1]}, ("N", 3, 12, 12)),
    "one-dimensional": ([node("Conv", "x w", "c")], {"w": W[..., 0]}, ("N", 3, 12)),
    "fully-connected": (
        [node("Flatten", "x", "f"), node("Gemm", "f g", "y", transB=1), node("Relu", "y", "z")],
        {"g": RNG.normal(size=(5, 432)).astype(np.float32)},
        ("N", 3, 12, 12),
    ),
    "of-shuffled-pixels": (
        [node("SpaceToDepth", "x", "s", blocksize=2), node("Conv", "s w", "c")],
        {"w": RNG.normal(size=(4, 12, 3, 3)).astype(np.float32)},
        ("N", 3, 12, 12),
    ),
    "none": ([node("Relu", "x", "r")], {}, ("N", 3, 12, 12)),
}


@pytest.mark.parametrize("case", NO_PICTURES)
def test_what_is_no_picture_is_left_out(tmp_path, case):
    assert first_filters(_net(tmp_path, *NO_PICTURES[case])) is None


def test_behind_arithmetic_on_the_image(tmp_path):
    nodes = [
        node("Sub", "x mean", "a"),
        node("Pad", "a pads", "p"),
        node("Conv", "p w", "c", "stem"),
        node("Conv", "c v", "d", "second"),
    ]
    weights = {
        "mean": np.float32(0.5),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "w": W,
        "v": RNG.normal(size=(3, 4, 3, 3)).astype(np.float32),
    }
    found = first_filters(_net(tmp_path, nodes, weights))
    assert found is not None and found.layer.name == "stem"
    np.testing.assert_array_equal(found.weights, W)


def test_a_report_without_first_filters(tmp_path):
    nodes, weights, _ = NO_PICTURES["of-shuffled-pixels"]
    path = write(tmp_path / "m.onnx", build(nodes, weights, x=("N", 3, 12, 12)))
    x = RNG.normal(size=(4, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    atlas = onnxviz.analyze(path, images=tmp_path / "x.npy", layers="conv1", preprocess="raw", provider="cpu")
    page = atlas.report(tmp_path / "out")
    assert "First filters" not in page.read_text(encoding="utf-8")
    assert onnxviz.Atlas.load(atlas.save(tmp_path / "saved")).filters is None
