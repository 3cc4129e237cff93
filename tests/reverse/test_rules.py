"""Every reverse rule on one-node models, against witnesses that know only the forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxviz.errors import UnsupportedOpError
from onnxviz.network import Network
from onnxviz.reverse.engine import check_path
from onnxviz.reverse.methods import make_method
from onnxviz.reverse.rules import RULES
from onnxviz.reverse.rules.registry import Cotangents, Rule, Step, register
from tests.reverse.all_cases import CASES
from tests.reverse.cases import DUMMY, Array, Case, real, weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node, pictures
from tests.reverse.witnesses import (
    ADJOINT,
    DERIVATIVE,
    LINEAR_STEP,
    STEP,
    Arrays,
    Forward,
    PullBack,
    adjoint_error,
    derivative_error,
    onnxruntime_forward,
)

PICTURE = np.zeros((1, 3, 5, 4), np.float32)
OTHER = "com.microsoft"
"""A domain whose operators onnxruntime runs, and that have no rules."""

every_case = pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES])
every_linear_case = pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES if c.linear])


def forward_of(case: Case) -> Forward:
    """onnxruntime, the dummy image fed; but the formula for LRN, of which onnxruntime takes odd sizes only."""
    if case.op == "LRN":
        return lambda x: {"y0": lrn(x["a"].astype(np.float64), **case.attrs)}
    run = onnxruntime_forward(case.model())
    return lambda x: run({**x, DUMMY: PICTURE})


def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Array:
    """ONNX LRN-13, channel by channel. x: (N, C, …)."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        first, last = max(0, c - (size - 1) // 2), min(x.shape[1] - 1, c + size // 2)
        squares = (x[:, first : last + 1] ** 2).sum(1)
        y[:, c] = x[:, c] / (bias + alpha / size * squares) ** beta
    return y


def puller(network: Network) -> PullBack:
    def pull_back(x: Arrays, y: Arrays) -> dict[str, Array]:
        answer = network.vjp({**x, DUMMY: PICTURE}, y, method="gradient")
        assert set(answer) == {*x, DUMMY}
        assert not answer[DUMMY].any()
        for name, value in x.items():
            assert answer[name].shape == value.shape
            assert answer[name].dtype == np.float32
        return answer

    return pull_back


NODE_TESTS_ONLY = {"SwiGLU"}
"""Operators of opsets that onnxruntime does not run yet; onnx's own tests cover them (`test_node_tests.py`)."""
QUANTISED = {
    *(
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    ),
    "QuantizeLinear",
}
"""Operators that round: straight through is no derivative; `test_quantization.py` holds them to the float network."""


def test_every_rule_has_cases():
    assert {case.op for case in CASES} == set(RULES) - NODE_TESTS_ONLY - QUANTISED


def test_the_cases_have_names_of_their_own():
    assert len({case.id for case in CASES}) == len(CASES)


@every_linear_case
def test_adjoint_identity(case: Case, opened: Opener):
    model = case.model()
    error = adjoint_error(forward_of(case), puller(opened(model)), case.inputs(), case.rng())
    assert error < ADJOINT


@every_case
def test_finite_differences(case: Case, opened: Opener):
    model = case.model()
    step = LINEAR_STEP if case.linear else STEP
    error = derivative_error(forward_of(case), puller(opened(model)), case.inputs(), case.rng(), step)
    assert error < DERIVATIVE


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.id) for c in CASES if c.op == "LRN" and c.attrs["size"] % 2]
)
def test_the_formula_for_lrn_is_onnxruntimes(case: Case):
    x = case.inputs()
    expected = onnxruntime_forward(case.model())({**x, DUMMY: PICTURE})["y0"]
    np.testing.assert_allclose(forward_of(case)(x)["y0"], expected, rtol=1e-5, atol=1e-6)


def off_by(fraction: float, rule: Rule) -> Rule:
    def pull_back(step: Step, g: Array) -> Cotangents:
        return tuple(None if a is None else a * np.float32(1 + fraction) for a in rule.pull_back(step, g))

    return replace(rule, pull_back=pull_back)


@every_case
def test_the_witnesses_notice_a_tenth_of_a_percent(
    case: Case, opened: Opener, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(RULES, case.op, off_by(0.001, RULES[case.op]))
    model = case.model()
    forward, pull_back, x = forward_of(case), puller(opened(model)), case.inputs()
    step = LINEAR_STEP if case.linear else STEP
    assert derivative_error(forward, pull_back, x, case.rng(), step) > 2 * DERIVATIVE
    if case.linear:
        assert adjoint_error(forward, pull_back, x, case.rng()) > 10 * ADJOINT


def test_registering_an_operator_twice_raises():
    before = dict(RULES)
    with pytest.raises(ValueError, match="Relu has a rule already: relu"):

        @register("Relu")
        def again(step: Step, g: Array) -> Cotangents:
            return (g,)

    assert before == RULES


# What cannot be pulled back


def test_an_operator_without_a_rule_on_the_path(opened: Opener):
    gelus = [node("Gelu", "c", "e", domain=OTHER), node("Gelu", "e", "f", domain=OTHER)]
    nodes = [node("Conv", "x w", "c"), *gelus, node("Conv", "f v", "y")]
    constants = {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 3, 3)}
    net = opened(network(nodes, constants, custom=OTHER))
    x = np.zeros((1, 3, 13, 11), np.float32)
    for call in (
        lambda: net.check([net.layer("y")], make_method("deconvnet")),
        lambda: net.project(x, "y", 1),
        lambda: net.project_units(x, "y", np.zeros((1, 4), int)),
        lambda: net.vjp({"x": x}, {"y": np.zeros((1, 5, 9, 7), np.float32)}),
    ):
        with pytest.raises(UnsupportedOpError) as caught:
            call()
        message = str(caught.value)
        assert "com.microsoft.Gelu (2 node(s) on the path from y to x, the first is 'node_e')" in message
        assert "'onnxviz operators' lists what is supported" in message
    assert net.activations(x, "y").shape == (1, 5, 9, 7)


