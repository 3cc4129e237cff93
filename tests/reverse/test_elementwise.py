"""Elementwise operators and reductions where they have no derivative: ties, ends of a domain, whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto

from tests.reverse.cases import Array, ints, real
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node

IMAGE = (1, 3, 2, 2)


def gradient(
    nodes: list[NodeProto], x: Array, opened: Opener, *, opset: int = 17, **constants: Array
) -> Array:
    """Cotangent of the image for a cotangent of 1, 2, 3 … of ``y``."""
    net = opened(network(nodes, constants, image=IMAGE, opset=opset))
    shape = net.shapes()["y"]
    g = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    answer: Array = net.vjp({"x": x}, {"y": g})["x"]
    return answer


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_of_equal_operands_the_first_gets_it_all(op: str, opened: Opener):
    x = np.ones(IMAGE, np.float32)
    nodes = [
        node("Mul", "x two", "a"),
        node("Mul", "x x", "b"),
        node("Add", "b one", "c"),
        node(op, "a c", "y"),
    ]
    found = gradient(nodes, x, opened, one=real(1), two=real(2))
    np.testing.assert_array_equal(found.ravel(), 2 * np.arange(1, 13))
    nodes[-1] = node(op, "four a c a", "y") if op == "Min" else node(op, "zero a c a", "y")
    again = gradient(nodes, x, opened, one=real(1), two=real(2), four=real(4), zero=real(0))
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize(("op", "sign"), [("ReduceMax", 1), ("ReduceMin", -1)])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2]], ids=str)
def test_of_equal_values_the_first_in_scan_order_gets_it_all(
    op: str, sign: int, axes: list[int], opened: Opener
):
    x = np.zeros(IMAGE, np.float32)
    x[0, 0, 0, 1] = x[0, 0, 1, 0] = x[0, 2, 1, 1] = sign
    found = gradient([node(op, "x", "y", axes=axes)], x, opened)
    expected = np.zeros(IMAGE)
    expected[0, 0, 0, 1], expected[0, 1, 0, 0], expected[0, 2, 1, 1] = 1, 2, 3
    np.testing.assert_array_equal(found, expected)


ENDS = {
    "Sqrt": 0,
    "Log": 0,
    "Asin": 1,
    "Acos": -1,
    "Acosh": 1,
    "Atanh": -1,
}


@pytest.mark.parametrize("op", ENDS)
def test_at_the_end_of_its_domain_a_function_gives_zero(op: str, opened: Opener):
    """Where the derivative is infinite, nothing else is lost by it: no NaN comes of it further down."""
    x = np.full(IMAGE, ENDS[op], np.float32)
    assert not gradient([node(op, "x", "y")], x, opened).any()


@pytest.mark.parametrize(("exponent", "slope"), [(0.5, 0), (-1.0, 0), (0.0, 0), (1.0, 1), (2.0, 0)])
def test_powers_of_zero(exponent: float, slope: float, opened: Opener):
    found = gradient([node("Pow", "x k", "y")], np.zeros(IMAGE, np.float32), opened, k=real(exponent))
    np.testing.assert_array_equal(found.ravel(), slope * np.arange(1, 13))


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("LpNormalization", {"axis": 1}),
        ("LpNormalization", {"axis": 1, "p": 1}),
        ("ReduceL2", {"axes": [1]}),
        ("ReduceL1", {"axes": [1]}),
    ],
)
def test_the_norm_of_nothing(op: str, attrs: dict[str, object], opened: Opener):
    found = gradient([node(op, "x", "y", **attrs)], np.zeros(IMAGE, np.float32), opened)
    assert not found.any()


@pytest.mark.parametrize(("kind", "factor"), [("INT64", 0), ("BOOL", 0), ("DOUBLE", 1), ("FLOAT16", 1)])
def test_like_what_a_value_is_cast(kind: str, factor: int, opened: Opener):
    """The type of the other operand says whether anything passes, also if that is known at run time only."""
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=1),
        node("Cast", "sum", "like", to=TensorProto.DataType.Value(kind)),
        node("CastLike", "x like", "cast"),
        node("Cast", "cast", "y", to=TensorProto.FLOAT),
    ]
    x = np.random.default_rng(0).uniform(1.1, 1.9, IMAGE).astype(np.float32)
    np.testing.assert_array_equal(gradient(nodes, x, opened).ravel(), factor * np.arange(1, 13))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "CumSum"])
def test_axes_that_are_computed(op: str, opened: Opener):
    """The last axis, as the number of a picture's channels."""
    nodes = [
        node("Shape", "x", "sizes"),
        node("Gather", "sizes one", "axis"),
        node(op, "x axis", "y"),
    ]
    x = np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)
    stated = gradient([node(op, "x axis", "y")], x, opened, opset=18, axis=ints(3))
    computed = gradient(nodes, x, opened, opset=18, one=ints(1))
    assert stated.any()
    np.testing.assert_array_equal(computed, stated)
