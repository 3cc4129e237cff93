"""Weights wherever they are: initializers, Constant nodes, ConstantOfShape, and what is computed from them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxviz
from onnxviz.model.graph import ModelFile
from tests.model.nets import build, conv_weights, forward, node, small, write

RNG = np.random.default_rng(7)
W = conv_weights(RNG, 4, 3, 3, 3)
X = RNG.normal(size=(2, 3, 12, 12)).astype(np.float32)


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return node("Constant", "", name, value=numpy_helper.from_array(value, name))


def _quantized(scale_dtype=np.float32):
    """w = (cast(q) − zero) · scale, transposed from HWIO: what exporters and converters leave behind."""
    q = RNG.integers(-127, 127, (3, 3, 3, 4)).astype(np.int8)
    return [
        node("Cast", "q", "q1", to=TensorProto.FLOAT),
        node("Sub", "q1 zero", "q2"),
        node("Mul", "q2 scale", "q3"),
        node("Transpose", "q3", "w", perm=[3, 2, 0, 1]),
    ], {"q": q, "zero": np.float32(3.0), "scale": np.linspace(0.01, 0.02, 4, dtype=scale_dtype)}


PLACES = {
    "initializer": ([], {"w": W}),
    "constant-node": ([_constant("w", W)], {}),
    "constant-of-shape": (
        [
            _constant("s", np.array([4, 3, 3, 3], np.int64)),
            node("ConstantOfShape", "s", "w", value=numpy_helper.from_array(np.array([0.25], np.float32))),
        ],
        {},
    ),
    "identity": ([node("Identity", "w0", "w")], {"w0": W}),
    "cast-sub-mul-transpose": _quantized(),
    "reshape-of-a-vector": (
        [node("Reshape", "flat s", "w")],
        {"flat": W.reshape(-1), "s": np.array([4, 3, 3, 3], np.int64)},
    ),
    "split-second-output": (
        [node("Split", "both", "other w", axis=0, num_outputs=2)],
        {"both": np.concatenate([W * 0, W])},
    ),
    "dequantize-linear": (
        [node("DequantizeLinear", "q scale", "w")],
        {"q": RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8), "scale": np.float32(0.02)},
    ),
}


def _model(place: str) -> onnx.ModelProto:
    nodes, weights = PLACES[place]
    last = [node("Conv", "x w", "c", "conv1"), node("Relu", "c", "r", "relu1")]
    return build([*nodes, *last], weights, opset=19)  # the reference has no DequantizeLinear before 19


@pytest.mark.parametrize("place", PLACES)
def test_the_constant_is_what_the_reference_computes(tmp_path, place):
    model = _model(place)
    file = ModelFile(write(tmp_path / "model.onnx", model))
    assert "w" in file.constants
    assert "c" not in file.constants
    assert "x" not in file.constants
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    exposed.graph.output.append(onnx.ValueInfoProto(name="w"))
    reference = ReferenceEvaluator(exposed)
    (expected,) = reference.run(["w"], {"x": X})
    np.testing.assert_allclose(file.constants["w"], expected, rtol=1e-6)
    assert file.constants["w"].dtype == np.float32


@pytest.mark.parametrize("place", PLACES)
def test_the_network_projects_with_it(tmp_path, place):
    """The gradient of one unit of a lone convolution is its kernel: shows that the reverse pass found it."""
    file = write(tmp_path / "model.onnx", _model(place))
    net = onnxviz.load(file, provider="cpu")
    assert [layer.op for layer in net.layers] == ["Conv", "Relu"]
    weight = net.model.constants["w"]
    gradient = net.project(X[:1], "conv1", channel=2, position=(4, 5), method="gradient")
    np.testing.assert_allclose(gradient[0, :, 4:7, 5:8], weight[2], rtol=1e-6)
    gradient[0, :, 4:7, 5:8] = 0
    assert not gradient.any()


def test_initializers_that_are_also_graph_inputs_need_not_be_fed(tmp_path):
    model = small()
    value = helper.make_tensor_value_info
    model.graph.input.extend(value(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    net = onnxviz.load(write(tmp_path / "model.onnx", model), provider="cpu")
    assert [info.name for info in net.model.graph.inputs] == ["x"]
    np.testing.assert_allclose(
        net.activations(X, "relu2"), forward(small(), X, ["r2"])["r2"], rtol=1e-5, atol=1e-6
    )
    assert np.abs(net.project(X, "relu2", 1)).max() > 0


def test_random_nodes_are_no_constants(tmp_path):
    model = build(
        [
            node("RandomNormal", "", "noise", shape=[1, 3, 12, 12]),
            node("Add", "x noise", "a", "add"),
            node("Conv", "a w", "c", "conv1"),
        ],
        {"w": W},
    )
    assert "noise" not in ModelFile(write(tmp_path / "model.onnx", model)).constants


def test_constants_cannot_be_written_to(tmp_path):
    """They are shared by every projection."""
    file = ModelFile(write(tmp_path / "model.onnx", small()))
    with pytest.raises(ValueError, match="read-only"):
        file.constants["w1"][0] = 1


def test_constants_are_a_mapping(tmp_path):
    file = ModelFile(write(tmp_path / "model.onnx", _model("cast-sub-mul-transpose")))
    assert set(file.constants) == {"q", "zero", "scale", "q1", "q2", "q3", "w"}
    assert len(file.constants) == 7
    with pytest.raises(KeyError):
        _ = file.constants["c"]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "double"])
def test_weights_stored_in_other_types_and_cast(tmp_path, name):
    kind = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "double": TensorProto.DOUBLE}[
        name
    ]
    model = build([node("Cast", "w0", "w", to=TensorProto.FLOAT), node("Conv", "x w", "c", "conv1")])
    model.graph.initializer.append(helper.make_tensor("w0", kind, W.shape, W.reshape(-1).tolist()))
    net = onnxviz.load(write(tmp_path / "model.onnx", model), provider="cpu")
    np.testing.assert_allclose(net.model.constants["w"], W, rtol=1e-2)
    assert net.activations(X, "conv1").shape == (2, 4, 10, 10)
