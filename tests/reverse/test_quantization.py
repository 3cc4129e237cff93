"""Quantised operators and networks against the float ones that they stand for.

Rounding has no derivative, so there is nothing to differentiate: the witness is the float operator, whose rule is
proved elsewhere. Straight through, one quantised operator between QuantizeLinear and DequantizeLinear gives exactly
its pull-back; a whole network gives that of the network it was made from, but for what quantisation changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime import quantization

import onnxviz
from onnxviz.network import Network
from tests.reverse.cases import Array, real, weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node, pictures

EXACT = 1e-6
"""Roundings of float32."""

QUANTISATION = 0.02
"""Of weights and activations to eight bits: about half of one part in 127 of the largest, a few times."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def whole(*shape: int, low: int = -127, high: int = 128, dtype: type = np.int8) -> Array:
    return rng(len(shape)).integers(low, high, shape).astype(dtype)


def difference(found: Array, expected: Array) -> float:
    """Relative, in the 2-norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


IN, OUT = (real(0.02), np.array(120, np.uint8)), (real(0.3), np.array(7, np.int8))
QUANTIZE = node("QuantizeLinear", "x in_scale in_zero", "q")
RESTORE = node("DequantizeLinear", "z out_scale out_zero", "y")
SCALES = {"in_scale": IN[0], "in_zero": IN[1], "out_scale": OUT[0], "out_zero": OUT[1]}
PER_CHANNEL = np.array([0.01, 0.03, 0.02, 0.05], np.float32)
DYNAMIC = [
    node("DynamicQuantizeLinear", "x", "q s zero"),
    node("Cast", "c", "real", to=TensorProto.FLOAT),
    node("Mul", "s w_scale", "both"),
    node("Mul", "real both", "y"),
]


def scaled(w: Array, scale: Array, zero: int = 0) -> Array:
    """Real weights; several scales go with the first axis."""
    lined = scale.reshape(-1, *(1,) * (w.ndim - 1)) if scale.size > 1 else scale
    return ((w.astype(np.float32) - zero) * lined).astype(np.float32)


def _conv(
    w: Array, scale: Array, zero: Array, **attrs: object
) -> tuple[list[NodeProto], dict[str, Array], ModelProto]:
    nodes = [
        QUANTIZE,
        node("QLinearConv", "q in_scale in_zero w w_scale w_zero out_scale out_zero b", "z", **attrs),
        RESTORE,
    ]
    bias = whole(len(w), dtype=np.int32)
    twin = network([node("Conv", "x w", "y", **attrs)], {"w": scaled(w, scale, int(zero.flat[0]))})
    return nodes, {**SCALES, "w": w, "w_scale": scale, "w_zero": zero, "b": bias}, twin


def _dynamic_conv(**attrs: object) -> tuple[list[NodeProto], dict[str, Array], ModelProto]:
    w = whole(4, 3, 3, 2, low=0, high=256, dtype=np.uint8)
    nodes = [DYNAMIC[0], node("ConvInteger", "q w zero w_zero", "c", **attrs), *DYNAMIC[1:]]
    constants = {"w": w, "w_scale": real(0.03), "w_zero": np.array(130, np.uint8)}
    return nodes, constants, network([node("Conv", "x w", "y", **attrs)], {"w": scaled(w, real(0.03), 130)})


def _dynamic_product() -> tuple[list[NodeProto], dict[str, Array], ModelProto]:
    w = whole(11, 5)
    nodes = [DYNAMIC[0], node("MatMulInteger", "q w zero w_zero", "c"), *DYNAMIC[1:]]
    constants = {"w": w, "w_scale": real(0.03), "w_zero": np.array(-3, np.int8)}
    return nodes, constants, network([node("MatMul", "x w", "y")], {"w": scaled(w, real(0.03), -3)})


def _product(scale: Array) -> tuple[list[NodeProto], dict[str, Array], ModelProto]:
    w = whole(11, 4)
    zero = np.full(scale.shape, 5, np.int8)
    nodes = [
        QUANTIZE,
        node("QLinearMatMul", "q in_scale in_zero w w_scale w_zero out_scale out_zero", "z"),
        RESTORE,
    ]
    real_w = ((w.astype(np.float32) - 5) * scale).astype(np.float32)
    constants = {**SCALES, "w": w, "w_scale": scale, "w_zero": zero}
    return nodes, constants, network([node("MatMul", "x w", "y")], {"w": real_w})


def _pair(
    scale: Array, *inner: NodeProto, **attrs: object
) -> tuple[list[NodeProto], dict[str, Array], ModelProto]:
    """The pairs of the QDQ format, before a convolution (of ``d``, or of what ``inner`` makes of it: ``c``)."""
    zero = np.zeros(scale.shape, np.int8)
    nodes = [node("QuantizeLinear", "x s z0", "q", **attrs), node("DequantizeLinear", "q s z0", "d", **attrs)]
    rest = [*inner, node("Conv", "c w" if inner else "d w", "y")]
    w = weights(4, 11 if inner else 3, 2, 3)
    twin = network([node("Identity", "x", "d"), *rest], {"w": w})
    return [*nodes, *rest], {"s": scale, "z0": zero, "w": w}, twin


OPERATORS = {
    "pair": lambda: _pair(real(0.1)),
    "pair-per-axis": lambda: _pair(PER_CHANNEL[:3], axis=1),
    "pair-per-last-axis": lambda: _pair(np.linspace(0.1, 0.2, 11, dtype=np.float32), axis=-1),
    "transposed-pair": lambda: _pair(real(0.1), node("Transpose", "d", "c", perm=[0, 3, 1, 2])),
    "conv": lambda: _conv(whole(4, 3, 3, 2), real(0.04), np.array(3, np.int8)),
    "conv-per-channel": lambda: _conv(
        whole(4, 3, 3, 2), PER_CHANNEL, np.zeros(4, np.int8), strides=[2, 1], pads=[1, 0, 2, 1]
    ),
    "conv-groups": lambda: _conv(
        whole(3, 1, 3, 3), real(0.04), np.array(0, np.int8), group=3, auto_pad="SAME_LOWER", strides=[1, 2]
    ),
    "conv-integer": lambda: _dynamic_conv(strides=[1, 2], pads=[1, 0, 0, 1]),
    "matmul-integer": _dynamic_product,
    "matmul": lambda: _product(real(0.04)),
    "matmul-per-column": lambda: _product(PER_CHANNEL),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_quantised_operator_is_pulled_back_as_the_float_one(name: str, opened: Opener):
    nodes, constants, twin = OPERATORS[name]()
    net, plain = opened(network(nodes, constants)), opened(twin)
    x = pictures(twin, 2)
    g = rng(3).standard_normal(plain.activations(x[:1], "y").shape).astype(np.float32)
    for row in x:
        found, expected = (n.vjp({"x": row[None]}, {"y": g})["x"] for n in (net, plain))
        assert difference(found, expected) < EXACT


def test_blocks_have_scales_of_their_own(opened: Opener):
    blocks = np.abs(weights(1, 3, 5, 11)) + 0.5
    nodes = [
        node("QuantizeLinear", "x s", "q", axis=2, block_size=3),
        node("Cast", "q", "y", to=TensorProto.FLOAT),
    ]
    net = opened(network(nodes, {"s": blocks}, opset=21))
    g = np.ones((1, 3, 13, 11), np.float32)
    expected = 1 / np.repeat(blocks, 3, axis=2)[:, :, :13]
    np.testing.assert_allclose(net.vjp({"x": g}, {"y": g})["x"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "attrs"), [((), {}), ((3,), {"axis": 1}), ((2, 3, 3, 4), {"axis": 2, "block_size": 2})], ids=str
)
def test_a_computed_scale_of_constant_numbers(shape: tuple[int, ...], attrs: dict[str, int], opened: Opener):
    """The output is linear in the scale."""
    numbers, zero = whole(2, 3, 6, 4), np.full(shape, 4, np.int8)
    nodes = [
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Mul", "mean d", "s"),
        node("DequantizeLinear", "numbers s zero", "y", **attrs),
    ]
    d = weights(*shape)
    net = opened(network(nodes, {"numbers": numbers, "zero": zero, "d": d}, opset=21))
    g = rng(4).standard_normal(numbers.shape).astype(np.float32)
    lined = np.repeat(d, 2, axis=2) if len(shape) > 1 else d.reshape(-1, 1, 1)
    slope = np.vdot(g, (numbers.astype(np.float64) - 4) * lined) / (3 * 13 * 11)
    found = net.vjp({"x": np.ones((1, 3, 13, 11), np.float32)}, {"y": g})["x"]
    np.testing.assert_allclose(found, np.full_like(found, slope), rtol=1e-4)


# Whole networks


def residual() -> ModelProto:
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("AveragePool", "r", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "p v k", "d", pads=[1, 1, 1, 1]),
        node("Relu", "d", "e"),
        node("Add", "e p", "s"),
        node("Conv", "s u", "y"),
    ]
    return network(nodes, _small(), image=("N", 3, 17, 15))


def chain() -> ModelProto:
    """In the QOperator format all of its operators are of the default domain."""
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c", "r"),
        node("Conv", "r v k", "d", pads=[1, 1, 1, 1]),
        node("Relu", "d", "e"),
        node("Conv", "e u", "y"),
    ]
    return network(nodes, _small(), image=("N", 3, 17, 15))


def _small() -> dict[str, Array]:
    """Biases turn each channel of a ReLU on or off, so that quantisation moves no value past a kink."""
    side = np.array([1, -1, 1, 1, -1, 1, -1, 1], np.float32)
    shapes = {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3), "u": (5, 8, 3, 3)}
    return {name: 0.1 * weights(*shape) for name, shape in shapes.items()} | {"b": 3 * side, "k": 9 * side}


class Pictures(quantization.CalibrationDataReader):  # type: ignore[misc]
    """What a quantiser looks at for the ranges of activations."""

    def __init__(self, model: ModelProto) -> None:
        self.rows: Iterator[dict[str, Array]] = iter([{"x": pictures(model, 1, seed=i)} for i in range(8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.rows, None)


def quantised(kind: str, model: ModelProto, folder: Path) -> tuple[Network, Network]:
    """The network as a quantiser writes it, and as it was."""
    plain, path = folder / "float.onnx", folder / f"{kind}.onnx"
    onnx.save(model, plain)
    if kind == "dynamic":
        quantization.quantize_dynamic(plain, path, weight_type=quantization.QuantType.QUInt8)
    else:
        quantization.quantize_static(
            plain,
            path,
            Pictures(model),
            quant_format=quantization.QuantFormat[kind.split("-")[0]],
            per_channel=kind.endswith("per-channel"),
            activation_type=quantization.QuantType.QUInt8,
        )
    return tuple(onnxviz.load(p, provider="cpu") for p in (path, plain))  # type: ignore[return-value]


KINDS = [
    *((residual, kind) for kind in ("QDQ", "QDQ-per-channel", "dynamic")),
    *((chain, kind) for kind in ("QOperator", "QOperator-per-channel")),
]

every_kind = pytest.mark.parametrize(("make", "kind"), [pytest.param(m, k, id=k) for m, k in KINDS])


@every_kind
@pytest.mark.parametrize("method", ["gradient", "deconvnet", "guided"])
def test_a_quantised_network_projects_as_the_float_one(make, kind: str, method: str, tmp_path: Path):
    """Where a quantiser folded ReLUs away, missing them makes a difference of 1.0 to 2.7."""
    model = make()
    net, plain = quantised(kind, model, tmp_path)
    x = pictures(model, 1, seed=99)
    g = rng(5).standard_normal(plain.activations(x, "y").shape).astype(np.float32)
    found = net.vjp({"x": x}, {net.graph.outputs[0]: g}, method=method)["x"]
    expected = plain.vjp({"x": x}, {"y": g}, method=method)["x"]
    assert difference(found, expected) < QUANTISATION


def test_layers_of_whole_numbers_show_the_real_values_that_they_stand_for(opened: Opener):
    """A convolution of codes is listed under its own name; its values, and so its seeds, are real numbers."""
    nodes, constants, twin = OPERATORS["conv"]()
    constants["out_zero"] = np.array(7, np.uint8)  # onnxruntime has no kernel for uint8 in and int8 out
    net, plain = opened(network(nodes, constants)), opened(twin)
    layer = net.layer("conv1")
    assert [(one.op, one.alias) for one in net.layers] == [("QLinearConv", "conv1")]
    x = pictures(twin, 2)
    codes = net.activations(x, "y")  # RESTORE gives the same real values
    np.testing.assert_array_equal(net.activations(x, layer), codes)
    assert net.activations(x, layer).dtype == np.float32
    gradient, expected = (one.project(x, "conv1", 2, (1, 3), "gradient") for one in (net, plain))
    assert difference(gradient, expected) < EXACT
