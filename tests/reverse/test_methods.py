"""The methods as tables: what each does at a rectifier, LRN and overlapping pools, and how it is seeded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxviz.errors import UsageError
from onnxviz.network import Network
from onnxviz.reverse.methods import METHODS, Method, make_method
from tests.reverse import models
from tests.reverse.cases import Array, real, weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node
from tests.reverse.test_rules import lrn

IMAGE = (1, 3, 4, 5)
G = np.random.default_rng(1).choice([-2.0, -0.5, 0.5, 3.0], IMAGE).astype(np.float32)
"""A cotangent of both signs."""

X = np.random.default_rng(0).uniform(-2, 8, IMAGE).astype(np.float32)
"""Below zero, between, and above six."""


def positive(g: Array) -> Array:
    return np.maximum(g, 0)


def between(low: float, high: float) -> Array:
    return np.logical_and(low < X, high > X)


def pulled(net: Network, method: str | Method, x: Array = X) -> Array:
    return net.vjp({"x": x}, {"y": G}, method=method)["x"]


RELU = ([node("Relu", "x", "y")], {}, 17)
RELU6 = ([node("Clip", "x low high", "y")], {"low": real(0), "high": real(6)}, 17)
OLD_RELU6 = ([node("Clip", "x", "y", min=0.0, max=6.0)], {}, 10)
CLIP_FROM_0 = ([node("Clip", "x low", "y")], {"low": real(0)}, 17)
CLIP = ([node("Clip", "x low high", "y")], {"low": real(-1), "high": real(1)}, 17)
CLIP_TO_6 = ([node("Clip", "x", "y", max=6.0)], {}, 10)
LEAKY = ([node("LeakyRelu", "x", "y", alpha=0.1)], {}, 17)
SIGMOID = ([node("Sigmoid", "x", "y")], {}, 17)

INF = np.inf


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        pytest.param(RELU, "gradient", G * between(0, INF), id="relu-gradient"),
        pytest.param(RELU, "deconvnet", positive(G), id="relu-deconvnet"),
        pytest.param(RELU, "guided", positive(G) * between(0, INF), id="relu-guided"),
        pytest.param(RELU6, "gradient", G * between(0, 6), id="relu6-gradient"),
        pytest.param(RELU6, "deconvnet", positive(G), id="relu6-deconvnet"),
        pytest.param(RELU6, "guided", positive(G) * between(0, 6), id="relu6-guided"),
        pytest.param(OLD_RELU6, "deconvnet", positive(G), id="relu6-opset10-deconvnet"),
        pytest.param(OLD_RELU6, "guided", positive(G) * between(0, 6), id="relu6-opset10-guided"),
        pytest.param(CLIP_FROM_0, "deconvnet", positive(G), id="clip-from-0-deconvnet"),
        pytest.param(CLIP_FROM_0, "guided", positive(G) * between(0, INF), id="clip-from-0-guided"),
        *(
            pytest.param(CLIP, method, G * between(-1, 1), id=f"clip-is-no-rectifier-{method}")
            for method in METHODS
        ),
        *(
            pytest.param(CLIP_TO_6, method, G * between(-INF, 6), id=f"upper-bound-is-no-rectifier-{method}")
            for method in METHODS
        ),
        pytest.param(LEAKY, "gradient", G * np.where(X > 0, 1, 0.1), id="leaky-gradient"),
        pytest.param(LEAKY, "deconvnet", positive(G), id="leaky-deconvnet"),
        pytest.param(LEAKY, "guided", positive(G) * between(0, INF), id="leaky-guided"),
        *(
            pytest.param(
                SIGMOID, method, G * np.exp(-X) / (1 + np.exp(-X)) ** 2, id=f"sigmoid-is-exact-{method}"
            )
            for method in METHODS
        ),
    ],
)
def test_activations(model, method: str, expected: Array, opened: Opener):
    nodes, constants, opset = model
    net = opened(network(nodes, constants, image=IMAGE, opset=opset))
    np.testing.assert_allclose(pulled(net, method), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["deconvnet", "guided"])
def test_soft_rectifiers_can_keep_their_gradient(name: str, opened: Opener):
    nodes, constants, opset = LEAKY
    net = opened(network(nodes, constants, image=IMAGE, opset=opset))
    found = pulled(net, make_method(name, activation="gradient"))
    np.testing.assert_allclose(found, G * np.where(X > 0, 1, 0.1), rtol=1e-6)


@pytest.mark.parametrize("name", ["deconvnet", "guided"])
def test_the_policy_for_soft_rectifiers_leaves_relu_alone(name: str, opened: Opener):
    net = opened(network(RELU[0], image=IMAGE))
    policy = make_method(name, activation="gradient")
    np.testing.assert_array_equal(pulled(net, policy), pulled(net, name))


LRN = {"size": 3, "alpha": 2.0, "beta": 0.75, "bias": 1.0}


@pytest.fixture
def normalised(opened: Opener) -> Network:
    return opened(network([node("LRN", "x", "y", **LRN)], image=(1, 7, 4, 5)))


@pytest.mark.parametrize(
    ("name", "policy", "exact"),
    [
        ("deconvnet", None, False),
        ("deconvnet", "identity", False),
        ("deconvnet", "gradient", True),
        ("guided", None, False),
        ("guided", "gradient", True),
        ("gradient", None, True),
        ("gradient", "gradient", True),
    ],
)
def test_lrn(name: str, policy: str | None, exact: bool, normalised: Network):
    rng = np.random.default_rng(2)
    x, g = (rng.standard_normal((1, 7, 4, 5)).astype(np.float32) for _ in range(2))
    found = normalised.vjp({"x": x}, {"y": g}, method=make_method(name, lrn=policy))["x"]
    if not exact:
        np.testing.assert_array_equal(found, g)
        return
    d = rng.standard_normal(x.shape)
    slope = (lrn(x + 1e-5 * d, **LRN) - lrn(x - 1e-5 * d, **LRN)) / 2e-5
    assert np.vdot(found, d) == pytest.approx(np.vdot(slope, g), rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("overlap", "count"), [("sum", 1), ("mean", 4)])
def test_overlapping_pools(name: str, overlap: str, count: int, opened: Opener):
    """Four windows of 3×3 by 2 share their maximum, in the middle; a fifth and a sixth value stand alone."""
    x = np.zeros((1, 1, 7, 5), np.float32)
    x[0, 0, 2, 2], x[0, 0, 6, 0], x[0, 0, 5, 4] = 9, 7, 8
    net = opened(
        network([node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2])], image=("N", 1, 7, 5))
    )
    g = np.array([[[[1, 2], [3, 4], [5, 6]]]], np.float32)
    found = net.vjp({"x": x}, {"y": g}, method=make_method(name, overlap=overlap))["x"][0, 0]
    expected = np.zeros((7, 5))
    expected[2, 2], expected[6, 0], expected[5, 4] = 10 / count, 5, 6
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_the_mean_shares_a_switch_in_padded_and_dilated_pools(name: str, opened: Opener):
    """Every place gets the mean of the windows that chose it, counted here one by one."""
    attrs = {"kernel_shape": [2, 3], "strides": [1, 2], "dilations": [2, 1], "pads": [1, 1, 0, 1]}
    model = network([node("MaxPool", "x", "y", **attrs)], image=("N", 2, 7, 9), opset=12)
    net = opened(model)
    x = models.pictures(model, 2)
    ones = np.ones_like(net.activations(x, "pool1"))
    g = np.random.default_rng(3).standard_normal(ones.shape).astype(np.float32)
    times = net.vjp({"x": x}, {"y": ones})["x"]
    total = net.vjp({"x": x}, {"y": g}, method=name)["x"]
    mean = net.vjp({"x": x}, {"y": g}, method=make_method(name, overlap="mean"))["x"]
    assert times.max() > 1
    np.testing.assert_allclose(mean, total / np.maximum(times, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "expected"), [("deconvnet", 0.0), ("guided", 0.0), ("gradient", -1.0)])
def test_a_fan_out_sums_before_the_rectifier_sees_it(name: str, expected: float, opened: Opener):
    """+2 and −3 come back to one rectifier: −1, and so nothing. Rectified apart they would make +2."""
    net = opened(
        network(
            [
                node("Relu", "x", "r"),
                node("Mul", "r two", "left"),
                node("Mul", "r minus_three", "right"),
                node("Add", "left right", "y"),
            ],
            {"two": real(2), "minus_three": real(-3)},
            image=IMAGE,
        )
    )
    found = net.vjp({"x": np.ones(IMAGE, np.float32)}, {"y": np.ones(IMAGE, np.float32)}, method=name)
    np.testing.assert_array_equal(found["x"], np.full(IMAGE, expected))


def test_the_gradient_is_linear_and_deconvnet_is_not(opened: Opener):
    net = opened(network(RELU[0], image=IMAGE))
    ones = np.ones(IMAGE, np.float32)
    for method, same in (("gradient", True), ("deconvnet", False)):
        up, down = (net.vjp({"x": X}, {"y": s * ones}, method=method)["x"] for s in (1, -1))
        assert bool((up == -down).all()) == same


def one_layer(bias: Array, gamma: Array) -> tuple[list, dict[str, Array]]:
    nodes = [
        node("Conv", "x w b", "c"),
        node("BatchNormalization", "c gamma shift mean variance", "n", epsilon=1e-3),
        node("Relu", "n", "r"),
        node("Conv", "r v b", "y"),
    ]
    constants = {
        "w": weights(5, 3, 2, 3),
        "v": weights(5, 5, 2, 2),
        "b": bias,
        "gamma": gamma,
        "shift": weights(5, seed=1),
        "mean": weights(5, seed=2),
        "variance": np.abs(weights(5, seed=3)) + 0.5,
    }
    return nodes, constants


def test_the_bias_plays_no_part_on_the_way_down(opened: Opener):
    """Where no switch or sign depends on it: deconvnet of one rectifier."""
    answers = []
    for bias in (np.zeros(5, np.float32), weights(5, seed=4)):
        net = opened(network(*one_layer(bias, weights(5)), image=("N", 3, 6, 7)))
        g = np.random.default_rng(5).standard_normal((1, 5, 4, 4)).astype(np.float32)
        x = np.random.default_rng(6).standard_normal((1, 3, 6, 7)).astype(np.float32)
        answers.append(net.vjp({"x": x}, {"y": g}, method="deconvnet")["x"])
        nothing = net.vjp({"x": x}, {"y": 0 * g}, method="deconvnet")["x"]
        assert not nothing.any()
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("name", METHODS)
def test_batch_normalization_keeps_the_sign_of_gamma(name: str, opened: Opener):
    gamma = np.array([2.0, -3.0, 0.5], np.float32)
    constants = {
        "gamma": gamma,
        "shift": np.ones(3, np.float32),
        "mean": np.ones(3, np.float32),
        "variance": np.full(3, 3.99, np.float32),
    }
    model = network(
        [node("BatchNormalization", "x gamma shift mean variance", "y", epsilon=0.01)],
        constants,
        image=IMAGE,
    )
    found = pulled(opened(model), name)
    np.testing.assert_allclose(found, G * (gamma / 2).reshape(-1, 1, 1), rtol=1e-5)


@pytest.mark.parametrize(("name", "unit"), [("deconvnet", False), ("guided", False), ("gradient", True)])
@pytest.mark.parametrize("position", ["max", (2, 1), None], ids=str)
def test_seeds(name: str, unit: bool, position: str | tuple[int, int] | None, opened: Opener):
    """The activation itself, or 1 under ``gradient``: seen through one convolution."""
    w = weights(5, 3, 2, 3)
    model = network([node("Conv", "x w", "y")], {"w": w}, image=("N", 3, 6, 7))
    net = opened(model)
    x = models.pictures(model, 2)
    maps = net.activations(x, "conv1")
    seed = np.zeros_like(maps)
    for n in range(2):
        at = np.unravel_index(maps[n, 3].argmax(), maps.shape[2:]) if position == "max" else position
        index = (n, 3) if at is None else (n, 3, *at)
        seed[index] = 1 if unit else maps[index]
    expected = net.vjp({"x": x}, {"y": seed})["x"]
    np.testing.assert_array_equal(net.project(x, "conv1", 3, position, name), expected)


def test_the_bounds_of_a_rectifier_do_not_pass_in_guided(opened: Opener):
    """An activation of exactly 0 or 6 was clipped."""
    net = opened(network(RELU6[0], RELU6[1], image=(1, 3, 1, 2)))
    x = np.array([-1.0, 0, 3, 6, 7, 5.9], np.float32).reshape(1, 3, 1, 2)
    found = net.vjp({"x": x}, {"y": np.ones_like(x)}, method="guided")["x"]
    assert found.ravel().tolist() == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "saliency"}, "'saliency'.*deconvnet, guided, gradient"),
        ({"name": "deconvnet", "overlap": "max"}, "overlap 'max'.*sum, mean"),
        ({"name": "deconvnet", "lrn": "none"}, "lrn 'none'.*identity, gradient"),
        ({"name": "guided", "activation": "relu"}, "activation 'relu'.*rectify, gradient"),
        ({"name": "gradient", "lrn": "identity"}, "gradient cannot use lrn 'identity'"),
        ({"name": "gradient", "activation": "rectify"}, "gradient cannot use activation 'rectify'"),
    ],
)
def test_names_that_are_not_known(arguments: dict[str, str], message: str):
    with pytest.raises(UsageError, match=message):
        make_method(**arguments)


def test_an_unknown_method_at_a_call(opened: Opener):
    net = opened(network(RELU[0], image=IMAGE))
    with pytest.raises(UsageError, match="Choose one of deconvnet, guided, gradient"):
        net.project(X, "relu1", method="deconv")


def test_every_method_says_its_policies():
    for name, overlap in itertools.product(METHODS, ("sum", "mean")):
        method = make_method(name, overlap=overlap)
        assert method.name == name
        assert dict(method.policies)["overlapping pools"] == overlap
        assert set(dict(method.policies)) == {"overlapping pools", "LRN", "other activations"}