def test_an_operator_of_another_domain_on_the_path(opened: Opener):
    """Of the same name as a known one; onnxruntime need not know it to list the layers before it."""
    mystery = helper.make_node("Relu", ["c"], ["y"], name="mystery", domain="com.example")
    model = network([node("Conv", "x w", "c"), mystery], {"w": weights(4, 3, 3, 3)}, custom="com.example")
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 11, 9]))
    net = opened(model)
    with pytest.raises(UnsupportedOpError, match=r"com\.example\.Relu .*'mystery'"):
        check_path(net.graph, net.model.constants, ["x"], ["y"], make_method("deconvnet"))


OFF_THE_PATH = {
    "after the layer": [node("Conv", "x w", "y"), node("Gelu", "y", "z", domain=OTHER)],
    "beside the layer": [
        node("Gelu", "x", "e", domain=OTHER),
        node("Conv", "x w", "y"),
        node("Conv", "e w", "z"),
    ],
    "on constants": [
        node("Gelu", "w", "ew", domain=OTHER),
        node("Conv", "x ew", "y"),
        node("Relu", "y", "z"),
    ],
    "in a shape": [
        node("Conv", "x w", "c"),
        node("Shape", "c", "s"),
        node("Abs", "s", "t"),
        node("Reshape", "c t", "r"),
        node("Conv", "r v", "y"),
        node("Relu", "y", "z"),
    ],
}


@pytest.mark.parametrize("where", OFF_THE_PATH)
def test_an_operator_without_a_rule_off_the_path_does_no_harm(where: str, opened: Opener):
    model = network(
        OFF_THE_PATH[where], custom=OTHER, constants={"w": weights(4, 3, 3, 3), "v": weights(4, 4, 1, 1)}
    )
    net = opened(model)
    x = pictures(model, 1)
    layer = net.layer("y")
    net.check([layer], make_method("gradient"))
    d = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    # The layer is affine, so a difference is the derivative.
    slope = (net.activations(x + d, "y") - net.activations(x, "y"))[0, 2, 4, 5]
    gradient = net.project(x, "y", 2, (4, 5), "gradient")
    assert np.vdot(gradient, d) == pytest.approx(slope, rel=1e-3)


def test_a_constant_operand_does_not_need_a_rule_of_its_own(opened: Opener):
    net = opened(network([node("Sqrt", "k", "root"), node("Mul", "x root", "y")], {"k": real(16)}))
    g = np.ones((1, 3, 13, 11), np.float32)
    np.testing.assert_array_equal(net.vjp({"x": g}, {"y": g})["x"], 4 * g)


@pytest.mark.parametrize("kind", ["INT64", "INT32", "UINT8", "BOOL"])
def test_a_cast_to_whole_numbers_has_no_derivative(kind: str, opened: Opener):
    """As it is in PyTorch, and as finite differences say: a step function."""
    model = network(
        [
            node("Cast", "x", "whole", to=TensorProto.DataType.Value(kind)),
            node("Cast", "whole", "back", to=TensorProto.FLOAT),
            node("Mul", "x k", "half"),
            node("Add", "half back", "y"),
        ],
        {"k": real(0.5)},
    )
    x = np.random.default_rng(0).uniform(1.1, 1.9, (1, 3, 13, 11)).astype(np.float32)
    g = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    np.testing.assert_allclose(opened(model).vjp({"x": x}, {"y": g})["x"], 0.5 * g, rtol=1e-6)


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE"])
def test_a_cast_to_another_float_passes(kind: str, opened: Opener):
    model = network(
        [
            node("Cast", "x", "other", to=TensorProto.DataType.Value(kind)),
            node("Relu", "other", "r"),
            node("Cast", "r", "y", to=TensorProto.FLOAT),
        ]
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 13, 11)).astype(np.float32)
    g = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    np.testing.assert_allclose(opened(model).vjp({"x": x}, {"y": g})["x"], g * (x > 0), rtol=1e-6)


def test_only_some_outputs_of_a_split_are_used(opened: Opener):
    net = opened(network([node("Split", "x", "a b c", axis=1), node("Relu", "b", "y")]))
    x = np.ones((1, 3, 13, 11), np.float32)
    found = net.vjp({"x": x}, {"y": x[:, :1]})["x"]
    assert found[:, 1].all()
    assert not found[:, ::2].any()


def test_dropout_with_its_mask(opened: Opener):
    net = opened(network([node("Dropout", "x", "d mask"), node("Relu", "d", "y")]))
    x = np.ones((1, 3, 13, 11), np.float32)
    np.testing.assert_array_equal(net.vjp({"x": x}, {"y": 3 * x})["x"], 3 * x)
