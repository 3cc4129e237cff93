"""Graphs that once went wrong, each with the least that shows it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxviz.errors import ModelError, UnitError, UsageError
from tests.reverse.cases import Array, weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node, pictures
from tests.reverse.pasting import CLOSE, corner_units, window_error

CONVOLUTIONS = {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 3, 3)}


def _number(value: float, *shape: int) -> Array:
    return np.full(shape, value, np.float32)


def test_bounds_of_a_clip_may_have_an_axis(opened: Opener):
    """onnxruntime takes bounds of shape (1,) for scalars, and files have them."""
    nodes = [node("Conv", "x w", "c"), node("Clip", "c low high", "r"), node("Conv", "r v", "y")]
    scalars = network(nodes, {**CONVOLUTIONS, "low": _number(0), "high": _number(1)})
    vectors = network(nodes, {**CONVOLUTIONS, "low": _number(0, 1), "high": _number(1, 1)})
    x = pictures(scalars, 2)
    units = corner_units(opened(scalars), "y", 2)
    want, found = (opened(model).project_units(x, "y", units, "guided") for model in (scalars, vectors))
    np.testing.assert_array_equal(found.pixels, want.pixels)


def test_guided_knows_an_upper_bound_that_is_computed(opened: Opener):
    """Where a Clip from 0 is at its bound nothing passes, be the bound a constant or a tensor."""
    x = pictures(network([node("Relu", "x", "y")]), 1)
    high = float(np.quantile(x, 0.8))
    fixed = network([node("Clip", "x low high", "y")], {"low": _number(0), "high": _number(high)})
    computed = network(
        [
            node("ReduceMax", "x", "top", keepdims=0),
            node("Mul", "top share", "high"),
            node("Clip", "x low high", "y"),
        ],
        {"low": _number(0), "share": _number(high / float(x.max()))},
    )
    want, found = (
        opened(model).project(x, "y", position=None, method="guided") for model in (fixed, computed)
    )
    assert 0 < np.count_nonzero(want) < np.count_nonzero(x > 0)
    np.testing.assert_array_equal(found != 0, want != 0)


def test_comparisons_keep_the_receptive_field(opened: Opener):
    """A mask of the map's own peaks, as detectors of centres have it, sees no more than its pool does."""
    model = network(
        [
            node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
            node("MaxPool", "c", "top", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Equal", "c top", "is_peak"),
            node("Cast", "is_peak", "mask", to=1),
            node("Mul", "c mask", "y"),
        ],
        {"w": CONVOLUTIONS["w"]},
    )
    net = opened(model)
    assert net.layer("y").receptive_field == (5, 5)
    assert window_error(net, pictures(model, 2), "y", corner_units(net, "y", 2), "gradient") < CLOSE


@pytest.mark.parametrize(("op", "low", "high"), [("Exp", -200, 50), ("Reciprocal", 0, 0)])
def test_the_side_that_a_where_leaves_out_may_overflow(op: str, low: float, high: float, opened: Opener):
    """exp(x) only where x is small, 1/x only where it is not 0: the other side is infinite, and plays no part."""
    model = network(
        [
            node("Greater", "x low", "above"),
            node("Greater", "x high", "beyond"),
            node("Xor", "above beyond", "inside") if op == "Exp" else node("Identity", "above", "inside"),
            node(op, "x", "f"),
            node("Where", "inside f x", "y"),
        ],
        {"low": _number(low), "high": _number(high)},
    )
    x = np.zeros((1, 3, 13, 11), np.float32)
    x[0, 0] = [100 if op == "Exp" else 0]
    x[0, 1] = 2
    g = np.ones_like(x)
    slope = {"Exp": np.exp(2), "Reciprocal": -1 / 4}[op]
    found = opened(model).vjp({"x": x}, {"y": g})["x"]
    np.testing.assert_allclose(found[0, 0], 1)
    np.testing.assert_allclose(found[0, 1], slope, rtol=1e-6)


@pytest.mark.parametrize("op", ["Mul", "Where"])
def test_constants_with_a_row_for_each_image_of_a_fixed_batch_are_refused(op: str, opened: Opener):
    """The images of a batch are not treated alike, so what one of them gives depends on its place."""
    middle = {"Mul": node("Mul", "c rows", "r"), "Where": node("Where", "mask c zero", "r")}[op]
    constants = {
        **CONVOLUTIONS,
        "rows": weights(4, 4, 11, 9),
        "mask": weights(4, 1, 11, 9) > 0,
        "zero": _number(0),
    }
    nodes = [node("Conv", "x w", "c"), middle, node("Conv", "r v", "y")]
    model = network(nodes, constants, image=(4, 3, 13, 11))
    net, x = opened(model), pictures(model, 4)
    for call in (lambda: net.project(x, "y", 0), lambda: net.project_units(x, "y", [(0, 0, 1, 1)])):
        with pytest.raises(ModelError, match="not treated alike"):
            call()
    assert net.project(x, "c", 0).shape == x.shape


@pytest.mark.parametrize("units", [[0, 1, 2], [(0, 0, 0.5, 1)], [(0, 1, 2)], np.zeros((2, 2, 4), int)])
def test_units_that_are_no_rows_of_four_whole_numbers(units: Array, opened: Opener):
    model = network([node("Conv", "x w", "y")], CONVOLUTIONS)
    with pytest.raises(UnitError, match="rows of four whole numbers"):
        opened(model).project_units(pictures(model, 1), "y", units)


def test_two_names_of_one_tensor(opened: Opener):
    model = network([node("Conv", "x w", "y")], CONVOLUTIONS)
    g = np.ones((1, 4, 11, 9), np.float32)
    with pytest.raises(UsageError, match="has a cotangent already"):
        opened(model).vjp({"x": pictures(model, 1)}, {"y": g, "node_y": g})
