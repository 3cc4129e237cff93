"""A network with shuffled weights: the same numbers, tensor by tensor, in another order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxviz.errors import UsageError
from onnxviz.model.control import shuffled
from onnxviz.model.graph import ModelFile
from onnxviz.network import Network
from tests.model.nets import build, conv_weights, forward, node, small, write

RNG = np.random.default_rng(5)


def _arrays(file: ModelFile) -> dict[str, np.ndarray]:
    return {name: file.decode(tensor) for name, tensor in file.initializers.items()}


@pytest.fixture
def opened(tmp_path):
    return ModelFile(write(tmp_path / "small.onnx", small()))


def test_weights_are_shuffled_and_nothing_else(opened):
    before = _arrays(opened)
    after = _arrays(shuffled(opened, ["dense2"]))
    assert before.keys() == after.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(np.sort(array, None), np.sort(before[name], None))
        assert array.shape == before[name].shape and array.dtype == before[name].dtype
        moved = (array != before[name]).mean()
        assert moved > 0.8 if name.startswith("w") else moved == 0
    again = _arrays(opened)
    assert all(np.array_equal(again[name], before[name]) for name in before)


def test_the_order_follows_from_the_seed_and_the_name(opened):
    one, other = _arrays(shuffled(opened, ["d2"])), _arrays(shuffled(opened, ["d2"]))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["w2"], _arrays(shuffled(opened, ["d2"], seed=1))["w2"])
    # A layer's order does not depend on what other layers are asked for; what lies behind it stays.
    near = _arrays(shuffled(opened, ["c2"]))
    np.testing.assert_array_equal(near["w2"], one["w2"])
    np.testing.assert_array_equal(near["w3"], _arrays(opened)["w3"])


def test_the_network_runs_with_the_shuffled_weights(opened, tmp_path):
    """Against plain onnxruntime on a file that has them."""
    other = shuffled(opened, ["dense2"])
    proto = onnx.load(opened.path)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(other.initializers[tensor.name])
    x = RNG.normal(size=(2, 3, 12, 12)).astype(np.float32)
    expected = forward(proto, x, ["c1", "c2", "d2"])
    net = Network(other, size=(12, 12))
    for tensor, values in expected.items():
        np.testing.assert_allclose(net.activations(x, tensor), values, rtol=1e-5, atol=1e-5)
        plain = forward(opened.path, x, [tensor])[tensor]
        assert np.abs(values - plain).max() > 0.1 * np.abs(plain).max()


def test_what_weights_are_made_of_is_shuffled(tmp_path):
    """A stored matrix that is transposed, and whole numbers that are given their scale; not a matrix of sums."""
    model = build(
        [
            node("DequantizeLinear", "q s z", "w1", axis=0),
            node("Conv", "x w1", "c1", "conv1"),
            node("Add", "c1 plane", "a1"),
            node("GlobalAveragePool", "a1", "g"),
            node("Flatten", "g", "f"),
            node("Transpose", "m", "mt", perm=[1, 0]),
            node("MatMul", "f mt", "y", "fc"),
        ],
        {
            "q": RNG.integers(-90, 90, (4, 3, 3, 3)).astype(np.int8),
            "s": RNG.uniform(0.01, 0.1, 4).astype(np.float32),
            "z": np.zeros(4, np.int8),
            "plane": RNG.normal(size=(1, 4, 10, 10)).astype(np.float32),
            "m": conv_weights(RNG, 6, 4),
        },
    )
    file = ModelFile(write(tmp_path / "m.onnx", model))
    before, after = _arrays(file), _arrays(shuffled(file, ["y"]))
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"q", "m"}
    assert after["q"].dtype == np.int8


@pytest.mark.parametrize(
    "kind", ["FLOAT16", "DOUBLE", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN"]
)
def test_weights_of_every_type(tmp_path, kind):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    values = RNG.permutation(np.arange(-8 if kind == "INT4" else 0, 8 if kind == "INT4" else 16))
    model = build([node("Cast", "w", "f", to=1), node("Conv", "x f", "y")], {}, opset=21)
    array = np.resize(values, (5, 3, 3, 3)).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    file = ModelFile(write(tmp_path / "m.onnx", model))
    after = _arrays(shuffled(file, ["y"]))["w"]
    assert after.dtype == dtype and after.shape == array.shape
    np.testing.assert_array_equal(
        np.sort(after.astype(np.float32), None), np.sort(array.astype(np.float32), None)
    )
    assert (after.astype(np.float32) != array.astype(np.float32)).mean() > 0.5


def test_without_weights_there_is_nothing_to_shuffle(tmp_path):
    file = ModelFile(write(tmp_path / "m.onnx", build([node("Relu", "x", "y")])))
    with pytest.raises(UsageError, match="no weights to shuffle"):
        shuffled(file, ["y"])
