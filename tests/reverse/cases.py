"""One-node models, several for every operator with a rule: attributes, opsets, ranks, broadcasting."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array: TypeAlias = NDArray[Any]
Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], Array]
Operand: TypeAlias = "tuple[int, ...] | Array | str"
"""The shape of a graph input, a constant, or the name of an earlier operand ("a", "b" …; "" leaves it out)."""

IR_VERSION = 8
N, C, H, W = 2, 6, 7, 9
"""Pairwise different, so that no axis can be taken for another."""

DUMMY = "picture"
"""An unused image input: a network must have one, and the operands of most cases are no pictures."""


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(0.5, 2, shape)


def away_from(*kinks: float, by: float = 0.1) -> Draw:
    """Uniform from −3 to 8, or to the next value that is far enough from a kink."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        x = rng.uniform(-3, 8 if max(kinks) > 2 else 3, shape)
        for kink in kinks:
            x = np.where(np.abs(x - kink) < by, kink + by * np.where(x < kink, -1, 1), x)
        return x

    return draw


def spaced(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """In every plane a shuffle of values 0.1 apart: no ties, and none after a small step."""
    count = int(np.prod(shape[2:]))
    planes = [rng.permutation(count) for _ in range(shape[0] * shape[1])]
    return (np.reshape(planes, shape) - count / 2) * 0.1


@dataclass(frozen=True)
class Case:
    """A model of one node. ``draws`` are for its graph inputs in turn; the last serves all that follow."""

    op: str
    name: str
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    linear: bool = True
    draws: tuple[Draw, ...] = (normal,)

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.id.encode()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the graph inputs."""
        return {_letter(i): operand for i, operand in enumerate(self.operands) if isinstance(operand, tuple)}

    def inputs(self) -> dict[str, Array]:
        rng = self.rng()
        draws = [*self.draws, *[self.draws[-1]] * len(self.shapes)]
        return {
            name: draw(rng, shape).astype(np.float32)
            for (name, shape), draw in zip(self.shapes.items(), draws, strict=False)
        }

    def node_inputs(self) -> list[str]:
        return [
            operand if isinstance(operand, str) else _letter(i) for i, operand in enumerate(self.operands)
        ]

    def constants(self) -> dict[str, Array]:
        return {_letter(i): o for i, o in enumerate(self.operands) if isinstance(o, np.ndarray)}

    def output_names(self) -> list[str]:
        return [f"y{i}" for i in range(self.outputs)]

    def model(self) -> ModelProto:
        """Operands are declared without shapes: then `DUMMY` alone can be the image."""
        node = helper.make_node(
            self.op, self.node_inputs(), self.output_names(), name=f"the_{self.op}", **self.attrs
        )
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node],
            "case",
            [value(name, TensorProto.FLOAT, None) for name in self.shapes]
            + [value(DUMMY, TensorProto.FLOAT, [1, 3, 5, 4])],
            [value(name, TensorProto.FLOAT, None) for name in self.output_names()],
            [numpy_helper.from_array(v, name) for name, v in self.constants().items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=IR_VERSION
        )


def _letter(index: int) -> str:
    return "abcdefgh"[index]


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def real(value: float) -> Array:
    return np.array(value, np.float32)


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def case(
    op: str,
    name: str,
    *operands: Operand,
    opset: int = 17,
    outputs: int = 1,
    linear: bool = True,
    draws: Draw | tuple[Draw, ...] = normal,
    **attrs: Any,
) -> Case:
    return Case(
        op, name, operands, attrs, opset, outputs, linear, draws if isinstance(draws, tuple) else (draws,)
    )


X = (N, C, H, W)


def _conv(name: str, x: tuple[int, ...], w: tuple[int, ...], *, bias: bool = False, **attrs: Any) -> Case:
    return case("Conv", name, x, weights(*w), *([weights(w[0], seed=1)] if bias else []), **attrs)


CONVOLUTIONS = [
    _conv("valid", X, (5, C, 3, 2)),
    _conv("bias", X, (5, C, 3, 2), bias=True, kernel_shape=[3, 2]),
    _conv("pads", X, (5, C, 3, 3), pads=[1, 1, 1, 1]),
    _conv("asymmetric-pads", X, (5, C, 3, 4), pads=[2, 0, 1, 3]),
    _conv("pads-wider-than-kernel", X, (5, C, 2, 2), pads=[3, 2, 4, 3]),
    _conv("stride", X, (5, C, 3, 3), strides=[2, 3]),
    _conv("stride-leaves-rest", X, (5, C, 2, 3), strides=[3, 4], pads=[0, 1, 0, 0]),
    _conv("stride-above-kernel", X, (5, C, 1, 2), strides=[2, 4]),
    _conv("pointwise", X, (5, C, 1, 1)),
    _conv("pointwise-stride", X, (5, C, 1, 1), strides=[2, 2]),
    _conv("dilation", X, (5, C, 3, 2), dilations=[2, 3]),
    _conv("dilation-stride-pads", X, (5, C, 3, 2), dilations=[2, 3], strides=[2, 1], pads=[1, 2, 2, 0]),
    _conv("groups", X, (4, C // 2, 3, 2), group=2),
    _conv("groups-stride", X, (9, C // 3, 2, 3), group=3, strides=[2, 1], pads=[1, 0, 1, 1]),
    _conv("depthwise", X, (C, 1, 3, 3), group=C, pads=[1, 1, 1, 1]),
    _conv("depthwise-multiplier", X, (2 * C, 1, 3, 2), group=C),
    _conv("depthwise-pointwise", X, (C, 1, 1, 1), group=C),
    _conv("same-upper", X, (5, C, 4, 2), auto_pad="SAME_UPPER"),
    _conv("same-lower", X, (5, C, 4, 2), auto_pad="SAME_LOWER"),
    _conv("same-upper-stride", X, (5, C, 4, 3), auto_pad="SAME_UPPER", strides=[3, 2]),
    _conv("same-lower-stride", X, (5, C, 4, 3), auto_pad="SAME_LOWER", strides=[3, 2]),
    _conv("same-upper-stride-above-kernel", X, (5, C, 1, 2), auto_pad="SAME_UPPER", strides=[2, 4]),
    _conv("auto-valid", X, (5, C, 4, 3), auto_pad="VALID", strides=[1, 2]),
    _conv("1d", (N, C, W), (5, C, 4), strides=[2], pads=[1, 2], dilations=[2]),
    _conv("1d-same-lower", (N, C, W), (5, C, 4), auto_pad="SAME_LOWER", strides=[2]),
    _conv("3d", (N, C, 5, H, 4), (3, C, 2, 3, 1), strides=[1, 2, 3], pads=[0, 1, 2, 1, 0, 1]),
    _conv("3d-groups", (N, C, 5, H, 4), (4, C // 2, 2, 3, 2), group=2, dilations=[2, 1, 1]),
    _conv("one-position", (N, C, 3, 2), (5, C, 3, 2)),
    _conv("opset8", X, (5, C, 3, 2), opset=8, pads=[1, 0, 1, 0]),
    _conv("opset22", X, (5, C, 3, 2), opset=22, pads=[1, 0, 1, 0]),
]


def _max_pool(
    name: str, kernel: tuple[int, ...], *, x: tuple[int, ...] = X, opset: int = 12, **attrs: Any
) -> Case:
    return case(
        "MaxPool",
        name,
        x,
        opset=opset,
        linear=False,
        draws=spaced,
        kernel_shape=list(kernel),
        **attrs,
    )


MAX_POOLS = [
    _max_pool("tiled", (2, 3), strides=[2, 3]),
    _max_pool("default-stride", (2, 3)),
    _max_pool("overlap", (3, 3), strides=[2, 2]),
    _max_pool("gaps", (2, 1), strides=[3, 2]),
    _max_pool("pads", (3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    _max_pool("asymmetric-pads", (3, 4), strides=[2, 3], pads=[2, 0, 1, 3]),
    _max_pool("ceil", (3, 2), strides=[2, 2], ceil_mode=1),
    _max_pool("ceil-pads", (3, 3), strides=[3, 2], pads=[1, 1, 0, 2], ceil_mode=1),
    _max_pool("ceil-window-in-the-padding", (2, 2), strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
    _max_pool("dilation", (3, 2), dilations=[2, 3]),
    _max_pool("dilation-stride-pads", (2, 3), dilations=[3, 2], strides=[2, 1], pads=[1, 2, 0, 1]),
    _max_pool("dilation-ceil", (2, 3), dilations=[2, 3], strides=[3, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    _max_pool("column-major", (3, 2), strides=[2, 2], storage_order=1),
    _max_pool("column-major-pads", (3, 3), strides=[1, 2], pads=[1, 0, 1, 1], storage_order=1),
    _max_pool("same-upper", (2, 4), strides=[2, 3], auto_pad="SAME_UPPER"),
    _max_pool("same-lower", (2, 4), strides=[2, 3], auto_pad="SAME_LOWER"),
    _max_pool("auto-valid", (3, 2), strides=[2, 3], auto_pad="VALID"),
    _max_pool("whole-map", (H, W)),
    _max_pool("1d", (3,), x=(N, C, W), strides=[2], pads=[1, 0]),
    _max_pool("3d", (2, 3, 2), x=(N, 3, 5, H, 4), strides=[2, 2, 1], pads=[1, 0, 1, 0, 1, 0]),
    _max_pool("3d-dilation", (2, 3, 2), x=(N, 3, 5, H, 4), dilations=[2, 2, 1]),
    # Windows wider than the map: cells of different rows lie at one flat distance.
    _max_pool("wider-than-the-map", (3, 3), x=(N, 3, 2, 2), pads=[1, 1, 1, 1]),
    _max_pool("much-wider-than-the-map", (5, 5), x=(N, 3, 4, 4), pads=[2, 2, 2, 2]),
    _max_pool("dilated-wider-than-the-map", (2, 3), x=(N, 3, 4, 3), dilations=[1, 2], pads=[0, 2, 0, 2]),
    _max_pool("wider-than-the-map-column-major", (3, 3), x=(N, 3, 2, 2), pads=[1, 1, 1, 1], storage_order=1),
    _max_pool("3d-wider-than-the-map", (2, 3, 3), x=(N, 2, 3, 2, 2), pads=[0, 1, 1, 0, 1, 1]),
    _max_pool("opset8", (3, 3), opset=8, strides=[2, 2], pads=[1, 0, 1, 0]),
    _max_pool("opset10", (3, 2), opset=10, strides=[2, 1], ceil_mode=1),
    _max_pool("opset22", (3, 3), opset=22, strides=[2, 2]),
]


def _average_pool(
    name: str, kernel: tuple[int, ...], *, x: tuple[int, ...] = X, opset: int = 11, **attrs: Any
) -> Case:
    return case("AveragePool", name, x, opset=opset, kernel_shape=list(kernel), **attrs)


AVERAGE_POOLS = [
    _average_pool("tiled", (2, 3), strides=[2, 3]),
    _average_pool("overlap", (3, 3), strides=[2, 2]),
    _average_pool("pads", (3, 2), strides=[2, 2], pads=[1, 1, 1, 0]),
    _average_pool("asymmetric-pads", (3, 4), strides=[2, 3], pads=[2, 0, 1, 3]),
    _average_pool("include-pad", (3, 3), strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    _average_pool("include-asymmetric-pad", (3, 4), strides=[1, 3], pads=[0, 2, 2, 1], count_include_pad=1),
    _average_pool("ceil", (3, 2), strides=[2, 2], ceil_mode=1),
    _average_pool("ceil-pads", (3, 3), strides=[3, 2], pads=[1, 1, 0, 1], ceil_mode=1),
    _average_pool("ceil-window-in-the-padding", (2, 2), strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
    _average_pool(
        "ceil-include-pad",
        (3, 2),
        opset=19,
        strides=[3, 2],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        count_include_pad=1,
    ),
    _average_pool("same-upper", (2, 4), strides=[2, 3], auto_pad="SAME_UPPER"),
    _average_pool("same-lower", (2, 4), strides=[2, 3], auto_pad="SAME_LOWER"),
    _average_pool("same-upper-include", (2, 4), strides=[2, 3], auto_pad="SAME_UPPER", count_include_pad=1),
    _average_pool("same-lower-include", (4, 3), strides=[1, 2], auto_pad="SAME_LOWER", count_include_pad=1),
    _average_pool("auto-valid", (3, 2), strides=[2, 3], auto_pad="VALID"),
    _average_pool("dilation", (2, 3), opset=19, dilations=[3, 2], strides=[1, 2]),
    _average_pool("dilation-pads", (2, 3), opset=19, dilations=[3, 2], pads=[1, 2, 0, 1]),
    _average_pool("1d", (3,), x=(N, C, W), strides=[2], pads=[1, 0]),
    _average_pool("3d", (2, 3, 2), x=(N, 3, 5, H, 4), strides=[2, 2, 1], pads=[1, 0, 1, 0, 1, 0]),
    _average_pool("opset8", (3, 2), opset=8, strides=[2, 1], pads=[1, 0, 1, 0]),
    _average_pool("opset22", (3, 2), opset=22, strides=[2, 1]),
    case("GlobalAveragePool", "2d", X),
    case("GlobalAveragePool", "1d", (N, C, W)),
    case("GlobalAveragePool", "3d", (N, C, 5, H, 4)),
]


def _norm(name: str, x: tuple[int, ...], *, opset: int = 15, **attrs: Any) -> Case:
    c = x[1]
    gamma = weights(c)
    gamma[0] = -abs(gamma[0]) - 0.1
    variance = np.abs(weights(c, seed=3)) + 0.3
    return case(
        "BatchNormalization",
        name,
        x,
        gamma,
        weights(c, seed=1),
        weights(c, seed=2),
        variance,
        opset=opset,
        **attrs,
    )


def _lrn(name: str, x: tuple[int, ...], size: int, *, draws: Draw = normal, **attrs: Any) -> Case:
    return case("LRN", name, x, opset=13, linear=False, draws=draws, size=size, alpha=1.5, **attrs)


NORMALIZATIONS = [
    _norm("negative-gamma", X),
    _norm("epsilon", X, epsilon=0.3),
    _norm("opset9", X, opset=9),
    _norm("2d", (N, C)),
    _norm("3d", (N, C, 5, H, 4)),
    *(_lrn(f"size{size}", (2, 9, 4, 3), size) for size in (1, 2, 3, 4, 5, 6)),
    _lrn("wider-than-channels", (3, 4, 2, 5), 11),
    _lrn("more-images-than-channels", (7, 3, 2, 5), 4, beta=0.5, bias=2.0),
    _lrn("vector", (3, 8, 1, 1), 5),
    _lrn("no-bias", X, 3, bias=0.0, draws=away_from(0)),
]

RELU6 = away_from(0, 6)
BOTH = away_from(-1, 1)

ACTIVATIONS = [
    case("Relu", "map", X, linear=False, draws=away_from(0)),
    case("Relu", "vector", (N, C), linear=False, draws=away_from(0)),
    case("LeakyRelu", "default", X, linear=False, draws=away_from(0)),
    case("LeakyRelu", "alpha", X, linear=False, draws=away_from(0), alpha=0.3),
    case("Clip", "opset6", X, opset=6, linear=False, draws=BOTH, min=-1.0, max=1.0),
    case("Clip", "opset8", X, opset=8, linear=False, draws=RELU6, min=0.0, max=6.0),
    case("Clip", "opset10-min", X, opset=10, linear=False, draws=away_from(-1), min=-1.0),
    case("Clip", "opset10-neither", X, opset=10),
    case("Clip", "opset11", X, real(-1), real(1), opset=11, linear=False, draws=BOTH),
    case("Clip", "relu6", X, real(0), real(6), opset=13, linear=False, draws=RELU6),
    case("Clip", "min", X, real(-1), opset=13, linear=False, draws=away_from(-1)),
    case("Clip", "max", X, "", real(1), opset=13, linear=False, draws=away_from(1)),
    case("Clip", "neither", X, opset=13),
    case("Sigmoid", "map", X, linear=False),
    case("Tanh", "map", X, linear=False),
    case("Softmax", "opset11-default", (N, C, 4, 3), opset=11, linear=False),
    case("Softmax", "opset11-axis2", (N, C, 4, 3), opset=11, linear=False, axis=2),
    case("Softmax", "opset11-negative", (N, C, 4, 3), opset=11, linear=False, axis=-3),
    case("Softmax", "opset11-axis0", (2, 3, 4), opset=11, linear=False, axis=0),
    case("Softmax", "opset13-default", (N, C, 4, 3), opset=13, linear=False),
    case("Softmax", "opset13-channels", (N, C, 4, 3), opset=13, linear=False, axis=1),
    case("Softmax", "opset13-negative", (N, C, 4, 3), opset=13, linear=False, axis=-2),
    case("Softmax", "opset13-axis0", (3, 4), opset=13, linear=False, axis=0),
    case("Softmax", "vector", (N, C), opset=13, linear=False, axis=1),
]

ROW, PLANE, PER_CHANNEL = (W,), (H, W), (C, 1, 1)

ELEMENTWISE = [
    *(
        case(op, f"{name}-{side}", *((X, other) if side == "right" else (other, X)))
        for op in ("Add", "Sub", "Mul")
        for name, other in (
            ("scalar", real(-1.7)),
            ("channels", weights(*PER_CHANNEL)),
            ("plane", weights(*PLANE)),
            ("row", weights(*ROW)),
            ("full", weights(1, *X[1:])),
        )
        for side in ("left", "right")
    ),
    *(
        case(op, f"{name}-stretches-{side}", *((small, other) if side == "left" else (other, small)))
        for op in ("Add", "Sub", "Mul")
        for name, small, other in (
            ("axis", (N, 1, H, 1), weights(1, *X[1:])),
            ("rank", (H, 1), weights(*X)),
            ("both", (C, 1, W), weights(N, 1, H, 1)),
        )
        for side in ("left", "right")
    ),
    *(
        case(op, name, a, b, linear=op not in ("Mul",))
        for op in ("Add", "Sub", "Mul")
        for name, a, b in (
            ("tensors", X, X),
            ("tensor-channels", X, PER_CHANNEL),
            ("channels-tensor", PER_CHANNEL, X),
            ("tensors-both-stretch", (N, 1, H, 1), (C, 1, W)),
            ("tensor-scalar", X, ()),
        )
    ),
    *(case(op, "twice", X, "a", linear=op != "Mul") for op in ("Add", "Mul")),
    case("Add", "opset8", X, weights(*PER_CHANNEL), opset=8),
    case("Div", "scalar-right", X, real(-1.7)),
    case("Div", "plane-right", X, np.abs(weights(*PLANE)) + 0.5),
    case("Div", "scalar-left", real(-1.7), X, linear=False, draws=positive),
    case("Div", "channels-left", weights(*PER_CHANNEL), X, linear=False, draws=positive),
    case("Div", "tensors", X, X, linear=False, draws=(normal, positive)),
    case("Div", "tensor-channels", X, PER_CHANNEL, linear=False, draws=(normal, positive)),
    case("Div", "channels-tensor", PER_CHANNEL, X, linear=False, draws=(normal, positive)),
    case("Sum", "one", X),
    case("Sum", "two", X, X),
    case("Sum", "three-broadcast", X, PER_CHANNEL, (N, 1, H, W)),
    case("Sum", "constant-in-the-middle", X, weights(*PLANE), ROW),
    case("Sum", "twice", X, "a", "a"),
    case("Identity", "map", X),
    case("Cast", "float", X, to=TensorProto.FLOAT),
    case("Dropout", "opset10", X, opset=10, ratio=0.4),
    case("Dropout", "opset13", X, real(0.4), opset=13),
    case("Dropout", "opset13-inference", X, real(0.4), np.array(False), opset=13),
]


def _gemm(name: str, *operands: Operand, opset: int = 13, linear: bool = True, **attrs: Any) -> Case:
    return case("Gemm", name, *operands, opset=opset, linear=linear, **attrs)


M, K, L = 3, 5, 4

PRODUCTS = [
    _gemm("plain", (M, K), weights(K, L)),
    _gemm("bias", (M, K), weights(K, L), weights(L)),
    _gemm("trans-b", (M, K), weights(L, K), weights(L), transB=1),
    _gemm("trans-a", (K, M), weights(K, L), weights(M, 1), transA=1),
    _gemm(
        "trans-both-alpha-beta",
        (K, M),
        weights(L, K),
        weights(1, L),
        transA=1,
        transB=1,
        alpha=-0.7,
        beta=2.5,
    ),
    _gemm("b", weights(M, K), (K, L), alpha=0.3),
    _gemm("b-trans", weights(K, M), (L, K), transA=1, transB=1),
    *(
        _gemm(f"c-{len(c)}d-{i}", weights(M, K), weights(K, L), c, beta=-1.3)
        for i, c in enumerate([(), (L,), (1, L), (M, 1), (M, L)])
    ),
    _gemm("all", (M, K), (K, L), (L,), alpha=0.6, beta=1.7, linear=False),
    _gemm("all-trans", (K, M), (L, K), (M, 1), transA=1, transB=1, alpha=0.6, linear=False),
    _gemm("opset9", (M, K), weights(L, K), weights(L), opset=9, transB=1),
    *(
        case("MatMul", f"{name}-{side}", *operands, linear=side != "both")
        for name, a, b in (
            ("2d", (M, K), (K, L)),
            ("batched-2d", (2, M, K), (K, L)),
            ("2d-batched", (M, K), (2, K, L)),
            ("batched", (6, 2, M, K), (6, 2, K, L)),
            ("broadcast", (6, 1, M, K), (2, K, L)),
            ("broadcast-both", (6, 1, M, K), (1, 2, K, L)),
            ("vector-2d", (K,), (K, L)),
            ("2d-vector", (M, K), (K,)),
            ("vector-batched", (K,), (2, K, L)),
            ("batched-vector", (6, 2, M, K), (K,)),
            ("vectors", (K,), (K,)),
        )
        for side, operands in (
            ("left", (a, weights(*b))),
            ("right", (weights(*a), b)),
            ("both", (a, b)),
        )
    ),
    case("MatMul", "self", (2, K, K), "a", linear=False),
]

REDUCTIONS = (
    [
        case(op, f"{name}-keepdims{keep}", X, opset=11, keepdims=keep, **({"axes": axes} if axes else {}))
        for op in ("ReduceMean", "ReduceSum")
        for name, axes in (("all", None), ("map", [2, 3]), ("negative", [-1, 1]), ("batch", [0]))
        for keep in (0, 1)
    ]
    + [
        case(op, f"input-{name}-keepdims{keep}", X, ints(*axes), opset=18, keepdims=keep)
        for op in ("ReduceMean", "ReduceSum")
        for name, axes in (("map", (2, 3)), ("negative", (-1, 1)), ("channels", (1,)))
        for keep in (0, 1)
    ]
    + [
        case("ReduceMean", "opset13-attribute", X, opset=13, axes=[-2, -1]),
        case("ReduceMean", "opset18-all", X, opset=18),
        case("ReduceMean", "opset18-none", X, ints(), opset=18, noop_with_empty_axes=1),
        case("ReduceSum", "opset13-input", X, ints(1, -1), opset=13, keepdims=0),
        case("ReduceSum", "opset13-all", X, opset=13, keepdims=0),
        case("ReduceSum", "opset13-empty-is-all", X, ints(), opset=13),
        case("ReduceSum", "opset13-none", X, opset=13, noop_with_empty_axes=1),
    ]
)

SHAPES = [
    case("Reshape", "plain", X, ints(N * C, H * W)),
    case("Reshape", "rest", X, ints(N, -1)),
    case("Reshape", "copied", X, ints(0, 0, -1)),
    case("Reshape", "shuffle", X, ints(0, 2, 3, H, W)),
    case("Reshape", "opset8", X, ints(0, -1), opset=8),
    case("Reshape", "opset21", X, ints(N, -1, H), opset=21),
    *(case("Flatten", f"axis{axis}", X, axis=axis) for axis in (0, 1, 2, 4, -1, -3)),
    case("Flatten", "default", X, opset=9),
    *(
        case("Squeeze", f"{name}-{form}", (2, 1, 5, 1), *operands, opset=opset, **attrs)
        for name, axes in (("one", [1]), ("both", [1, 3]), ("negative", [-1]), ("none", None))
        for form, opset, operands, attrs in (
            ("attribute", 11, (), {"axes": axes} if axes else {}),
            ("input", 13, (ints(*axes),) if axes else (), {}),
        )
    ),
    *(
        case("Unsqueeze", f"{name}-{form}", (2, 3, 5), *operands, opset=opset, **attrs)
        for name, axes in (("front", [0]), ("two", [1, 4]), ("negative", [-1, -3]), ("unsorted", [3, 0]))
        for form, opset, operands, attrs in (
            ("attribute", 11, (), {"axes": axes}),
            ("input", 13, (ints(*axes),), {}),
        )
    ),
    case("Transpose", "default", X),
    case("Transpose", "to-nhwc", X, perm=[0, 2, 3, 1]),
    case("Transpose", "to-nchw", X, perm=[0, 3, 1, 2]),
    case("Transpose", "cycle", X, perm=[3, 0, 1, 2]),
    case("Transpose", "3d", (2, 3, 4), perm=[2, 0, 1]),
    *(
        case(
            "Concat",
            f"axis{axis}",
            *(tuple(n if i == axis % 4 else m for i, m in enumerate(X)) for n in (2, 4, 3)),
            axis=axis,
        )
        for axis in (0, 1, 2, 3, -1, -3)
    ),
    case("Concat", "constant-first", weights(N, 4, H, W), X, axis=1),
    case("Concat", "constant-between", X, weights(N, 4, H, W), (N, 3, H, W), axis=1),
    case("Concat", "twice", X, (N, 2, H, W), "a", axis=-3),
    case("Concat", "one", X, axis=2),
    case("Split", "equal", X, opset=13, outputs=3, axis=1),
    case("Split", "uneven-attribute", X, opset=11, outputs=3, axis=3, split=[2, 3, 4]),
    case("Split", "uneven-input", X, ints(1, 2, 3), opset=13, outputs=3, axis=-3),
    case("Split", "num-outputs", X, opset=18, outputs=2, axis=2, num_outputs=2),
    case("Split", "default-axis", (4, 3, 5), opset=13, outputs=2),
]

BIG = 2**31 - 1

CUTS = [
    case("Slice", "attributes", X, opset=9, starts=[1, 2], ends=[5, BIG], axes=[1, 3]),
    case("Slice", "attributes-negative", X, opset=9, starts=[-3, -100], ends=[-1, 4], axes=[3, 2]),
    case("Slice", "attributes-no-axes", X, opset=9, starts=[0, 2], ends=[N, 5]),
    *(
        case("Slice", f"input-{name}", X, ints(*starts), ints(*ends), *more, opset=opset)
        for opset, name, starts, ends, more in (
            (10, "opset10", (1, 2), (5, BIG), (ints(2, 3),)),
            (13, "no-axes", (0, 1, 2), (BIG, 4, 6), ()),
            (13, "negative-starts", (-4, -100), (-1, 3), (ints(2, -1),)),
            (13, "steps", (1, 0), (BIG, BIG), (ints(2, 3), ints(2, 3))),
            (13, "steps-leave-rest", (0, 1), (6, 8), (ints(-2, -1), ints(4, 3))),
            (13, "reverse", (-1,), (-BIG,), (ints(3), ints(-1))),
            (13, "reverse-steps", (5, BIG), (0, -BIG), (ints(2, 3), ints(-2, -3))),
            (13, "reverse-from-inside", (4,), (1,), (ints(2), ints(-1))),
            (13, "steps-without-axes", (0, 0, 1, 8), (N, C, BIG, 2), ("", ints(1, 2, 3, -2))),
            (13, "beyond-the-end", (2,), (1000,), (ints(1),)),
        )
    ),
    case("Pad", "attributes", X, opset=2 + 6, pads=[0, 1, 2, 0, 0, 0, 1, 3], value=1.5),
    case("Pad", "attributes-reflect", X, opset=10, mode="reflect", pads=[0, 0, 2, 3, 0, 0, 1, 4]),
    case("Pad", "constant", X, ints(0, 1, 2, 0, 0, 0, 1, 3), opset=13),
    case("Pad", "value", X, ints(0, 1, 2, 0, 0, 0, 1, 3), real(-2.5), opset=13),
    case("Pad", "crop", X, ints(0, -1, 0, -2, 0, -2, 0, -1), opset=13),
    case("Pad", "crop-and-pad", X, ints(0, 1, -2, 3, 0, -1, 2, -4), opset=13),
    case("Pad", "batch", X, ints(1, 0, 0, 0, 2, 0, 0, 0), opset=13),
    case("Pad", "axes", X, ints(1, 2, 0, 3), real(0.5), ints(3, -2), opset=18),
    case("Pad", "axes-without-value", X, ints(1, 0), "", ints(-1), opset=18),
    *(
        case("Pad", f"{mode}-{name}", X, ints(*pads), opset=opset, mode=mode)
        for mode, opset, modes in (
            ("reflect", 13, ("plain", "far")),
            ("edge", 13, ("plain", "far", "beyond")),
            ("wrap", 19, ("plain", "far")),
        )
        for name, pads in (
            ("plain", (0, 0, 1, 2, 0, 0, 2, 1)),
            ("far", (0, 3, H - 1, 0, 0, 2, H - 1, W - 1)),
            ("beyond", (0, 0, 12, 0, 0, 0, 1, 20)),
        )
        if name in modes
    ),
    *(
        case("Pad", f"{mode}-axes", X, ints(2, 1, 3, 0), "", ints(2, -1), opset=opset, mode=mode)
        for mode, opset in (("reflect", 18), ("edge", 18), ("wrap", 19))
    ),
]

CASES = (
    *CONVOLUTIONS,
    *MAX_POOLS,
    *AVERAGE_POOLS,
    *NORMALIZATIONS,
    *ACTIVATIONS,
    *ELEMENTWISE,
    *PRODUCTS,
    *REDUCTIONS,
    *SHAPES,
    *CUTS,
)
