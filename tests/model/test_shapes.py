"""Shapes: onnxruntime is the witness."""

from __future__ import annotations

import numpy as np
import pytest

import onnxviz
from onnxviz.errors import UsageError
from tests.model.nets import build, conv_weights, forward, node, small, write

W = conv_weights(np.random.default_rng(1), 4, 3, 3, 3)


def _real(model, size):
    """Shapes of all tensors that nodes make, by running them."""
    x = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    names = [name for n in model.graph.node for name in n.output]
    return {name: value.shape for name, value in forward(model, x, names).items()}


@pytest.mark.parametrize("size", [(12, 12), (17, 30), (40, 9)])
def test_dynamic_height_and_width(tmp_path, size):
    model = small(x=("N", 3, "H", "W"))
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu", size=size)
    shapes = net.shapes()
    for name, shape in _real(model, size).items():
        assert shapes[name] == shape, name
    assert net.layer("conv1").size == size


def test_the_size_of_an_open_input_is_224(tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", small(x=("N", 3, None, None))), provider="cpu")
    assert net.size == (224, 224)
    assert net.layer("conv1").size == (224, 224)


def test_images_of_another_size_need_no_reloading(tmp_path):
    model = small(x=("N", 3, "H", "W"))
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    x = np.random.default_rng(0).normal(size=(2, 3, 14, 21)).astype(np.float32)
    np.testing.assert_allclose(
        net.activations(x, "relu2"), forward(model, x, ["r2"])["r2"], rtol=1e-5, atol=1e-6
    )
    assert net.project(x, "relu2", 3).shape == x.shape


@pytest.mark.parametrize("size", [(12, 13), (11, 12)])
def test_a_fixed_size_cannot_be_changed(tmp_path, size):
    path = write(tmp_path / "m.onnx", small())
    with pytest.raises(UsageError, match="12×12 only") as error:
        onnxviz.load(path, provider="cpu", size=size)
    assert f"{size[0]}×{size[1]}" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 3, 12, 13), (1, 4, 12, 12), (3, 12, 12), (1, 12, 12, 3)])
def test_an_array_that_does_not_fit_names_both_shapes(tmp_path, shape):
    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider="cpu")
    with pytest.raises(UsageError, match="×3×12×12") as error:
        net.activations(np.zeros(shape, np.float32), "conv1")
    assert "×".join(map(str, shape)) in str(error.value)


# With ceil_mode, a last window that would lie in the padding alone is left out: onnx's own shape inference
# has counted it, onnxruntime does not.
POOLS = [
    ((kernel, stride, pad, side), f"k{kernel}-s{stride}-p{pad}-{side}")
    for kernel in (1, 2, 3)
    for stride in (1, 2, 3)
    for pad in (0, 1)
    for side in (6, 7, 8)
    if pad < kernel
]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pool", [p for p, _ in POOLS], ids=[name for _, name in POOLS])
def test_ceil_mode_pools_have_onnxruntimes_shape(tmp_path, op, pool):
    kernel, stride, pad, side = pool
    pooled = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": 1}
    nodes = [
        node("Conv", "x w", "c", "conv1", pads=[1, 1, 1, 1]),
        node(op, "c", "p", "pool1", **pooled),
        node("Relu", "p", "r", "relu1"),
    ]
    model = build(nodes, {"w": W}, x=("N", 3, side, side), opset=19)
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    real = _real(model, (side, side))
    assert net.shapes()["r"] == real["r"]
    assert net.layer("pool1").size == real["p"][2:]


def test_sizes_that_the_graph_computes(tmp_path):
    """Shape, Gather and Concat feed a Reshape: what a flatten exports as."""
    nodes = [
        node("Conv", "x w", "c", "conv1", strides=[2, 2]),
        node("Shape", "c", "s", "shape"),
        node("Gather", "s zero", "n", "gather", axis=0),
        node("Unsqueeze", "n axis", "n1", "unsqueeze"),
        node("Concat", "n1 rest", "target", "concat", axis=0),
        node("Reshape", "c target", "f", "flatten"),
        node("Gemm", "f g", "y", "fc", transB=1),
    ]
    weights = {
        "w": W,
        "zero": np.array(0, np.int64),
        "axis": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "g": conv_weights(np.random.default_rng(2), 5, 4 * 5 * 5),
    }
    model = build(nodes, weights)
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    assert [layer.alias for layer in net.layers] == ["conv1", "fc1"]
    assert net.layer("fc1").size == ()
    x = np.random.default_rng(0).normal(size=(3, 3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(net.activations(x, "fc1"), forward(model, x, ["y"])["y"], rtol=1e-4, atol=1e-5)
    assert np.abs(net.project(x, "fc1", 2, method="gradient")).max() > 0


def test_an_operator_of_a_foreign_domain_is_no_hindrance_beside_the_path(tmp_path):
    """Its output's shape is unknown and it cannot run; the layers before it can be looked at all the same."""
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("Relu", "c", "r", "relu1"),
        node("Decode", "r", "boxes", "decode", domain="vendor"),
    ]
    model = build(nodes, {"w": W}, domains=["vendor"])
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    assert net.activations(x, "relu1").shape == (2, 4, 10, 10)
