"""Inputs that are fed once and for all: types, shapes, and what becomes constant by it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxviz.errors import UsageError
from onnxviz.model.graph import ModelFile
from tests.model.nets import build, node, run, small, subgraph, write

X = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)


def value(dtype: int, shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("k", dtype, shape)


def opened(tmp_path, dtype: int, shape, feeds) -> ModelFile:
    proto = build([node("Identity", "k", "y"), node("Relu", "x", "r")], more_inputs=[value(dtype, shape)])
    return ModelFile(write(tmp_path / "m.onnx", proto), feeds)


F, INT, U, B, H, BF = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.BOOL,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
)
FITTING = {
    "as-declared": (F, [1, 2], [[1.5, 2.5]], [[1.5, 2.5]]),
    "any-batch": (F, ["N", 2], [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    "scalar-for-scalar": (F, [], 2, 2),
    "scalar-fills": (F, ["N", 2], 0.5, [[0.5, 0.5]]),
    "as-many-numbers": (F, ["N", 2], [3, 4], [[3, 4]]),
    "one-number-for-a-scalar": (F, [], [7], 7),
    "shape-not-known": (F, None, [[1, 2, 3]], [[1, 2, 3]]),
    "float64-is-rounded": (F, [1], [0.1], [np.float32(0.1)]),
    "infinity": (F, [1], [np.inf], [np.inf]),
    "not-a-number": (F, [1], [np.nan], [np.nan]),
    "whole-numbers-to-int": (INT, [2], [2.0, -3.0], [2, -3]),
    "large-int": (INT, [1], [2**62 + 1], [2**62 + 1]),
    "uint8": (U, [2], [0, 255], [0, 255]),
    "bool": (B, [2], [1, 0], [True, False]),
    "from-bool": (F, [1], [True], [1]),
    "float16": (H, [1], [1.5], [1.5]),
    "bfloat16": (BF, [1], [1.5], [1.5]),
}


@pytest.mark.parametrize("case", FITTING)
def test_a_value_is_fitted_to_its_input(tmp_path, case):
    dtype, shape, given, want = FITTING[case]
    file = opened(tmp_path, dtype, shape, {"k": np.array(given)})
    found = file.constants["k"]
    assert found.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    assert found.shape == np.shape(want)
    np.testing.assert_array_equal(found.astype(np.array(want).dtype), want)
    assert [info.name for info in file.graph.inputs] == ["x"]


WRONG = {
    "shape": (F, [1, 2], [[1, 2, 3]], ["float32 1×2", "int64 1×3", "1×2 numbers"]),
    "rank": (F, ["N", 2], [[[1, 2], [3, 4]]], ["N×2", "1×2×2"]),
    "too-few": (F, [2, 2], [1, 2], ["2×2", "int64 2"]),
    "fraction-for-int": (INT, [1], [0.5], ["int64", "float64 1", "cannot hold"]),
    "nan-for-int": (INT, [1], [np.nan], ["int64", "cannot hold"]),
    "too-large-for-uint8": (U, [1], [256], ["uint8", "cannot hold"]),
    "negative-for-uint8": (U, [1], [-1], ["uint8", "cannot hold"]),
    "negative-for-uint64": (TensorProto.UINT64, [1], [-1], ["uint64", "cannot hold"]),
    "two-for-bool": (B, [1], [2], ["bool", "cannot hold"]),
    "too-large-for-float16": (H, [1], [1e6], ["float16", "cannot hold"]),
    "text": (F, [1], ["a"], ["float32", "only numbers"]),
    "complex": (F, [1], [1j], ["complex128", "only numbers"]),
    "numbers-for-text": (TensorProto.STRING, [1], [1], ["string", "only numbers"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_that_does_not_fit_names_both(tmp_path, case):
    dtype, shape, given, said = WRONG[case]
    with pytest.raises(UsageError) as error:
        opened(tmp_path, dtype, shape, {"k": np.array(given)})
    for part in ("k: ", *said):
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_name_lists_the_inputs(tmp_path):
    with pytest.raises(UsageError, match=r"no input 'q'.*x: float32 N×3×12×12; k: int64 N×2"):
        opened(tmp_path, INT, ["N", 2], {"q": np.array(1)})


def test_a_sequence_cannot_be_fed(tmp_path):
    listed = helper.make_tensor_sequence_value_info("k", F, None)
    proto = build([node("SequenceLength", "k", "n"), node("Relu", "x", "y")], more_inputs=[listed])
    with pytest.raises(UsageError, match="sequence"):
        ModelFile(write(tmp_path / "m.onnx", proto), {"k": np.array(1)})


def test_an_initializer_that_is_an_input_too_gets_another_value(tmp_path):
    proto = small()
    b1 = next(t for t in proto.graph.initializer if t.name == "b1")
    proto.graph.input.append(helper.make_tensor_value_info("b1", b1.data_type, b1.dims))
    file = ModelFile(write(tmp_path / "m.onnx", proto), {"b1": np.array(0.5)})
    np.testing.assert_array_equal(file.constants["b1"], np.full(5, 0.5, np.float32))
    b1.CopyFrom(numpy_helper.from_array(np.full(5, 0.5, np.float32), "b1"))
    want = run(proto, {"x": X})["d2"]
    np.testing.assert_allclose(run(file.cut(["d2"]), {"x": X})["d2"], want, rtol=1e-5, atol=1e-6)


def test_what_hangs_on_fed_inputs_alone_is_constant(tmp_path):
    """Here a number of iterations, and by that the Loop."""
    types = {"i": (INT, []), "go": (B, []), "on": (B, [])}
    body = subgraph([node("Add", "v x", "u"), node("Identity", "go", "on")], "on u", "i go v", types=types)
    nodes = [node("Mul", "k two", "m"), node("Loop", "m - x", "y", body=body)]
    proto = build(nodes, {"two": np.array(2)}, more_inputs=[value(INT, [])])
    path = write(tmp_path / "m.onnx", proto)
    assert ModelFile(path).graph.has_control_flow
    file = ModelFile(path, {"k": np.array(2)})
    assert file.constants["m"] == 4
    assert not file.graph.has_control_flow
    want = run(proto, {"x": X, "k": np.array(2)})["y"]
    np.testing.assert_array_equal(run(file.cut(["y"]), {"x": X})["y"], want)
