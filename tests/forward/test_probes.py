"""Reductions inside the graph equal NumPy's on the activations, at every opset."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import onnxviz
from onnxviz.forward.probes import layer_probes, reduced
from tests.model.nets import build, conv_weights, node, write

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3, 9, 11)).astype(np.float32)
WEIGHTS = {
    "w": conv_weights(RNG, 4, 3, 3, 3),
    "g": conv_weights(RNG, 6, 4 * 7 * 9),
    "k": conv_weights(RNG, 4, 5),
    "b": np.zeros(6, np.float32),
}
NODES = [
    node("Conv", "x w", "c", "conv"),
    node("Relu", "c", "r", "relu"),
    node("Transpose", "r", "t", "to-last", perm=[0, 2, 3, 1]),
    node("Sigmoid", "t", "s", "last"),
    node("Flatten", "r", "f", "flat"),
    node("Gemm", "f g b", "d", "dense", transB=1),
    node("Reshape", "t tokens", "u", "to-tokens"),
    node("MatMul", "u k", "m", "tokens"),
    node("ReduceMax", "r", "one", "top", keepdims=1),
]


@pytest.fixture(scope="module", params=[9, 11, 13, 17, 18, 21])
def net(request, tmp_path_factory, provider):
    weights = {**WEIGHTS, "tokens": np.array([0, -1, 4], np.int64)}
    model = build(NODES, weights, x=("N", 3, 9, 11), opset=request.param, outputs=["s", "d", "m", "one"])
    return onnxviz.load(write(tmp_path_factory.mktemp("net") / "m.onnx", model), provider=provider)


def _reduce(net, layer, x):
    probes = layer_probes(layer, net.model.opset)
    return reduced(layer, net.runner([], probes=probes).run(x))


@pytest.mark.parametrize("name", ["conv", "relu", "last", "dense", "tokens"])
def test_reductions(net, name):
    layer = net.layer(name)
    maps = net.activations(X, layer)
    flat = maps.reshape(*maps.shape[:2], -1)
    found = _reduce(net, layer, X)
    assert set(found) == {"max", "argmax", "sum"}
    assert all(array.shape == (5, layer.channels) for array in found.values())
    np.testing.assert_array_equal(found["max"], flat.max(2))
    np.testing.assert_array_equal(found["argmax"], flat.argmax(2))
    np.testing.assert_allclose(found["sum"], flat.sum(2), rtol=1e-5, atol=1e-5)


def test_layouts(net):
    assert net.layer("last").order == (0, 3, 1, 2)
    assert net.layer("tokens").order == (0, 2, 1)
    assert net.layer("dense").size == ()
    assert net.layer("tokens").size == (63,)


def test_several_layers_in_one_run(net):
    layers = [net.layer(name) for name in ("conv", "last", "dense")]
    probes = [probe for layer in layers for probe in layer_probes(layer, net.model.opset)]
    outputs = net.runner([], probes=probes).run(X)
    for layer in layers:
        alone = _reduce(net, layer, X)
        for key, value in reduced(layer, outputs).items():
            np.testing.assert_array_equal(value, alone[key])


def test_a_tie_goes_to_the_first_unit(net):
    """On an even image a 3×3 convolution without padding is even, and every unit is its maximum."""
    found = _reduce(net, net.layer("conv"), np.ones((2, 3, 9, 11), np.float32))
    np.testing.assert_array_equal(found["argmax"], 0)


def test_half_precision_is_reduced_in_single(tmp_path, provider):
    """A sum over a large map of halves would stop at 2048 or overflow."""
    model = build([node("Relu", "x", "r", "relu")], x=("N", 2, 60, 60), dtype=TensorProto.FLOAT16)
    net = onnxviz.load(write(tmp_path / "half.onnx", model), provider=provider)
    x = np.full((1, 2, 60, 60), 30.0, np.float16)
    found = _reduce(net, net.layer("relu"), x)
    assert found["sum"].dtype == np.float32
    np.testing.assert_array_equal(found["sum"], 60 * 60 * 30)


SIZES = {
    "blocks": (56, 48),
    "rows-of-one-block": (2, 256),
    "odd": (55, 57),
    "prime": (1, 523),
    "of-17": (17, 31),
    "of-13": (13, 13),
}
"""Maps that are searched in blocks, or whose number of units has no divisor that would do."""


def _maximum_net(folder, size, opset, provider):
    model = build([node("Relu", "x", "r", "relu")], x=("N", 3, *size), opset=opset)
    return onnxviz.load(write(folder / "m.onnx", model), provider=provider)


@pytest.mark.parametrize("opset", [8, 9, 11, 12, 13, 21])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_maximum_of_a_large_map(tmp_path, size, opset, provider):
    net = _maximum_net(tmp_path, size, opset, provider)
    x = np.random.default_rng(3).normal(size=(4, 3, *size)).astype(np.float32)
    flat = np.maximum(x, 0).reshape(4, 3, -1)
    found = _reduce(net, net.layer("relu"), x)
    np.testing.assert_array_equal(found["max"], flat.max(2))
    np.testing.assert_array_equal(found["argmax"], flat.argmax(2))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_ties_in_a_large_map_go_to_the_first_unit(tmp_path, size, provider):
    """Few values, so that each is in many blocks, and many times in each; and maps of one value."""
    net = _maximum_net(tmp_path, size, 17, provider)
    x = np.random.default_rng(4).integers(0, 4, (5, 3, *size)).astype(np.float32)
    x[1], x[2, 1] = 0, -1
    x[3, 2] = np.where(np.arange(size[0] * size[1]).reshape(size) < size[0] * size[1] - 1, 1, 9)
    flat = np.maximum(x, 0).reshape(5, 3, -1)
    found = _reduce(net, net.layer("relu"), x)
    np.testing.assert_array_equal(found["argmax"], flat.argmax(2))
