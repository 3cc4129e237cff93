"""Levelling: at whatever opset, the attributes that rules and geometry read are there and say the same."""

from __future__ import annotations

import numpy as np
import pytest

import onnxviz
from onnxviz.model.graph import ModelFile
from onnxviz.model.normalize import normalize
from tests.model.nets import build, conv_weights, forward, node, write

W = conv_weights(np.random.default_rng(1), 4, 3, 3, 5)
ints = lambda *values: np.array(values, np.int64)  # noqa: E731
INF = float("inf")
LOWEST = float(np.finfo(np.float32).min)

# id: (opset, node, constants, what its attributes must say)
CASES = {
    "conv-without-kernel-shape": (
        9,
        node("Conv", "x w", "y"),
        {"w": W},
        {
            "kernel_shape": (3, 5),
            "strides": (1, 1),
            "dilations": (1, 1),
            "pads": (0, 0, 0, 0),
            "group": 1,
            "auto_pad": "NOTSET",
        },
    ),
    "max-pool": (
        12,
        node("MaxPool", "x", "y", kernel_shape=[2, 3]),
        {},
        {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "ceil_mode": 0, "storage_order": 0},
    ),
    "average-pool-9": (
        9,
        node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2]),
        {},
        {"strides": (2, 2), "pads": (0, 0, 0, 0), "count_include_pad": 0},
    ),
    "clip-6": (6 + 3, node("Clip", "x", "y", min=0.0, max=6.0), {}, {"min": 0.0, "max": 6.0}),
    "clip-6-open": (9, node("Clip", "x", "y", min=0.0), {}, {"min": 0.0, "max": -LOWEST}),
    "clip-13": (
        13,
        node("Clip", "x lo hi", "y"),
        {"lo": np.float32(0), "hi": np.float32(6)},
        {"min": 0.0, "max": 6.0},
    ),
    "clip-13-open": (13, node("Clip", "x lo", "y"), {"lo": np.float32(0)}, {"min": 0.0, "max": INF}),
    "clip-13-left-out": (13, node("Clip", "x - hi", "y"), {"hi": np.float32(1)}, {"min": -INF, "max": 1.0}),
    "squeeze-11": (11, node("Squeeze", "m", "y", axes=[2, 3]), {}, {"axes": (2, 3)}),
    "squeeze-13": (13, node("Squeeze", "m a", "y"), {"a": ints(2, 3)}, {"axes": (2, 3)}),
    "unsqueeze-11": (11, node("Unsqueeze", "x", "y", axes=[0]), {}, {"axes": (0,)}),
    "unsqueeze-13": (13, node("Unsqueeze", "x a", "y"), {"a": ints(0)}, {"axes": (0,)}),
    "reduce-mean-13": (13, node("ReduceMean", "x", "y", axes=[2, 3]), {}, {"axes": (2, 3), "keepdims": 1}),
    "reduce-mean-18": (
        18,
        node("ReduceMean", "x a", "y", keepdims=0),
        {"a": ints(2, 3)},
        {"axes": (2, 3), "keepdims": 0, "noop_with_empty_axes": 0},
    ),
    "reduce-sum-13": (13, node("ReduceSum", "x a", "y"), {"a": ints(-1)}, {"axes": (-1,), "keepdims": 1}),
    "pad-10": (
        10,
        node("Pad", "x", "y", pads=[0, 0, 1, 2, 0, 0, 3, 4]),
        {},
        {"pads": (0, 0, 1, 2, 0, 0, 3, 4), "mode": "constant", "value": 0.0},
    ),
    "pad-13": (
        13,
        node("Pad", "x p v", "y"),
        {"p": ints(0, 0, 1, 2, 0, 0, 3, 4), "v": np.float32(0.5)},
        {"pads": (0, 0, 1, 2, 0, 0, 3, 4), "mode": "constant", "value": 0.5},
    ),
    "pad-18-axes": (
        18,
        node("Pad", "x p - a", "y"),
        {"p": ints(1, 2, 3, 4), "a": ints(2, 3)},
        {"pads": (1, 2, 3, 4), "axes": (2, 3), "mode": "constant"},
    ),
    "slice-9": (
        9,
        node("Slice", "x", "y", axes=[2, 3], starts=[1, 2], ends=[5, 9]),
        {},
        {"starts": (1, 2), "ends": (5, 9), "axes": (2, 3)},
    ),
    "slice-13": (
        13,
        node("Slice", "x s e a t", "y"),
        {"s": ints(1), "e": ints(9), "a": ints(-1), "t": ints(2)},
        {"starts": (1,), "ends": (9,), "axes": (-1,), "steps": (2,)},
    ),
    "softmax-9": (9, node("Softmax", "x", "y"), {}, {"axis": 1, "flattened": 1}),
    "softmax-13": (13, node("Softmax", "x", "y"), {}, {"axis": -1, "flattened": 0}),
    "softmax-13-axis": (13, node("Softmax", "x", "y", axis=1), {}, {"axis": 1, "flattened": 0}),
    "lrn": (13, node("LRN", "x", "y", size=5), {}, {"size": 5, "beta": 0.75, "bias": 1.0}),
    "batch-norm-9": (9, node("BatchNormalization", "x s s s s", "y"), {"s": np.ones(3, np.float32)}, {}),
    "leaky-relu": (13, node("LeakyRelu", "x", "y"), {}, {}),
    "concat": (13, node("Concat", "x x", "y", axis=1), {}, {"axis": 1}),
    "gemm": (13, node("Gemm", "f g", "y", transB=1), {"g": W.reshape(4, -1)}, {"transA": 0, "transB": 1}),
    "transpose": (13, node("Transpose", "x", "y", perm=[0, 2, 3, 1]), {}, {"perm": (0, 2, 3, 1)}),
}
HELPERS = {"m": node("GlobalAveragePool", "x", "m"), "f": node("Flatten", "x", "f")}


