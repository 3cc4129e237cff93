"""LRN in other operators equals onnxruntime's LRN, and the formula in double precision."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

import onnxviz
from onnxviz.model.graph import ModelFile
from onnxviz.model.lrn import MOST_CHANNELS
from tests.model.nets import build, conv_weights, forward, node, write

SETTINGS = {
    "alexnet": {"size": 5, "alpha": 2e-5, "beta": 0.75, "bias": 1.0},
    "defaults": {"size": 5},
    "alone": {"size": 1, "alpha": 0.5, "beta": 0.75, "bias": 2.0},
    "root": {"size": 3, "alpha": 0.7, "beta": 0.5, "bias": 1.0},
    "plain": {"size": 3, "alpha": 0.7, "beta": 1.0, "bias": 0.5},
    "other-power": {"size": 7, "alpha": 0.3, "beta": 0.6, "bias": 1.5},
    "wider-than-the-channels": {"size": 21, "alpha": 0.3, "beta": 0.75, "bias": 1.0},
    # onnxruntime's own kernel refuses this one.
    "no-alpha": {"size": 3, "alpha": 0.0, "beta": 0.75, "bias": 3.0},
}
EVEN = {
    "even": {"size": 4, "alpha": 0.9, "beta": 0.75, "bias": 1.0},
    "two": {"size": 2, "alpha": 0.9, "beta": 0.6},
}
SHAPES = {"maps": (4, 6, 5, 3), "sequences": (4, 6, 5), "volumes": (2, 6, 5, 3, 4)}


def _formula(x, size, alpha=1e-4, beta=0.75, bias=1.0):
    """The operator's definition, in float64, channel by channel."""
    x = x.astype(np.float64)
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        low, high = max(0, c - (size - 1) // 2), min(x.shape[1] - 1, c + -(-(size - 1) // 2))
        y[:, c] = x[:, c] / (bias + alpha / size * (x[:, low : high + 1] ** 2).sum(1)) ** beta
    return y


def _model(shape, settings, dtype=TensorProto.FLOAT):
    return build([node("LRN", "x", "y", "norm", **settings)], x=("N", *shape[1:]), dtype=dtype)


def _run(cut, x):
    session = onnxruntime.InferenceSession(cut, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def _operators(cut):
    return [n.op_type for n in onnx.load_from_string(cut).graph.node]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("settings", [*SETTINGS.values(), *EVEN.values()], ids=[*SETTINGS, *EVEN])
def test_the_formula(tmp_path, settings, shape):
    x = 3 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cut = ModelFile(write(tmp_path / "m.onnx", _model(shape, settings))).cut(["y"], provider="cpu")
    assert "LRN" not in _operators(cut)
    np.testing.assert_allclose(_run(cut, x), _formula(x, **settings), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    "settings", [s for n, s in SETTINGS.items() if n != "no-alpha"], ids=lambda s: str(s["size"])
)
def test_the_file_as_it_is(tmp_path, settings):
    # Not larger: onnxruntime adds and subtracts squares in turn, and of 10,000 that leaves errors of 7e-5.
    x = 3 * np.random.default_rng(1).normal(size=SHAPES["maps"]).astype(np.float32)
    model = _model(x.shape, settings)
    cut = ModelFile(write(tmp_path / "m.onnx", model)).cut(["y"], provider="cpu")
    want = forward(model, x, ["y"])["y"]
    np.testing.assert_allclose(_run(cut, x), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_zeros_stay_zeros(tmp_path):
    shape = SHAPES["maps"]
    cut = ModelFile(write(tmp_path / "m.onnx", _model(shape, SETTINGS["alexnet"]))).cut(["y"], provider="cpu")
    np.testing.assert_array_equal(_run(cut, np.zeros(shape, np.float32)), 0)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_types_are_left_as_they_are(tmp_path, dtype):
    file = ModelFile(write(tmp_path / "m.onnx", _model((1, 6, 5, 5), {"size": 3}, dtype)))
    assert _operators(file.cut(["y"], provider="cpu")) == ["LRN"]


@pytest.mark.parametrize("channels", ["C", MOST_CHANNELS + 1], ids=["unknown", "many"])
def test_channels_unknown_or_too_many(tmp_path, channels):
    file = ModelFile(write(tmp_path / "m.onnx", _model((1, channels, 5, 5), {"size": 3})))
    assert _operators(file.cut(["y"], provider="cpu")) == ["LRN"]


@pytest.mark.parametrize(
    ("settings", "operators"),
    [
        ({"size": 5}, 1),
        ({"size": 15, "bias": 2e-5, "beta": 0.02}, 1),
        ({"size": 17}, 6),
        ({"size": 5, "bias": 0.0}, 6),
        ({"size": 5, "beta": 0.0}, 4),
    ],
)
def test_what_cudnn_takes_is_left_to_it(tmp_path, settings, operators):
    x = 3 * np.random.default_rng(2).normal(size=(2, 20, 5, 5)).astype(np.float32)
    cut = ModelFile(write(tmp_path / "m.onnx", _model(x.shape, settings))).cut(["y"], provider="cuda")
    assert len(_operators(cut)) == operators
    assert ("LRN" in _operators(cut)) == (operators == 1)
    want = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **settings}
    np.testing.assert_allclose(_run(cut, x), _formula(x, **want), rtol=1e-5, atol=1e-6)


def test_only_where_it_is_asked_for(tmp_path):
    file = ModelFile(write(tmp_path / "m.onnx", _model((1, 6, 5, 5), {"size": 3})))
    assert _operators(file.cut(["y"])) == ["LRN"]


def test_a_network_on_the_cpu(tmp_path):
    """Every tensor has its name and its values, at a batch that the file does not say."""
    rng = np.random.default_rng(2)
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("Relu", "c", "r", "relu1"),
        node("LRN", "r", "n", "norm1", size=5, alpha=0.3),
        node("MaxPool", "n", "p", "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        node("LRN", "p", "m", "norm2", size=3, alpha=0.3, beta=0.5),
    ]
    model = build(nodes, {"w": conv_weights(rng, 8, 3, 3, 3)}, outputs=["m"])
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    x = rng.normal(size=(7, 3, 12, 12)).astype(np.float32)
    names = ["c", "r", "n", "p", "m"]
    found, want = net.runner(names).run(x), forward(model, x, names)
    for name in names:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)
