"""The engine on whole networks: windows, boxes, positions, layouts, batches, weights wherever they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxviz
from onnxviz.errors import LayerNotFoundError, ModelError, UnitError, UsageError
from onnxviz.network import Network
from onnxviz.reverse.methods import make_method
from tests import light
from tests.reverse import models
from tests.reverse.all_cases import CASES
from tests.reverse.cases import Array, Case, real, weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node, pictures
from tests.reverse.pasting import CLOSE, corner_units, window_error
from tests.reverse.witnesses import (
    DERIVATIVE,
    Arrays,
    derivative_error,
    onnxruntime_forward,
)

METHODS = ("deconvnet", "guided", "gradient")


# Windows


def _runs(case: Case) -> bool:
    """onnxruntime has LRN of odd sizes only."""
    return case.op != "LRN" or case.attrs["size"] % 2 == 1


SANDWICHES = [case for case in CASES if models.sandwich(case) is not None and _runs(case)]

OVERRIDDEN = ("Relu", "Clip", "LeakyRelu", "LRN", "MaxPool")
"""On the others the methods do the same."""


@pytest.mark.parametrize(
    ("case", "method"),
    [
        pytest.param(case, method, id=f"{case.id}-{method}")
        for case in SANDWICHES
        for method in (METHODS if case.op in OVERRIDDEN else METHODS[-1:])
    ],
)
def test_windows_equal_whole_maps(case: Case, method: str, opened: Opener):
    model = models.sandwich(case)
    assert model is not None
    net = opened(model)
    assert window_error(net, pictures(model, 2), "last", corner_units(net, "last", 2), method) < CLOSE


def test_the_sandwiches_cover_all_that_works_on_maps():
    covered = {case.op for case in SANDWICHES}
    assert covered >= {
        "Conv",
        "MaxPool",
        "AveragePool",
        "LRN",
        "BatchNormalization",
        "Pad",
        "Slice",
        "Concat",
    }
    assert covered >= {"Add", "Sub", "Mul", "Div", "Sum", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Softmax"}


@pytest.fixture(scope="module")
def light_networks() -> dict[str, Network]:
    return {}


@pytest.fixture
def light_network(
    request: pytest.FixtureRequest,
    light_networks: dict[str, Network],
    tmp_path_factory: pytest.TempPathFactory,
    provider: str,
) -> Network:
    name: str = request.param
    if name not in light_networks:
        path = light.write_light(name, tmp_path_factory.mktemp("light"))
        light_networks[name] = onnxviz.load(path, provider=provider)
    return light_networks[name]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("light_network", light.NAMES, indirect=True)
def test_windows_equal_whole_maps_on_real_networks(light_network: Network, method: str):
    net = light_network
    x = np.random.default_rng(7).standard_normal((1, 3, *net.size)).astype(np.float32)
    units = corner_units(net, "conv5", 1)[::2]
    assert window_error(net, x, "conv5", units, method) < CLOSE


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_overlapping_pools(pads: list[int], ceil_mode: int, method: str, opened: Opener):
    """Its count is over all windows of the pool, not only over those that a unit sees."""
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": ceil_mode}
    model = network(
        [node("Conv", "x w", "c"), node("MaxPool", "c", "p", **pool), node("Conv", "p v", "y")],
        {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 2, 2)},
    )
    net = opened(model)
    mean = make_method(method, overlap="mean")
    assert window_error(net, pictures(model, 2), "y", corner_units(net, "y", 2), mean) < CLOSE


SQUEEZE_AND_EXCITE = (
    [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "c", "mean"),
        node("Conv", "mean gate", "logit"),
        node("Sigmoid", "logit", "weight"),
        node("Mul", "c weight", "scaled"),
        node("Conv", "scaled v", "y", pads=[1, 1, 1, 1]),
    ],
    {"w": weights(6, 3, 3, 3), "gate": weights(6, 6, 1, 1), "v": weights(4, 6, 3, 3)},
)
CHANNEL_SHUFFLE = (
    [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1], strides=[2, 1]),
        node("Reshape", "c apart", "five"),
        node("Transpose", "five", "crossed", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "crossed together", "shuffled"),
        node("Conv", "shuffled v", "y", group=2, pads=[1, 1, 1, 1]),
    ],
    {
        "w": weights(6, 3, 3, 3),
        "v": weights(4, 3, 3, 3),
        "apart": np.array([0, 2, 3, 7, 11]),
        "together": np.array([0, 6, 7, 11]),
    },
)
SKIPS = (
    [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("MaxPool", "c", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("Relu", "p", "r"),
        node("Conv", "r long", "l", pads=[2, 1, 2, 1]),
        node("Conv", "r short", "s"),
        node("Add", "l s", "sum"),
        node("Concat", "sum r p", "joined", axis=1),
        node("LRN", "joined", "lrn", size=3, alpha=1.0),
        node("Conv", "lrn v", "y", strides=[2, 1], pads=[1, 0, 2, 1]),
    ],
    {
        "w": weights(4, 3, 3, 3),
        "long": weights(5, 4, 5, 3),
        "short": weights(5, 4, 1, 1),
        "v": weights(6, 13, 3, 2),
    },
)
PARTS = (
    [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Split", "c", "a b", axis=1),
        node("MaxPool", "a", "pa", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("AveragePool", "b", "pb", kernel_shape=[5, 1], pads=[2, 0, 2, 0]),
        node("Concat", "pb pa b", "joined", axis=1),
        node("Conv", "joined v", "y"),
    ],
    {"w": weights(4, 3, 3, 3), "v": weights(3, 6, 2, 2)},
)
ONE_AXIS = (
    [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("ReduceMean", "c", "rows", axes=[3], keepdims=1),
        node("Mul", "c rows", "scaled"),
        node("Conv", "scaled v", "y", pads=[1, 1, 1, 1]),
    ],
    {"w": weights(4, 3, 3, 3), "v": weights(3, 4, 3, 3)},
)
GRAPHS = {
    "squeeze-and-excite": SQUEEZE_AND_EXCITE,
    "channel-shuffle": CHANNEL_SHUFFLE,
    "skips": SKIPS,
    "parts": PARTS,
    "one-axis": ONE_AXIS,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GRAPHS)
def test_windows_equal_whole_maps_where_branches_meet(name: str, method: str, opened: Opener):
    model = network(*GRAPHS[name])
    net = opened(model)
    assert window_error(net, pictures(model, 2), "y", corner_units(net, "y", 2), method) < CLOSE


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_where_branches_meet(name: str, opened: Opener):
    model = network(*GRAPHS[name])
    net = opened(model)

    def pull_back(x: Arrays, y: Arrays) -> dict[str, Array]:
        return net.vjp({name: v.astype(np.float32) for name, v in x.items()}, y)

    x = {"x": pictures(model, 2)}
    forward = onnxruntime_forward(model)
    # Kinks cannot be kept away from here, so the step is small and the tolerance wide.
    error = derivative_error(forward, pull_back, x, np.random.default_rng(1), step=2e-4)
    assert error < 20 * DERIVATIVE


def test_branches_of_unlike_strides_meet_in_whole_maps(opened: Opener):
    """One branch halves the map by its stride, the other takes the top left quarter as it is."""
    model = network(
        [
            node("Conv", "x w", "c", strides=[2, 2]),
            node("Slice", "x starts ends axes", "quarter"),
            node("Concat", "c quarter", "joined", axis=1),
            node("Conv", "joined v", "y", pads=[1, 1, 1, 1]),
        ],
        {
            "w": weights(4, 3, 1, 1),
            "v": weights(3, 7, 3, 3),
            "starts": np.array([0, 0]),
            "ends": np.array([7, 6]),
            "axes": np.array([2, 3]),
        },
    )
    net = opened(model)
    assert net.layer("y").stride is None
    for method in METHODS:
        assert window_error(net, pictures(model, 2), "y", corner_units(net, "y", 2), method) < CLOSE


def test_units_may_come_in_any_order_and_twice(opened: Opener):
    model = network(*SKIPS)
    net, x = opened(model), pictures(model, 4)
    units = np.array([[3, 1, 2, 2], [0, 5, 0, 0], [3, 1, 2, 2], [1, 0, 1, 3], [0, 2, 3, 1]])
    together = net.project_units(x, "y", units)
    for unit, pixels, box in zip(units, together.pixels, together.boxes, strict=True):
        alone = net.project_units(x[unit[0] : unit[0] + 1], "y", unit * [0, 1, 1, 1])
        np.testing.assert_allclose(pixels, alone.pixels[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(box, alone.boxes[0])


def test_more_images_and_units_than_one_batch(opened: Opener):
    """Beyond what is recorded (32 images) and pulled back (256 units) at once."""
    model = network(*PARTS)
    net, x = opened(model), pictures(model, 40)
    units = np.array([[i % 40, i % 3, i % 11, i % 9] for i in range(300)])
    together = net.project_units(x, "y", units)
    whole = net.project(x, "y", channel=1, position=(4, 4))
    for i in (0, 31, 32, 39, 255, 256, 299):
        alone = net.project_units(x, "y", units[i])
        np.testing.assert_allclose(together.pixels[i], alone.pixels[0], rtol=1e-4, atol=1e-5)
    for i in (0, 31, 32, 39):
        alone = net.project(x[i : i + 1], "y", channel=1, position=(4, 4))
        np.testing.assert_allclose(whole[i], alone[0], rtol=1e-4, atol=1e-5)


def test_no_units(opened: Opener):
    model = network(*PARTS)
    net = opened(model)
    found = net.project_units(pictures(model, 1), "y", np.zeros((0, 4), int))
    assert found.pixels.shape == (0, 3, *net.layer("y").receptive_field)
    assert found.boxes.shape == (0, 4)


# Boxes


def _positive(*shape: int) -> Array:
    return np.abs(weights(*shape)) + 0.1


SEEN = {
    "strides": (
        [
            node("Conv", "x w", "c", strides=[2, 1], pads=[1, 2, 0, 1]),
            node("Conv", "c v", "y", strides=[1, 2], pads=[0, 1, 1, 0]),
        ],
        {"w": _positive(2, 3, 3, 4), "v": _positive(3, 2, 2, 3)},
    ),
    "pools": (
        [
            node("MaxPool", "x", "p", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
            node("Conv", "p w", "c"),
            node("AveragePool", "c", "y", kernel_shape=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1]),
        ],
        {"w": _positive(2, 3, 3, 3)},
    ),
    "dilation": (
        [
            node("Conv", "x w", "c", dilations=[2, 3], pads=[1, 0, 2, 1]),
            node("MaxPool", "c", "y", kernel_shape=[2, 2], dilations=[3, 2], strides=[2, 1]),
        ],
        {"w": _positive(2, 3, 3, 2)},
    ),
    "same-lower": (
        [node("Conv", "x w", "y", strides=[2, 3], auto_pad="SAME_LOWER")],
        {"w": _positive(2, 3, 4, 4)},
    ),
    "branches": (
        [
            node("Conv", "x one", "a", strides=[2, 2]),
            node("Conv", "x five", "b", strides=[2, 2], pads=[2, 2, 2, 2]),
            node("MaxPool", "x", "p", kernel_shape=[3, 1], strides=[2, 2], pads=[1, 0, 1, 0]),
            node("Conv", "p one", "c"),
            node("Sum", "a b c", "y"),
        ],
        {"one": _positive(2, 3, 1, 1), "five": _positive(2, 3, 5, 5)},
    ),
    "moved": (
        [
            node("Pad", "x pads", "wide"),
            node("Slice", "wide starts ends axes steps", "thin"),
            node("Conv", "thin w", "c"),
            node("LRN", "c", "n", size=3),
            node("Transpose", "n", "nhwc", perm=[0, 2, 3, 1]),
            node("Relu", "nhwc", "r"),
            node("Transpose", "r", "y", perm=[0, 3, 1, 2]),
        ],
        {
            "w": _positive(2, 3, 2, 3),
            "pads": np.array([0, 0, 2, 1, 0, 0, 1, 2]),
            "starts": np.array([1, 2]),
            "ends": np.array([100, 100]),
            "axes": np.array([2, 3]),
            "steps": np.array([2, 1]),
        },
    ),
    "everything": (
        [
            node("Conv", "x w", "c"),
            node("GlobalAveragePool", "c", "g"),
            node("Add", "c g", "y"),
        ],
        {"w": _positive(2, 3, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_boxes_are_what_the_units_see(name: str, opened: Opener):
    """Each pixel is changed in turn; the units that notice are those whose box it is in."""
    height, width = 17, 15
    model = network(*SEEN[name], image=("N", 3, height, width))
    net = opened(model)
    x = np.abs(pictures(model, 1))
    lit = np.repeat(x, height * width, axis=0)
    lit.reshape(-1, 3, height * width)[range(height * width), :, range(height * width)] += 50
    layer = net.layer("r" if name == "moved" else "y")
    change = np.abs(net.activations(lit, layer) - net.activations(x, layer)).max(1)
    noticed = (change > 1e-4).reshape(height, width, *layer.size)
    inner = 0
    for y, column in np.ndindex(*layer.size):
        rows, columns = np.nonzero(noticed[:, :, y, column])
        top, left, bottom, right = layer.box(y, column)
        hull = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        clipped = (max(top, 0), max(left, 0), min(bottom, height), min(right, width))
        assert hull[0] >= clipped[0]
        assert hull[1] >= clipped[1]
        assert hull[2] <= clipped[2]
        assert hull[3] <= clipped[3]
        # At the border the cells of a dilated or strided window can all miss the box's edge.
        if clipped == (top, left, bottom, right):
            inner += 1
            assert hull == clipped
    assert inner
    found = net.project_units(x, layer, np.array([[0, 0, layer.size[0] - 1, 0]]))
    assert found.boxes.tolist() == [list(layer.box(layer.size[0] - 1, 0))]
    assert found.pixels.shape[2:] == layer.receptive_field


def test_a_window_at_the_border_is_zero_outside_the_image(opened: Opener):
    w = weights(2, 3, 5, 3)
    model = network([node("Conv", "x w", "y", pads=[2, 1, 2, 1])], {"w": w})
    net, x = opened(model), pictures(model, 1)
    found = net.project_units(x, "y", np.array([[0, 1, 0, 0], [0, 1, 12, 10]]), "gradient")
    assert found.boxes.tolist() == [[-2, -1, 3, 2], [10, 9, 15, 12]]
    expected = np.stack([w[1], w[1]])
    expected[0, :, :2], expected[0, :, :, :1] = 0, 0
    expected[1, :, 3:], expected[1, :, :, 2:] = 0, 0
    np.testing.assert_array_equal(found.pixels, expected)


# Positions


@pytest.fixture
def small(opened: Opener) -> tuple[Network, Array]:
    model = network(*SKIPS)
    return opened(model), pictures(model, 3)


def _one_by_one(net: Network, x: Array, channel: int, places: list[tuple[int, int]]) -> Array:
    return np.concatenate([net.project(x[i : i + 1], "y", channel, place) for i, place in enumerate(places)])


def test_position_max_is_where_the_channel_is_strongest(small: tuple[Network, Array]):
    net, x = small
    maps = net.activations(x, "y")[:, 2]
    places = [tuple(int(i) for i in np.unravel_index(m.argmax(), m.shape)) for m in maps]
    expected = _one_by_one(net, x, 2, places)
    np.testing.assert_allclose(net.project(x, "y", 2, "max"), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(net.project(x, "y", 2), net.project(x, "y", 2, "max"))


@pytest.mark.parametrize("make", [list, tuple, np.array], ids=["list", "tuple", "array"])
def test_one_position_for_all_or_one_an_image(make, small: tuple[Network, Array]):
    net, x = small
    same = _one_by_one(net, x, 2, [(1, 3)] * 3)
    np.testing.assert_allclose(net.project(x, "y", 2, make((1, 3))), same, rtol=1e-4, atol=1e-5)
    places = [(1, 3), (0, 0), (2, 1)]
    each = _one_by_one(net, x, 2, places)
    np.testing.assert_allclose(net.project(x, "y", 2, make(places)), each, rtol=1e-4, atol=1e-5)


def test_two_images_with_a_position_each(small: tuple[Network, Array]):
    """Two pairs are not one pair."""
    net, x = small
    places = [(1, 3), (0, 2)]
    expected = _one_by_one(net, x[:2], 2, places)
    np.testing.assert_allclose(net.project(x[:2], "y", 2, places), expected, rtol=1e-4, atol=1e-5)


def test_numpy_integers_are_positions(small: tuple[Network, Array]):
    net, x = small
    found = net.project(x, "y", np.int64(2), (np.int64(1), np.int32(3)))
    np.testing.assert_array_equal(found, net.project(x, "y", 2, (1, 3)))


def test_position_none_is_the_whole_map(small: tuple[Network, Array]):
    net, x = small
    maps = net.activations(x, "y")
    seed = np.zeros_like(maps)
    seed[:, 2] = maps[:, 2]
    expected = net.vjp({"x": x}, {"y": seed}, method="deconvnet")["x"]
    np.testing.assert_allclose(net.project(x, "y", 2, None), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["max", (2, 1), None], ids=str)
def test_channel_none_is_every_channel(position, small: tuple[Network, Array]):
    net, x = small
    maps = net.activations(x, "y")
    seed = np.zeros_like(maps)
    for n, c in np.ndindex(*maps.shape[:2]):
        at = np.unravel_index(maps[n, c].argmax(), maps.shape[2:]) if position == "max" else position
        index = (n, c) if at is None else (n, c, *at)
        seed[index] = maps[index]
    expected = net.vjp({"x": x}, {"y": seed}, method="guided")["x"]
    found = net.project(x, "y", None, position, "guided")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel": 6}, "channels 0 to 5; there is no channel 6"),
        ({"channel": -1}, "there is no channel -1"),
        ({"channel": 0, "position": (4, 0)}, r"4×5 units; there is no unit \(4, 0\)"),
        ({"channel": 0, "position": (0, -1)}, r"no unit \(0, -1\)"),
        ({"channel": 0, "position": "best"}, "'best': give 'max'"),
        ({"channel": 0, "position": [(0, 0), (1, 1)]}, "one for each of the 3 images"),
        ({"channel": 0, "position": (1, 2, 3)}, "one for each of the 3 images"),
    ],
)
def test_units_that_are_not_there(arguments, message: str, small: tuple[Network, Array]):
    net, x = small
    assert net.layer("y").size == (4, 5)
    with pytest.raises(UnitError, match=message):
        net.project(x, "y", **arguments)


@pytest.mark.parametrize(
    "unit", [[3, 0, 0, 0], [0, 6, 0, 0], [0, 0, 4, 0], [0, 0, 0, 5], [0, 0, 0, -1], [-1, 0, 0, 0]]
)
def test_rows_of_units_that_are_not_there(unit: list[int], small: tuple[Network, Array]):
    net, x = small
    with pytest.raises(UnitError, match=r"outside layer .*limits are \(3, 6, 4, 5\)"):
        net.project_units(x, "y", np.array([[0, 0, 0, 0], unit]))


def test_a_layer_that_is_not_there(small: tuple[Network, Array]):
    net, x = small
    for call in (net.activations, net.project):
        with pytest.raises(LayerNotFoundError, match="conv9"):
            call(x, "conv9")


@pytest.mark.parametrize("shape", [(3, 13, 11), (1, 13, 11, 3), (2, 3, 12, 11), (2, 4, 13, 11)], ids=str)
def test_an_array_that_does_not_fit(shape: tuple[int, ...], small: tuple[Network, Array]):
    net, _ = small
    found = "×".join(map(str, shape))
    with pytest.raises(UsageError, match=f"x: float32 N×3×13×11.*{found}"):
        net.project(np.zeros(shape, np.float32), "y")


def test_a_layer_of_vectors(opened: Opener):
    model = network(
        [
            node("Conv", "x w", "c"),
            node("Relu", "c", "r"),
            node("Flatten", "r", "f"),
            node("Gemm", "f v", "y", transB=1),
        ],
        {"w": weights(2, 3, 4, 3), "v": weights(5, 180)},
    )
    net, x = opened(model), pictures(model, 2)
    layer = net.layer("fc1")
    assert (layer.channels, layer.size, layer.receptive_field) == (5, (), (13, 11))
    expected = net.project(x, "fc1", 3)
    np.testing.assert_array_equal(net.project(x, "fc1", 3, (0, 0)), expected)
    found = net.project_units(x, "fc1", np.array([[0, 3, 0, 0], [1, 3, 0, 0]]))
    assert found.boxes.tolist() == [[0, 0, 13, 11]] * 2
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-4, atol=1e-5)


# Layouts, types, batches and sizes


def _body(image: str) -> list:
    return [
        node("Conv", f"{image} w", "c", strides=[2, 1], pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
        node("Conv", "p v", "y", pads=[1, 1, 1, 1]),
    ]


BODY = {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 3, 3)}


def _same_projections(net: Network, x: Array, plain: Network, y: Array, layers: tuple[str, str]) -> None:
    """Two networks that should do the same, on inputs (N, C, H, W) ``y`` and, in its own layout, ``x``."""
    order = net.image.order
    np.testing.assert_allclose(
        net.activations(x, layers[0]), plain.activations(y, layers[1]), rtol=1e-5, atol=1e-6
    )
    units = corner_units(plain, layers[1], len(y))
    for method in METHODS:
        found = net.project(x, layers[0], 1, "max", method)
        assert found.shape == x.shape
        np.testing.assert_allclose(
            found.transpose(order), plain.project(y, layers[1], 1, "max", method), rtol=1e-4, atol=1e-5
        )
        a, b = (
            n.project_units(i, at, units, method) for n, i, at in ((net, x, layers[0]), (plain, y, layers[1]))
        )
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_allclose(a.pixels, b.pixels, rtol=1e-4, atol=1e-5)


def test_nhwc_input(opened: Opener):
    """As TensorFlow's exporter writes it: transposed for each convolution, activations in NHWC."""
    plain = network(_body("x"), BODY)
    model = network(
        [
            node("Transpose", "x", "t1", perm=[0, 3, 1, 2]),
            node("Conv", "t1 w", "c1", strides=[2, 1], pads=[1, 1, 1, 1]),
            node("Transpose", "c1", "t2", perm=[0, 2, 3, 1]),
            node("Relu", "t2", "r"),
            node("Transpose", "r", "t3", perm=[0, 3, 1, 2]),
            node("MaxPool", "t3", "p", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
            node("Conv", "p v", "c2", pads=[1, 1, 1, 1]),
            node("Transpose", "c2", "t4", perm=[0, 2, 3, 1]),
            node("Relu", "t4", "y"),
        ],
        BODY,
        image=("N", 13, 11, 3),
    )
    net = opened(model)
    y = pictures(plain, 2)
    x = np.ascontiguousarray(y.transpose(0, 2, 3, 1))
    assert net.image.layout == "NHWC"
    _same_projections(net, x, opened(plain), y, ("conv2", "conv2"))
    _same_projections(net, x, opened(plain), y, ("relu1", "relu1"))


def test_uint8_input(opened: Opener):
    plain = network(_body("x"), BODY)
    model = network([node("Cast", "x", "real", to=TensorProto.FLOAT), *_body("real")], BODY)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 13, 11)).astype(np.uint8)
    _same_projections(opened(model), x, opened(plain), x.astype(np.float32), ("conv2", "conv2"))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("opens", [True, False], ids=["can-be-opened", "cannot-be-opened"])
