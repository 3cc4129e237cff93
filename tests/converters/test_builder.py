"""The builder: geometry as TensorFlow has it, names, metadata, and files written whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxviz.converters import builder
from onnxviz.converters.builder import Conv, Dense, ImageInput, MaxPool, Network, Relu, Softmax
from onnxviz.errors import OnnxvizError, UsageError, WeightsError
from tests.converters import synthetic, tensorflow_forward
from tests.converters.running import largest_difference, run


def image(height: int, width: int, channels: int = 2) -> ImageInput:
    return ImageInput((height, width), "rgb", mean=(0.0,) * channels, std=(1.0,) * channels)


@pytest.fixture
def small():
    layers = (Conv("conv1", 4, 3), Relu("relu1"), MaxPool("pool1", 2, 2), Dense("fc2", 5), Softmax("prob"))
    return Network("small", image(7, 6), layers, labels=("a", "b", "ç", "d", "e"), description="a test")


@pytest.mark.parametrize("group", [1, 2], ids=["whole", "groups"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_convolution_equals_tensorflows(kernel, stride, padding, group):
    layer = Conv("prob", 6, kernel, stride, padding, group)  # "prob": the output
    network = Network("conv", image(9, 14, 4), (layer,))
    weights = synthetic.he_weights(network, seed=1)
    x = np.random.default_rng(2).standard_normal((3, 4, 9, 14), np.float32)
    expected = tensorflow_forward.conv(
        x.transpose(0, 2, 3, 1), weights["prob_W"], weights["prob_b"], stride, padding == "same", group
    )
    assert largest_difference(run(network.build(weights), x, ["prob"])["prob"], expected) < 1e-5


@pytest.mark.parametrize("size", [8, 9, 10, 11])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (3, 2), (11, 4), (4, 3), (1, 2)])
def test_same_pads_are_onnxs_same_upper(kernel, stride, size):
    network = Network("conv", image(size, size + 5), (Conv("conv1", 3, kernel, stride),))
    model = network.build(synthetic.he_weights(network, seed=1))
    automatic = onnx.ModelProto.FromString(model.SerializeToString())
    (node,) = automatic.graph.node
    pads = next(attribute for attribute in node.attribute if attribute.name == "pads")
    node.attribute.remove(pads)
    node.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    x = np.random.default_rng(2).standard_normal((1, 2, size, size + 5), np.float32)
    np.testing.assert_array_equal(_first_output(model, x), _first_output(automatic, x))


def _first_output(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"data": x})[0]


def test_shapes_are_onnxs(small):
    model = onnx.shape_inference.infer_shapes(small.build(synthetic.he_weights(small, seed=1)))
    inferred = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)[1:]
        for value in [*model.graph.value_info, *model.graph.output]
    }
    assert {name: inferred[name] for name in small.shapes()} == small.shapes()


def test_a_model_of_the_builder(small):
    model = small.build(synthetic.he_weights(small, seed=1))
    assert model.producer_name == "onnxviz"
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert [node.name for node in model.graph.node] == [
        *("conv1", "relu1", "pool1", "fc2_flatten", "fc2", "prob")
    ]
    assert [tensor.name for tensor in model.graph.initializer] == ["conv1_W", "conv1_b", "fc2_W", "fc2_b"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert properties["onnxviz.labels"] == ["a", "b", "ç", "d", "e"]
    assert properties["onnxviz.preprocess"] == {
        "size": [7, 6],
        "resize": "crop",
        "order": "rgb",
        "scale": 1.0,
        "mean": [0.0, 0.0],
        "std": [1.0, 1.0],
    }


def test_no_labels_no_property(small):
    network = Network("small", small.image, small.layers)
    model = network.build(synthetic.he_weights(network, seed=1))
    assert [entry.key for entry in model.metadata_props] == ["onnxviz.preprocess"]


def test_building_changes_no_argument(small):
    weights = synthetic.he_weights(small, seed=1)
    before = {key: array.copy() for key, array in weights.items()}
    small.build(weights)
    assert all(np.array_equal(weights[key], before[key]) for key in before)


def test_integers_are_no_weights(small):
    weights = synthetic.he_weights(small, seed=1) | {"conv1_b": np.zeros(4, np.int64)}
    with pytest.raises(WeightsError, match="weights: conv1_b holds int64, expected float32"):
        small.build(weights)


def test_values_too_large_for_float32_are_refused(small):
    weights = synthetic.he_weights(small, seed=1) | {"fc2_b": np.full(5, 1e300)}
    with pytest.raises(WeightsError, match="fc2_b has 5 values that are not finite"):
        small.build(weights)


def test_write_replaces_and_leaves_nothing_else(small, tmp_path):
    out = tmp_path / "net.onnx"
    out.write_bytes(b"old")
    model = small.build(synthetic.he_weights(small, seed=1))
    assert builder.write(model, out) == out
    assert onnx.load(out) == model
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_failed_write_leaves_the_old_file(small, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data: object) -> int:
            super().write(b"a part")
            raise OSError(28, "No space left on device")

    out = tmp_path / "net.onnx"
    out.write_bytes(b"old")
    model = small.build(synthetic.he_weights(small, seed=1))
    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))
    with pytest.raises(OnnxvizError, match=r"net\.onnx: cannot be written: No space left on device"):
        builder.write(model, out)
    monkeypatch.undo()
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "a folder; expected the name of a file"), ("no/such/net.onnx", "there is no folder")],
)
def test_an_output_that_cannot_be(small, tmp_path, out, message):
    with pytest.raises(UsageError, match=message):
        builder.write(small.build(synthetic.he_weights(small, seed=1)), tmp_path / out)
