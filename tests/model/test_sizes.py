"""What is known once the sizes of the inputs are: two runs on other values are the witness."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxviz.model.graph import ModelFile
from tests.model.nets import build, node, run, subgraph, write

INT = TensorProto.INT64
NODES = [
    node("Relu", "x", "r"),
    node("Shape", "r", "s"),
    node("Size", "x", "size"),
    node("Gather", "s two", "height"),
    node("Mul", "height two", "double"),
    node("Add", "double size", "both"),
    node("ConstantOfShape", "s", "zeros"),
    node("Shape", "zeros", "zeros_shape"),
    node("Reshape", "x flat", "flattened"),
    node("Shape", "flattened", "flattened_shape"),
    node("Add", "x zeros", "sum"),
    node("RandomUniformLike", "x", "noise"),
    node("Shape", "noise", "noise_shape"),
    node("ReduceMax", "x", "top", keepdims=0),
    node("Cast", "top", "count", to=INT),
    node("Unsqueeze", "count axis", "length"),
    node("Add", "height count", "mixed"),
    node("Expand", "axis length", "expanded"),
    node("Shape", "expanded", "expanded_shape"),
    node("NonZero", "r", "places"),
    node("Shape", "places", "places_shape"),
    node("Greater", "height size", "tall"),
    node(
        "If",
        "tall",
        "picked",
        then_branch=subgraph([node("Neg", "height", "a")], "a", types={"a": (INT, [])}),
        else_branch=subgraph([node("Abs", "size", "a")], "a", types={"a": (INT, [])}),
    ),
    node(
        "If",
        "tall",
        "chosen",
        then_branch=subgraph([node("Neg", "count", "b")], "b", types={"b": (INT, [])}),
        else_branch=subgraph([node("Abs", "size", "b")], "b", types={"b": (INT, [])}),
    ),
    node("Shape", "w", "w_shape"),
]
WEIGHTS = {"two": np.array(2), "flat": np.array([0, -1]), "axis": np.array([0]), "w": np.ones((4, 3), "f")}
SHAPE_ONLY = {
    *("s", "size", "height", "double", "both", "zeros", "zeros_shape", "flattened_shape", "noise_shape"),
    *("tall", "picked"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> ModelFile:
    outputs = [name for n in NODES for name in n.output]
    proto = build(NODES, WEIGHTS, x=("N", 3, "H", "W"), outputs=outputs)
    return ModelFile(write(tmp_path_factory.mktemp("sizes") / "m.onnx", proto))


def test_shape_only(file):
    assert file.graph.shape_only(file.constants) == SHAPE_ONLY
    assert "w_shape" in file.constants


def test_they_are_the_same_whatever_the_values(file):
    rng = np.random.default_rng(0)
    values = [
        run(
            file.cut(list(file.graph.outputs)), {"x": (high * rng.uniform(size=(2, 3, 4, 5))).astype("f") - 3}
        )
        for high in (5, 9)
    ]
    alike = {n for n in file.graph.outputs if np.array_equal(values[0][n], values[1][n])}
    # "chosen" took the branch that reads sizes alone; and noise is the same in the first run of every session.
    assert alike - file.constants.keys() == SHAPE_ONLY | {"chosen", "noise"}


def test_what_is_known_makes_more_constant(file):
    constants = file.constants.with_known({"s": np.array([2, 3, 7, 5])})
    assert constants["double"] == 14
    np.testing.assert_array_equal(constants["zeros"], np.zeros((2, 3, 7, 5)))
    assert "size" not in constants and "double" not in file.constants
    assert np.shares_memory(constants["w"], file.constants["w"])
    more = constants.with_known({"size": np.array(210)})
    assert more["both"] == 224
    assert (more["picked"], more["tall"]) == (210, False)
    assert set(more) == {*file.constants, *SHAPE_ONLY} - {"flattened_shape", "noise_shape"}
    assert len(more) == len(set(more))
    with pytest.raises(KeyError):
        _ = more["count"]
    with pytest.raises(ValueError, match="read-only"):
        more["s"][0] = 1


def test_what_is_known_of_one_output_leaves_the_other_to_be_computed(tmp_path):
    proto = build(
        [node("Split", "w", "a b", axis=0, num_outputs=2), node("Relu", "x", "y")], WEIGHTS, opset=18
    )
    file = ModelFile(write(tmp_path / "m.onnx", proto))
    cut = file.cut(["a", "b"], known={"a": np.array(5, np.float32)})
    found = run(cut, {})
    assert found["a"] == 5
    np.testing.assert_array_equal(found["b"], np.ones((2, 3)))


def test_an_input_can_be_known(tmp_path):
    k = helper.make_tensor_value_info("k", TensorProto.FLOAT, [2])
    proto = build([node("Neg", "k", "n"), node("Relu", "x", "y")], more_inputs=[k])
    constants = ModelFile(write(tmp_path / "m.onnx", proto)).constants.with_known({"k": np.ones(2, "f")})
    np.testing.assert_array_equal(constants["n"], [-1, -1])