def test_fixed_batch(batch: int, opens: bool, opened: Opener):
    """With a reshape that names the batch, no other batch will run."""
    nodes, constants = _body("x"), dict(BODY)
    if not opens:
        nodes.append(node("Reshape", "y shape", "same"))
        nodes.append(node("Mul", "same one", "z"))
        constants |= {"shape": np.array([batch, 5, 3, 6]), "one": real(1)}
    fixed = opened(network(nodes, constants, image=(batch, 3, 13, 11)))
    assert fixed.image.batch == batch
    plain = network(_body("x"), BODY)
    _same_projections(
        fixed, pictures(plain, 3), opened(plain), pictures(plain, 3), ("conv2" if opens else "z", "conv2")
    )


def test_open_sizes(opened: Opener):
    net = opened(network(_body("x"), BODY, image=("N", 3, "H", "W")))
    for size in ((13, 11), (20, 17), (13, 11)):
        plain = network(_body("x"), BODY, image=("N", 3, *size))
        _same_projections(net, pictures(plain, 2), opened(plain), pictures(plain, 2), ("conv2", "conv2"))


def _batch_moved() -> list:
    """The batch goes to the second axis and comes back, as in recurrent code."""
    return [
        node("Conv", "x w", "c", strides=[2, 1], pads=[1, 1, 1, 1]),
        node("Transpose", "c", "t", perm=[1, 0, 2, 3]),
        node("Relu", "t", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
        node("Transpose", "p", "u", perm=[1, 0, 2, 3]),
        node("Conv", "u v", "y", pads=[1, 1, 1, 1]),
    ]


@pytest.mark.parametrize("batch", ["N", 1])
def test_a_graph_that_moves_the_batch_axis(batch: str | int, opened: Opener):
    net = opened(network(_batch_moved(), BODY, image=(batch, 3, 13, 11)))
    plain = network(_body("x"), BODY)
    _same_projections(net, pictures(plain, 3), opened(plain), pictures(plain, 3), ("conv2", "conv2"))


@pytest.mark.parametrize("batch", ["N", 1])
def test_the_gradient_of_a_graph_that_moves_the_batch_axis(batch: str | int, opened: Opener):
    """By finite differences of one unit, in each of two images."""
    model = network(_batch_moved(), BODY, image=(batch, 3, 13, 11))
    net, x = opened(model), pictures(model, 2)
    gradient = net.project(x, "conv2", channel=1, position=(2, 3), method="gradient")
    d = np.random.default_rng(3).uniform(-1, 1, x.shape)
    step = 2e-3
    ahead, behind = (
        net.activations((x + s * d).astype(np.float32), "conv2")[:, 1, 2, 3] for s in (step, -step)
    )
    slope = (ahead - behind).astype(float) / (2 * step)
    np.testing.assert_allclose((gradient * d).sum((1, 2, 3)), slope, rtol=1e-2)


def test_a_batch_fixed_above_one_and_moved_is_refused(opened: Opener):
    net = opened(network(_batch_moved(), BODY, image=(2, 3, 13, 11)))
    with pytest.raises(ModelError, match="batch is fixed at 2 and its images are moved"):
        net.project(np.zeros((2, 3, 13, 11), np.float32), "conv2", 1)


# vjp


def test_cotangents_at_two_depths_add_up(small: tuple[Network, Array]):
    net, x = small
    rng = np.random.default_rng(1)
    at_y = rng.standard_normal(net.activations(x, "y").shape).astype(np.float32)
    at_sum = rng.standard_normal(net.activations(x, "sum").shape).astype(np.float32)
    both = net.vjp({"x": x}, {"y": at_y, "sum": at_sum})["x"]
    apart = net.vjp({"x": x}, {"y": at_y})["x"] + net.vjp({"x": x}, {"sum": at_sum})["x"]
    np.testing.assert_allclose(both, apart, rtol=1e-4, atol=1e-4)


def test_cotangents_by_any_name(small: tuple[Network, Array]):
    net, x = small
    g = np.ones_like(net.activations(x, "y"))
    expected = net.vjp({"x": x}, {"y": g})["x"]
    for name in ("node_y", "conv4"):
        np.testing.assert_array_equal(net.vjp({"x": x}, {name: g})["x"], expected)


def test_a_cotangent_of_the_input_comes_back(small: tuple[Network, Array]):
    net, x = small
    g = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    np.testing.assert_array_equal(net.vjp({"x": x}, {"x": g})["x"], g)


def test_arguments_stay_as_they_are(small: tuple[Network, Array]):
    net, x = small
    g = np.random.default_rng(0).standard_normal(net.activations(x, "y").shape).astype(np.float32)
    before = x.copy(), g.copy()
    for method in METHODS:
        net.vjp({"x": x}, {"y": g}, method=method)
        net.project(x, "y", 1, method=method)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(g, before[1])


def test_a_cotangent_of_another_shape(small: tuple[Network, Array]):
    net, x = small
    with pytest.raises(UsageError, match=r"'y' is \(3, 6, 4, 6\); the tensor is \(3, 6, 4, 5\)"):
        net.vjp({"x": x}, {"y": np.zeros((3, 6, 4, 6), np.float32)})


def test_a_cotangent_of_an_unknown_tensor(small: tuple[Network, Array]):
    net, x = small
    with pytest.raises(LayerNotFoundError, match="nowhere"):
        net.vjp({"x": x}, {"nowhere": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    "inputs", [{}, {"image": np.zeros((1, 3, 13, 11), np.float32)}], ids=["none", "misnamed"]
)
def test_an_input_that_is_not_given(inputs: Arrays, small: tuple[Network, Array]):
    net, _ = small
    with pytest.raises(UsageError, match=r"inputs are x; given are (none|image)"):
        net.vjp(inputs, {"y": np.zeros((1, 6, 4, 5), np.float32)})


# Where the weights are


def _weights_as(form: str) -> ModelProto:
    w, shift = BODY["w"], np.full((1, 4, 1, 1), 0.25, np.float32)
    body = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Add", "c shift", "moved"),
        node("BatchNormalization", "moved gamma beta mean variance", "n"),
        node("Clip", "n low high", "r"),
        node("Conv", "r v", "y"),
    ]
    constants = {
        "w": w,
        "v": BODY["v"],
        "shift": shift,
        "low": real(0),
        "high": real(6),
        "gamma": weights(4),
        "beta": weights(4, seed=1),
        "mean": weights(4, seed=2),
        "variance": np.full(4, 0.75, np.float32),
    }
    if form == "initializers":
        return network(body, constants)
    if form == "graph inputs":
        model = network(body, constants)
        for name, value in constants.items():
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
        return model
    if form == "Constant nodes":
        makers = [
            helper.make_node(
                "Constant", [], [name], name=f"make_{name}", value=numpy_helper.from_array(value)
            )
            for name, value in constants.items()
        ]
        return network([*makers, *body])
    if form == "ConstantOfShape":
        fills = {"shift": 0.25, "variance": 0.75}
        makers = []
        for name, fill in fills.items():
            constants[f"{name}_shape"] = np.array(constants.pop(name).shape)
            value = helper.make_tensor("fill", TensorProto.FLOAT, [1], [fill])
            makers.append(node("ConstantOfShape", f"{name}_shape", name, value=value))
        return network([*makers, *body], constants)
    # A subgraph: quantised weights, a bound in an Identity, a shape put together.
    scale = real(0.5)
    makers = [
        node("Mul", "half_w two", "w"),
        node("Transpose", "turned_v", "v", perm=[3, 2, 1, 0]),
        node("Identity", "bound", "high"),
        node("Sqrt", "squared", "variance"),
        node("Unsqueeze", "flat axes", "shift"),
    ]
    constants |= {
        "half_w": constants.pop("w") * scale,
        "two": real(2),
        "turned_v": np.ascontiguousarray(constants.pop("v").T),
        "bound": constants.pop("high"),
        "squared": constants.pop("variance") ** 2,
        "flat": constants.pop("shift").reshape(4),
        "axes": np.array([0, 2, 3]),
    }
    return network([*makers, *body], constants)


@pytest.mark.parametrize("form", ["graph inputs", "Constant nodes", "ConstantOfShape", "subgraph"])
def test_weights_wherever_they_are(form: str, opened: Opener):
    plain = _weights_as("initializers")
    x = pictures(plain, 2)
    _same_projections(opened(_weights_as(form)), x, opened(plain), x, ("conv2", "conv2"))


def test_external_weights(tmp_path: Path, provider: str, opened: Opener):
    plain = _weights_as("initializers")
    path = tmp_path / "external.onnx"
    onnx.save_model(plain, str(path), save_as_external_data=True, location="weights.bin", size_threshold=16)
    x = pictures(plain, 2)
    plain = _weights_as("initializers")
    net = onnxviz.load(path, provider=provider)
    _same_projections(net, x, opened(plain), x, ("conv2", "conv2"))


RUN_TIME = {
    "Conv": [node("Conv", "x pointwise", "c"), node("Conv", "c c", "y")],
    "Clip": [
        node("ReduceMean", "x", "low", keepdims=0),
        node("Clip", "x low", "c"),
        node("Conv", "c w", "y"),
    ],
    "Pad": [
        node("Shape", "x", "sizes"),
        node("Concat", "sizes sizes", "eight", axis=0),
        node("Sub", "eight eight", "pads"),
        node("Pad", "x pads", "c"),
        node("Conv", "c w", "y"),
    ],
    "Slice-starts": [
        node("Shape", "x", "sizes"),
        node("Gather", "sizes three", "width"),
        node("Sub", "width six", "start"),
        node("Slice", "x start many three", "c"),
        node("Conv", "c w", "y"),
    ],
    "Slice-steps": [
        node("Shape", "x", "sizes"),
        node("Gather", "sizes one", "step"),
        node("Slice", "x one many three step", "c"),
        node("Conv", "c w", "y"),
    ],
}
"""Parameters that the file does not hold: computed from the image's sizes, or from its values."""


@pytest.mark.parametrize("name", RUN_TIME)
def test_what_is_computed_at_run_time_is_followed(name: str, opened: Opener):
    numbers = {"one": 1, "three": 3, "six": 6, "many": 1000}
    constants = {"w": weights(4, 3, 3, 3), "pointwise": weights(3, 3, 1, 1)}
    constants |= {n: np.array([v]) for n, v in numbers.items()}
    model = network(RUN_TIME[name], constants, image=(1, 3, 3, 3) if name == "Conv" else ("N", 3, 13, 11))
    net = opened(model)
    net.check([net.layer("y")], make_method("gradient"))
    rng = np.random.default_rng(0)
    # Away from the mean, at which Clip has its kink.
    x = np.where(rng.random((1, 3, *net.size)) < 0.5, -1, 1) * rng.uniform(0.5, 2, (1, 3, *net.size))
    error = derivative_error(
        onnxruntime_forward(model), lambda x, y: net.vjp(x, y), {"x": x.astype(np.float32)}, rng
    )
    assert error < DERIVATIVE