@pytest.mark.parametrize("case", CASES)
def test_attributes_are_levelled(tmp_path, case):
    opset, tested, weights, expected = CASES[case]
    before = [HELPERS[name] for name in HELPERS if name in tested.input]
    file = ModelFile(write(tmp_path / "model.onnx", build([*before, tested], weights, opset=opset)))
    graph = normalize(file.graph, file.constants, file.opset)
    found = graph.producer["y"].attrs
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_epsilon_and_alpha_have_their_defaults(tmp_path):
    nodes = [
        node("BatchNormalization", "x s s s s", "n", "norm"),
        node("LeakyRelu", "n", "l", "leaky"),
        node("LRN", "l", "y", "lrn", size=3),
    ]
    file = ModelFile(write(tmp_path / "m.onnx", build(nodes, {"s": np.ones(3, np.float32)})))
    attrs = {n.name: n.attrs for n in normalize(file.graph, file.constants, file.opset).nodes}
    assert attrs["norm"]["epsilon"] == pytest.approx(1e-5)
    assert attrs["leaky"]["alpha"] == pytest.approx(0.01)
    assert attrs["lrn"]["alpha"] == pytest.approx(1e-4)


def test_nodes_that_only_make_constants_are_gone(tmp_path):
    nodes = [
        node("Identity", "w0", "w1", "copy"),
        node("Neg", "w1", "w", "negate"),
        node("Conv", "x w", "y", "conv"),
    ]
    file = ModelFile(write(tmp_path / "m.onnx", build(nodes, {"w0": W})))
    assert [n.name for n in normalize(file.graph, file.constants, file.opset).nodes] == ["conv"]


def test_bounds_that_depend_on_the_image_are_not_taken_for_constants(tmp_path):
    nodes = [node("ReduceMax", "x", "top", keepdims=0), node("Clip", "x - top", "y", "clip")]
    file = ModelFile(write(tmp_path / "m.onnx", build(nodes)))
    attrs = normalize(file.graph, file.constants, file.opset).producer["y"].attrs
    assert "max" not in attrs
    assert attrs["min"] == -INF


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("clip-6", "clip-13"),
        ("squeeze-11", "squeeze-13"),
        ("reduce-mean-13", "reduce-mean-18"),
        ("pad-10", "pad-18-axes"),
        ("slice-9", "slice-13"),
    ],
)
def test_shapes_and_projections_do_not_depend_on_the_opset(tmp_path, first, second):
    """The same network on top of either way of writing an operator gives a gradient that fits onnxruntime."""
    for case in (first, second):
        opset, tested, weights, _ = CASES[case]
        before = [HELPERS[name] for name in HELPERS if name in tested.input]
        model = build([*before, tested], weights, opset=opset)
        net = onnxviz.load(write(tmp_path / f"{case}.onnx", model), provider="cpu", size=(12, 12))
        x = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
        y = forward(model, x, ["y"])["y"]
        assert net.shapes()["y"] == y.shape
        g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        got = net.vjp({"x": x}, {"y": g})["x"]
        step = np.random.default_rng(2).normal(size=x.shape).astype(np.float32) * 1e-2
        rise = (forward(model, x + step, ["y"])["y"] - forward(model, x - step, ["y"])["y"]) / 2
        assert float((got * step).sum()) == pytest.approx(float((g * rise).sum()), rel=2e-2, abs=1e-4)
