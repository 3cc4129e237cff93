"""One-node models of activations, arithmetic, mathematics, normalisations and reductions."""

from __future__ import annotations

import numpy as np

from tests.reverse.cases import (
    PER_CHANNEL,
    PLANE,
    ROW,
    Array,
    C,
    Case,
    Draw,
    H,
    N,
    W,
    X,
    away_from,
    case,
    ints,
    normal,
    positive,
    real,
    weights,
)

V = (3, 5)
"""Of operators whose domain is not the whole line: a convolution does not keep to it."""


def between(low: float, high: float) -> Draw:
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.uniform(low, high, shape)

    return draw


def scattered(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A shuffle of values 0.1 apart, over all axes: no ties, and none after a small step."""
    count = int(np.prod(shape))
    return np.reshape((rng.permutation(count) - count / 2 + 0.3) * 0.1, shape)


def stepped(offset: float) -> Draw:
    """Whole numbers and ``offset``: two such operands never meet within a small step."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(-3, 3, shape) + offset

    return draw


def few(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Whole numbers from −2 to 2, zeros among them: for products, which are smooth there."""
    return rng.integers(-2, 3, shape)


def singular(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Square matrices whose last row is the sum of the others."""
    x = rng.standard_normal(shape)
    x[..., -1, :] = x[..., :-1, :].sum(-2)
    return x


def _curve(
    op: str, name: str, draws: Draw, *, x: tuple[int, ...] = X, opset: int = 13, **attrs: float
) -> Case:
    return case(op, name, x, opset=opset, linear=False, draws=draws, **attrs)


ACTIVATIONS = [
    *(
        _curve(op, f"{name}-opset{opset}", away_from(0), opset=opset, **attrs)
        for op, opset, name, attrs in (
            ("Elu", 8, "default", {}),
            ("Elu", 22, "alpha", {"alpha": 0.4}),
            ("Selu", 8, "default", {}),
            ("Selu", 22, "alpha-gamma", {"alpha": 0.7, "gamma": 1.9}),
            ("Celu", 12, "default", {}),
            ("Celu", 12, "alpha", {"alpha": 0.3}),
            ("Softsign", 8, "map", {}),
        )
    ),
    _curve("ThresholdedRelu", "default", away_from(1), opset=10),
    _curve("ThresholdedRelu", "alpha", away_from(-0.7), opset=22, alpha=-0.7),
    _curve("ThresholdedRelu", "opset8", away_from(1), opset=8),
    _curve("ParametricSoftplus", "opset8", normal, opset=8, alpha=0.7, beta=1.6),
    _curve("ScaledTanh", "opset8", normal, opset=8, alpha=1.4, beta=0.6),
    _curve("Softplus", "map", normal, opset=8),
    _curve("Softplus", "far", between(-15, 15), x=V, opset=22),
    _curve("HardSigmoid", "default", away_from(-2.5, 2.5), opset=8),
    _curve("HardSigmoid", "alpha-beta", away_from(-1.5, 1), opset=22, alpha=0.4, beta=0.6),
    _curve("HardSwish", "opset14", away_from(-3, 3), opset=14),
    _curve("HardSwish", "opset22", away_from(-3, 3), opset=22),
    _curve("Mish", "opset18", normal, opset=18),
    _curve("Mish", "far", between(-15, 15), x=V, opset=22),
    case("Gelu", "exact", X, opset=20, linear=False),
    case("Gelu", "exact-far", V, opset=20, linear=False, draws=between(-6, 6)),
    case("Gelu", "exact-near-0", V, opset=20, linear=False, draws=between(-0.6, 0.6)),
    case("Gelu", "tanh", X, opset=20, linear=False, approximate="tanh"),
    _curve("Swish", "default", normal, opset=24),
    _curve("Swish", "alpha", normal, opset=24, alpha=1.7),
    _curve("Swish", "far", between(-9, 9), x=V, opset=24),
    _curve("Shrink", "hard", away_from(-0.5, 0.5), opset=9),
    _curve("Shrink", "soft", away_from(-1.2, 1.2), opset=9, lambd=1.2, bias=0.8),
    *(
        case("PRelu", f"{name}-opset{opset}", X, slope, opset=opset, linear=False, draws=away_from(0))
        for name, opset, slope in (
            ("one", 8, real(0.3)),
            ("channels", 9, weights(*PER_CHANNEL)),
            ("plane", 16, weights(*PLANE)),
            ("run-time", 16, PER_CHANNEL),
            ("run-time-map", 16, X),
        )
    ),
    *(
        case("LogSoftmax", name, (N, C, 4, 3), opset=opset, linear=False, **attrs)
        for name, opset, attrs in (
            ("opset11-default", 11, {}),
            ("opset11-axis2", 11, {"axis": 2}),
            ("opset11-negative", 11, {"axis": -2}),
            ("opset13-default", 13, {}),
            ("opset13-channels", 13, {"axis": 1}),
        )
    ),
    case(
        "Clip",
        "run-time-bounds",
        X,
        (),
        (),
        linear=False,
        draws=(scattered, between(-2, -1.6), between(2, 2.4)),
    ),
    case("Clip", "run-time-max", X, real(-3.02), (), linear=False, draws=(scattered, between(2, 2.01))),
]

CURVES = [
    *(
        _curve(op, f"map-opset{opset}", draw, opset=opset)
        for op, opset, draw in (
            ("Abs", 8, away_from(0)),
            ("Exp", 8, normal),
            ("Erf", 9, normal),
            ("Erf", 13, normal),
            ("Sin", 8, normal),
            ("Cos", 8, normal),
            ("Cos", 22, normal),
            ("Atan", 8, normal),
            ("Sinh", 9, normal),
            ("Cosh", 9, normal),
            ("Asinh", 9, normal),
        )
    ),
    *(
        _curve(op, f"vector-opset{opset}", draw, x=V, opset=opset)
        for op, opset, draw in (
            ("Reciprocal", 8, positive),
            ("Sqrt", 8, positive),
            ("Log", 8, positive),
            ("Tan", 8, between(-1, 1)),
            ("Asin", 8, between(-0.8, 0.8)),
            ("Acos", 8, between(-0.8, 0.8)),
            ("Acosh", 9, between(1.5, 4)),
            ("Atanh", 9, between(-0.8, 0.8)),
            ("Asin", 22, between(-0.8, 0.8)),
        )
    ),
    case("Neg", "map", X, opset=8),
    _curve("Det", "one", normal, x=(4, 4), opset=11),
    _curve("Det", "singular", singular, x=(2, 3, 3), opset=11),
    _curve("Det", "stack", normal, x=(2, 5, 3, 3), opset=22),
]

OPERANDS = [
    case("Pow", "square", X, real(2), linear=False),
    case("Pow", "cube-opset8", X, real(3), opset=8, linear=False),
    case("Pow", "whole-exponent", X, ints(3), opset=12, linear=False),
    case("Pow", "exponent-1", X, real(1)),
    case("Pow", "root", V, real(0.5), linear=False, draws=positive),
    case("Pow", "reciprocal", V, real(-1.5), linear=False, draws=positive),
    case("Pow", "channels", (N, C, 3, 3), PER_CHANNEL, linear=False, draws=positive),
    case("Pow", "constant-base", np.abs(weights(*ROW)) + 0.3, X, linear=False),
    case(
        "Mod", "scalar", X, real(1.3), fmod=1, linear=False, draws=away_from(*(1.3 * k for k in range(-3, 7)))
    ),
    case("Mod", "maps", X, X, fmod=1, linear=False, draws=(between(3.2, 3.5), between(1.27, 1.4))),
    case("Mod", "negative", X, X, fmod=1, linear=False, draws=(between(-3.5, -3.2), between(1.27, 1.4))),
    *(
        case(op, name, *operands, opset=opset, linear=False, draws=(stepped(0), stepped(0.5)))
        for op in ("Max", "Min")
        for name, opset, operands in (
            ("two", 13, (X, X)),
            ("one", 8, (X,)),
            ("constant", 8, (X, real(0.25))),
            ("constant-first", 13, (real(-0.75), X)),
            ("broadcast", 12, (X, ROW)),
            ("three", 13, (X, np.full(PER_CHANNEL, 0.25, np.float32), X)),
        )
    ),
    case("Affine", "opset8", X, opset=8, alpha=-1.3, beta=0.4),
    case("ImageScaler", "opset8", X, opset=8, scale=0.3, bias=[0.5] * C),
    case("Scale", "opset8", X, opset=8, scale=1.7),
    case("Mean", "one", X, opset=8),
    case("Mean", "three-broadcast", X, PER_CHANNEL, (N, 1, H, W)),
    case("Mean", "constant", X, weights(*PLANE), opset=13),
    *(
        case("Where", name, np.random.default_rng(3).random(shape) < 0.5, *operands, opset=opset)
        for name, opset, shape, operands in (
            ("maps", 9, X, (X, X)),
            ("plane", 16, PLANE, (X, X)),
            ("channels", 16, PER_CHANNEL, (X, real(2))),
            ("scalar-first", 16, ROW, (real(-1), X)),
            ("stretched", 16, X, (PER_CHANNEL, ROW)),
        )
    ),
    case("CastLike", "float", X, real(0), opset=15),
    case("CastLike", "run-time", X, X, opset=15),
]


def _batch_norm(name: str, *parameters: tuple[int, ...] | Array, draws: tuple[Draw, ...]) -> Case:
    return case("BatchNormalization", name, X, *parameters, opset=15, linear=False, draws=draws)


POSITIVE = positive(np.random.default_rng(1), (C,)).astype(np.float32)
STATISTICS = (weights(C, seed=2), POSITIVE)


def _layer(name: str, *parameters: tuple[int, ...] | Array, **attrs: float) -> Case:
    return case("LayerNormalization", name, X, *parameters, linear=False, **attrs)


NORMALIZATIONS = [
    _batch_norm("run-time-scale", (C,), weights(C), *STATISTICS, draws=(normal,)),
    _batch_norm("run-time-bias", weights(C), (C,), *STATISTICS, draws=(normal,)),
    _batch_norm(
        "run-time-statistics", weights(C), weights(C, seed=1), (C,), (C,), draws=(normal, normal, positive)
    ),
    case(
        "BatchNormalization",
        "opset8-for-each-position",
        X,
        *(weights(*X[1:], seed=i) for i in range(3)),
        np.abs(weights(*X[1:])) + 0.3,
        opset=8,
        spatial=0,
    ),
    case("InstanceNormalization", "map", X, weights(C), weights(C, seed=1), opset=8, linear=False),
    case("InstanceNormalization", "epsilon", X, weights(C), weights(C), opset=22, linear=False, epsilon=0.4),
    case("InstanceNormalization", "1d", (N, C, W), weights(C), weights(C), linear=False),
    case("InstanceNormalization", "run-time", X, (C,), (C,), linear=False),
    case("GroupNormalization", "opset18", X, weights(3), weights(3), opset=18, linear=False, num_groups=3),
    case("GroupNormalization", "opset21", X, weights(C), weights(C), opset=21, linear=False, num_groups=2),
    case("GroupNormalization", "one-group", X, weights(C), weights(C), opset=21, linear=False, num_groups=1),
    case("GroupNormalization", "run-time", X, (C,), (C,), opset=21, linear=False, num_groups=3, epsilon=0.2),
    _layer("last", weights(W), weights(W, seed=1)),
    _layer("no-bias", weights(W), axis=-1, epsilon=0.1),
    _layer("two-axes", weights(H, W), weights(H, W, seed=1), axis=2),
    _layer("all-but-batch", weights(C, H, W), weights(C, H, W, seed=1), axis=1),
    _layer("run-time", (W,), (W,), axis=3),
    case("LayerNormalization", "opset11", X, weights(W), weights(W), opset=11, linear=False),
    case("LayerNormalization", "outputs", X, weights(H, W), axis=2, outputs=3, linear=False),
    case("RMSNormalization", "last", X, weights(W), opset=23, linear=False),
    case("RMSNormalization", "two-axes", X, weights(H, W), opset=23, axis=-2, epsilon=0.2, linear=False),
    case("RMSNormalization", "run-time", X, ROW, opset=23, linear=False),
    case("MeanVarianceNormalization", "opset8", X, opset=8, linear=False),
    case("MeanVarianceNormalization", "opset8-all", X, opset=8, linear=False, across_channels=1),
    case("MeanVarianceNormalization", "opset8-mean-only", X, opset=8, normalize_variance=0),
    case("MeanVarianceNormalization", "default", X, opset=9, linear=False),
    case("MeanVarianceNormalization", "image", X, opset=13, linear=False, axes=[1, 2, 3]),
    case("LpNormalization", "default", X, opset=8, linear=False),
    case("LpNormalization", "l2-channels", X, opset=22, linear=False, axis=1),
    case("LpNormalization", "l1", X, opset=8, linear=False, draws=away_from(0), p=1, axis=1),
    case("LpNormalization", "l1-negative", X, opset=22, linear=False, draws=away_from(0), p=1, axis=-2),
]

DRAWS = {
    "ReduceMax": scattered,
    "ReduceMin": scattered,
    "ReduceProd": positive,
    "ReduceL1": away_from(0),
    "ReduceL2": normal,
    "ReduceLogSum": between(0.4, 0.8),
    "ReduceLogSumExp": between(-3.5, -1.5),
    "ReduceSumSquare": normal,
}
SMALL = (N, 3, 4, 5)

REDUCTIONS = [
    *(
        case(op, f"{name}-keepdims{keep}", x, opset=11, linear=False, draws=draw, keepdims=keep, axes=axes)
        for op, draw in DRAWS.items()
        for name, axes in (("map", [2, 3]), ("negative", [-3, -1]))
        for keep in (0, 1)
        for x in ((3, 2, 4, 5) if op == "ReduceLogSum" else (N, 3, 2, 4) if op == "ReduceProd" else SMALL,)
    ),
    *(
        case(op, f"opset20-{name}", (2, 2, 3), *operands, opset=20, linear=False, draws=draw, **attrs)
        for op, draw in DRAWS.items()
        for name, operands, attrs in (
            ("input", (ints(1),), {"keepdims": 0}),
            ("all-axes", (), {"keepdims": 0}),
            ("none", (ints(),), {"noop_with_empty_axes": 1}),
        )
    ),
    case("ReduceProd", "zeros", SMALL, opset=13, linear=False, draws=few, axes=[3]),
    case("CumProd", "zeros", SMALL, ints(3), opset=26, linear=False, draws=few),
    case("ReduceMax", "opset8", X, opset=8, linear=False, draws=scattered, axes=[1]),
    *(
        case("CumProd", f"{name}-axis{axis}", SMALL, ints(axis), opset=26, linear=False, **attrs)
        for name, axis, attrs in (
            ("plain", 2, {}),
            ("exclusive", 1, {"exclusive": 1}),
            ("reverse", -1, {"reverse": 1}),
            ("both", 2, {"exclusive": 1, "reverse": 1}),
        )
    ),
    *(
        case("CumSum", f"{name}-axis{axis}", SMALL, ints(axis), opset=opset, **attrs)
        for name, opset, axis, attrs in (
            ("plain", 11, 2, {}),
            ("exclusive", 14, 1, {"exclusive": 1}),
            ("reverse", 14, -1, {"reverse": 1}),
            ("both", 14, 0, {"exclusive": 1, "reverse": 1}),
        )
    ),
]

SCORES = (N, C, 2, 1)
TARGETS = np.random.default_rng(5).integers(0, C, (N, 2, 1))
SHARES = np.abs(weights(C)) + 0.2

LOSSES = [
    case("NegativeLogLikelihoodLoss", "none", SCORES, TARGETS, opset=13, reduction="none"),
    case("NegativeLogLikelihoodLoss", "mean", SCORES, TARGETS, SHARES, opset=13, ignore_index=2),
    case("NegativeLogLikelihoodLoss", "sum", SCORES, TARGETS, SHARES, opset=22, reduction="sum"),
    *(
        case(
            "SoftmaxCrossEntropyLoss",
            name,
            SCORES,
            TARGETS,
            *more,
            opset=13,
            linear=False,
            outputs=n,
            **attrs,
        )
        for name, n, more, attrs in (
            ("none", 1, (), {"reduction": "none"}),
            ("mean-ignoring-one", 1, (SHARES,), {"ignore_index": 3}),
            ("sum-and-log-probabilities", 2, (SHARES,), {"reduction": "sum"}),
        )
    ),
]

CASES = (*ACTIVATIONS, *CURVES, *OPERANDS, *NORMALIZATIONS, *REDUCTIONS, *LOSSES)
