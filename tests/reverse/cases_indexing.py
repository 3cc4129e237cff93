"""One-node models for operators that index, move, multiply, attend or recur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.reverse.cases import (
    DUMMY,
    Array,
    C,
    Case,
    Draw,
    H,
    N,
    Operand,
    W,
    X,
    case,
    ints,
    spaced,
    weights,
)


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Where activations and weights of a softmax are far from flat."""
    return rng.uniform(-0.7, 0.7, shape)


def apart(offset: float) -> Draw:
    """Multiples of 0.4, shuffled, and an offset: operands of different offsets have no ties, now or after a step."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape))
        return np.reshape((rng.permutation(count) - count / 2) * 0.4 + offset, shape)

    return draw


def picks(size: int, *shape: int, negative: bool = False) -> Array:
    """Indices, some of them twice."""
    found = np.random.default_rng([size, *shape]).integers(0, size, shape)
    return found - size * (np.arange(found.size).reshape(shape) % 2) if negative else found


def distinct(size: int, *shape: int, axis: int) -> Array:
    """Indices that differ along one axis."""
    rng = np.random.default_rng([size, *shape])
    whole = rng.random((*shape[:axis], size, *shape[axis + 1 :])).argsort(axis)
    return whole[(slice(None),) * axis + (slice(shape[axis]),)]


class RunTime(Case):
    """One whose constants are computed at run time: to each whole number the sum of a black picture is added."""

    def model(self) -> ModelProto:
        model = super().model()
        graph = model.graph
        start = [helper.make_node("ReduceSum", [DUMMY], ["black"], keepdims=0)]
        for tensor in graph.initializer:
            kind = tensor.data_type
            assert kind in (TensorProto.INT64, TensorProto.BOOL)
            add = "Or" if kind == TensorProto.BOOL else "Add"
            name, tensor.name = tensor.name, f"{tensor.name}_stored"
            start.append(helper.make_node("Cast", ["black"], [f"{name}_nothing"], to=kind))
            start.append(helper.make_node(add, [tensor.name, f"{name}_nothing"], [name]))
        nodes = [*start, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        return model


def at_run_time(cases: Sequence[Case]) -> list[Case]:
    """The cases whose parameters are whole numbers or truth values, with these computed at run time."""
    return [
        RunTime(c.op, f"run-time-{c.name}", c.operands, c.attrs, c.opset, c.outputs, c.linear, c.draws)
        for c in cases
        if type(c) is Case
        and c.constants()
        and all(value.dtype in (np.int64, np.bool_) for value in c.constants().values())
    ]


class WithScores(Case):
    """An Attention that has its first and its last output."""

    def output_names(self) -> list[str]:
        return ["y0", "", "", "y3"]

    def model(self) -> ModelProto:
        model = super().model()
        del model.graph.output[1:3]
        return model


class FirstOutput(Case):
    """One whose other outputs the graph keeps to itself: they are no real numbers."""

    def model(self) -> ModelProto:
        model = super().model()
        del model.graph.output[1:]
        return model


def _top_k(name: str, *operands: Operand, draws: Draw, opset: int = 17, **attrs: Any) -> Case:
    return FirstOutput("TopK", name, operands, attrs, opset, outputs=2, linear=False, draws=(draws,))


GATHERS = [
    case("Gather", "channels-shuffled", X, ints(3, 0, 5, 2, 1, 4), axis=1),
    case("Gather", "channels-some", X, ints(4, 1), axis=1),
    case("Gather", "channels-twice", X, ints(4, 1, 4, -1, 1, 4), axis=-3),
    case("Gather", "columns-matrix", X, picks(W, 3, 2, negative=True), axis=3),
    case("Gather", "scalar", X, np.array(2), axis=1),
    case("Gather", "scalar-last", X, np.array(-1), axis=-1),
    case("Gather", "rows", (5, 3, 2), picks(5, 4, 3)),
    case("Gather", "one", X, ints(0), axis=2),
    case("Gather", "int32", X, np.array([1, 1, 0], np.int32), axis=2),
    case("Gather", "opset8", X, ints(1, 0, 1), axis=2, opset=8),
    case("GatherElements", "rows", (3, 5), picks(3, 2, 5), axis=0),
    case("GatherElements", "narrower", X, picks(W, N, 3, 2, 4, negative=True), axis=3),
    case("GatherElements", "channels", (N, C, 4, 3), picks(C, N, 8, 4, 3), axis=-3),
    case("GatherElements", "opset11", (3, 5), picks(5, 3, 7), axis=1, opset=11),
    case("GatherND", "elements", (4, 5, 3), np.stack([picks(4, 6), picks(5, 6), picks(3, 6)], -1)),
    case("GatherND", "slices", (4, 5, 3), picks(4, 2, 7, 1, negative=True)),
    case("GatherND", "batch", (3, 4, 5, 2), picks(4, 3, 6, 2), batch_dims=1, opset=12),
    case("GatherND", "two-batches", (3, 4, 5, 2), picks(5, 3, 4, 6, 1), batch_dims=2),
    case("GatherND", "opset11", (4, 5, 3), picks(4, 2, 2), opset=11),
    _top_k("largest", X, ints(3), draws=apart(0), axis=1),
    _top_k("smallest", X, ints(4), draws=spaced, axis=3, largest=0),
    _top_k("unsorted", X, ints(3), draws=spaced, axis=2, sorted=0),
    _top_k("all", (5, 7), ints(7), draws=apart(0)),
    _top_k("opset8", (3, 7), opset=8, draws=apart(0), k=2, axis=1),
    _top_k("opset10", (3, 7), ints(2), opset=10, draws=apart(0)),
    case("Compress", "axis", (3, 6, 2), np.array([True, False, True, True]), axis=1),
    case("Compress", "negative", (2, 3, 4), np.array([False, True, True]), axis=-1),
    case("Compress", "flat", (3, 4), np.array([False, True, True, False, True, True])),
    case("Compress", "opset9", (3, 4), np.array([False, True, True]), opset=9, axis=0),
    case("ReverseSequence", "default", (5, 3, 2), ints(4, 1, 5)),
    case("ReverseSequence", "batch-first", (3, C, 4), ints(5, 2, 6), batch_axis=0, time_axis=1),
    case("OneHot", "values", picks(5, 3, 2, negative=True), ints(5), (2,)),
    case("OneHot", "axis", ints(4, 0, 9, 2, -20), ints(5), (2,), opset=9, axis=0),
]


def spread_out(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(0.5, 1.5, shape) * np.where(rng.random(shape) < 0.5, -1, 1)


SCATTERS = [
    *(
        case(
            op,
            f"{name}-{reduction}",
            data,
            index,
            updates,
            opset=18,
            reduction=reduction,
            linear=reduction in ("none", "add"),
            draws=(apart(0), apart(0.13)) if reduction in ("max", "min") else spread_out,
            **attrs,
        )
        for op, name, data, index, updates, attrs in (
            ("ScatterElements", "rows", (4, 5), distinct(4, 3, 5, axis=0), (3, 5), {"axis": 0}),
            (
                "ScatterElements",
                "columns",
                (3, 4, 7),
                distinct(7, 2, 3, 5, axis=2) - 7,
                (2, 3, 5),
                {"axis": -1},
            ),
            ("ScatterElements", "repeated", (3, 5), picks(5, 3, 8), (3, 8), {"axis": 1}),
            ("ScatterND", "elements", (4, 5), np.array([[0, 1], [3, 2], [-1, -1]]), (3,), {}),
            ("ScatterND", "slices", (4, 5, 3), np.array([[2], [-4]]), (2, 5, 3), {}),
            ("ScatterND", "repeated", (4, 5), picks(4, 3, 2, 1), (3, 2, 5), {}),
        )
        for reduction in ("none", "add", "mul", "max", "min")
        if (name, reduction) != ("repeated", "none")
    ),
    case("Scatter", "default", (4, 5), distinct(4, 3, 5, axis=0), (3, 5), opset=10),
    case("Scatter", "axis", (3, 5), distinct(5, 2, 4, axis=1), (2, 4), opset=9, axis=1),
    case(
        "ScatterElements", "constant-data", weights(3, 5), distinct(5, 3, 4, axis=1), (3, 4), opset=11, axis=1
    ),
    case(
        "ScatterElements", "constant-updates", X, distinct(C, N, 3, H, W, axis=1), weights(N, 3, H, W), axis=1
    ),
    case(
        "ScatterElements",
        "one-update-for-two-factors",
        (3, 5),
        picks(5, 3, 8),
        weights(3, 8),
        opset=18,
        axis=1,
        reduction="mul",
    ),
    case("ScatterND", "constant-updates", (4, 5, 3), np.array([[2], [0]]), weights(2, 5, 3), opset=11),
    case("TensorScatter", "linear", (N, 3, 7, 4), (N, 3, 2, 4), ints(4, 1), opset=24),
    case("TensorScatter", "circular", (N, 3, 5, 4), (N, 3, 4, 4), ints(4, 3), opset=24, mode="circular"),
    case("TensorScatter", "axis", (N, 5, 3), (N, 2, 3), opset=24, axis=1),
]

MOVES = [
    case("Expand", "stretched", (N, 1, H, 1), ints(C, 1, W)),
    case("Expand", "rank", (C, 1, W), ints(N, C, H, 1)),
    case("Expand", "same", X, ints(1, C, 1, 1), opset=8),
    case("Tile", "maps", X, ints(1, 1, 2, 3)),
    case("Tile", "channels", X, ints(1, 2, 1, 1)),
    case("Tile", "rows", (2, 3), ints(3, 1), opset=8),
    *(
        case("Trilu", f"{'upper' if upper else 'lower'}-{k}", (2, 3, 4, 5), np.array(k), upper=upper)
        for upper in (0, 1)
        for k in (-2, 0, 1)
    ),
    case("Trilu", "default", (4, 3)),
    case("Pad", "wrap-crop", X, ints(0, 0, -2, 1, 0, 0, 3, -1), opset=19, mode="wrap"),
    case("Pad", "edge-crop", X, ints(0, 0, -2, 1, 0, 0, 3, -1), opset=13, mode="edge"),
    case("Pad", "reflect-crop", X, ints(0, 0, -2, 1, 0, 0, 3, -1), opset=13, mode="reflect"),
    case("Pad", "filled", X, ints(0, 1, 2, 0, 0, 0, 1, 3), (), opset=13),
    case("Pad", "filled-by-constant-data", weights(3, 4), ints(1, 2, 0, -1), (), opset=13),
]

EINSUMS = [
    case("Einsum", f"{name}-{side}", *operands, equation=equation, linear=side != "all")
    for name, equation, *shapes in (
        ("trace", "ii->", (4, 4)),
        ("diagonal", "nii->ni", (3, 4, 4)),
        ("diagonal-in-the-middle", "iji->ij", (4, 3, 4)),
        ("sum", "nij->j", (2, 3, 4)),
        ("implicit", "kj, ik", (3, 5), (2, 3)),
        ("pointwise", "nchw,cd->ndhw", (N, C, 4, 3), (C, 5)),
        ("attention", "nhqd,nhkd->nhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("ellipsis", "...ij,...jk->...ik", (2, 3, 4), (1, 4, 5)),
        ("ellipsis-implicit", "...ij,jk", (2, 3, 4), (4, 5)),
        ("outer", "i,j->ji", (3,), (4,)),
        ("stretched", "ij,ij->ij", (3, 4), (3, 1)),
        ("three", "ab,bc,cd->da", (2, 3), (3, 4), (4, 5)),
        ("own-label", "ij,k->i", (3, 4), (5,)),
    )
    for side, operands in (
        ("all", tuple(shapes)),
        *(
            (str(i), tuple(s if i == j else weights(*s) for j, s in enumerate(shapes)))
            for i in range(len(shapes))
        ),
    )
    if not (len(shapes) == 1 and side == "0")
]


def _attention(name: str, *operands: Operand, opset: int = 23, outputs: int = 1, **attrs: Any) -> Case:
    return case(
        "Attention", name, *operands, opset=opset, outputs=outputs, linear=False, draws=small, **attrs
    )


def caches(*shape: int) -> tuple[Array, Array]:
    """Of cosines and sines: any numbers will do."""
    return weights(*shape), weights(*shape, seed=1)


Q, KEYS, VALUES = (2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 6)
FEW_KEYS, FEW_VALUES = (2, 2, 5, 8), (2, 2, 5, 6)
VISIBLE = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]], bool)

ATTENTIONS = [
    _attention("4d", Q, KEYS, VALUES),
    _attention("3d", (2, 3, 32), (2, 5, 32), (2, 5, 24), q_num_heads=4, kv_num_heads=4),
    _attention("3d-grouped", (2, 3, 32), (2, 5, 16), (2, 5, 12), q_num_heads=4, kv_num_heads=2),
    _attention("grouped", Q, FEW_KEYS, FEW_VALUES, scale=0.7),
    _attention("one-group", Q, (2, 1, 5, 8), (2, 1, 5, 6), is_causal=1),
    _attention("causal", Q, KEYS, VALUES, is_causal=1),
    _attention("self", (2, 3, 32), "a", "a", q_num_heads=4, kv_num_heads=4, softcap=0.9),
    _attention("mask-bool", Q, KEYS, VALUES, VISIBLE),
    _attention("mask-2d", Q, KEYS, VALUES, (3, 5)),
    _attention("mask-4d-softcap", Q, KEYS, VALUES, (2, 1, 3, 5), softcap=2.0),
    _attention("mask-constant-causal", Q, KEYS, VALUES, weights(1, 1, 3, 5), is_causal=1),
    _attention("past", Q, KEYS, VALUES, "", (2, 4, 2, 8), (2, 4, 2, 6), outputs=3),
    _attention("past-mask", Q, KEYS, VALUES, (3, 7), (2, 4, 2, 8), (2, 4, 2, 6), outputs=3, is_causal=1),
    *(
        WithScores(
            "Attention",
            f"scores-{mode}",
            (Q, FEW_KEYS, FEW_VALUES, (3, 5)),
            {"softcap": 0.8, "qk_matmul_output_mode": mode},
            opset=23,
            linear=False,
            draws=(small,),
        )
        for mode in range(4)
    ),
    _attention("opset24", Q, KEYS, VALUES, opset=24, softmax_precision=1),
    *(
        Case("RotaryEmbedding", name, operands, attrs, opset=23)
        for name, operands, attrs in (
            ("4d", ((3, 2, 5, 8), *caches(7, 4), picks(7, 3, 5)), {}),
            ("3d", ((3, 5, 16), *caches(7, 4), picks(7, 3, 5)), {"num_heads": 2}),
            ("interleaved", ((3, 2, 5, 8), *caches(7, 4), picks(7, 3, 5)), {"interleaved": 1}),
            (
                "part",
                ((3, 2, 5, 8), *caches(7, 2), picks(7, 3, 5)),
                {"rotary_embedding_dim": 4, "num_heads": 2},
            ),
            ("no-places", ((3, 2, 5, 8), *caches(3, 5, 4)), {"interleaved": 1}),
        )
    ),
]

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _recurrent(
    op: str,
    name: str,
    *more: Operand,
    directions: int = 1,
    opset: int = 17,
    outputs: int = 2,
    bias: Array | None = None,
    plain: bool = False,
    **attrs: Any,
) -> Case:
    """``more`` are the operands after the bias."""
    rows = GATES[op] * HIDDEN
    operands: Sequence[Operand] = (
        (STEPS, BATCH, INPUT),
        0.4 * weights(directions, rows, INPUT),
        0.4 * weights(directions, rows, HIDDEN, seed=1),
        "" if plain else 0.3 * weights(directions, 2 * rows) if bias is None else bias,
        *more,
    )
    return case(
        op,
        name,
        *operands,
        opset=opset,
        outputs=outputs,
        linear=False,
        draws=small,
        hidden_size=HIDDEN,
        **attrs,
    )


LENGTHS = np.array([5, 2, 4], np.int32)
ACTIVATIONS = {
    "RNN": ("HardSigmoid",),
    "GRU": ("HardSigmoid", "Softsign"),
    "LSTM": ("Sigmoid", "Softsign", "Tanh"),
}

RECURRENT = [
    case_
    for op in GATES
    for case_ in (
        _recurrent(op, "forward"),
        _recurrent(op, "plain", plain=True, opset=8),
        _recurrent(op, "reverse", direction="reverse", outputs=1),
        _recurrent(op, "bidirectional", directions=2, direction="bidirectional"),
        _recurrent(op, "lengths", LENGTHS, (2, BATCH, HIDDEN), directions=2, direction="bidirectional"),
        _recurrent(op, "activations", directions=1, activations=list(ACTIVATIONS[op]), opset=14),
    )
] + [
    _recurrent("RNN", "relu", activations=["Relu"], bias=np.tile(np.array([3, -3], np.float32), (1, HIDDEN))),
    _recurrent("GRU", "linear-before-reset", linear_before_reset=1, direction="reverse"),
    _recurrent("GRU", "linear-before-reset-lengths", LENGTHS, (1, BATCH, HIDDEN), linear_before_reset=1),
    _recurrent("LSTM", "states", "", (1, BATCH, HIDDEN), (1, BATCH, HIDDEN), outputs=3),
    _recurrent(
        "LSTM",
        "peepholes",
        LENGTHS,
        "",
        (2, BATCH, HIDDEN),
        0.5 * weights(2, 3 * HIDDEN),
        directions=2,
        direction="bidirectional",
        outputs=3,
        opset=22,
    ),
]

TRANSFORMS = [
    case("DFT", "real", (N, 7, 1)),
    case("DFT", "complex", (N, 8, 2), axis=1),
    case("DFT", "onesided", (N, 8, 3, 1), onesided=1, axis=1),
    case("DFT", "longer", (N, 5, 1), np.array(8), onesided=1),
    case("DFT", "shorter", (N, 8, 2), np.array(5)),
    case("DFT", "inverse", (N, 5, 6, 2), inverse=1, axis=2),
    case("DFT", "inverse-length", (N, 5, 2), np.array(7), inverse=1),
    case("DFT", "opset20", (N, 3, 8, 1), "", np.array(-2), opset=20, onesided=1),
    case("STFT", "window", (N, 20, 1), np.array(4), weights(8), onesided=1),
    case("STFT", "frame-length", (N, 20, 1), np.array(3), "", np.array(7), onesided=0),
    case("STFT", "both", (N, 21, 1), np.array(5), weights(8), np.array(8), onesided=0),
]

CUT_AT_RUN_TIME = at_run_time(
    [
        case("Slice", "steps", X, ints(1, -2), ints(100, -100), ints(2, 3), ints(2, -3)),
        case("Slice", "starts", X, ints(0, 1, 2, -3), ints(100, 4, 6, -1)),
        case("Pad", "constant", X, ints(0, 1, -2, 3, 0, -1, 2, 0)),
        case("Pad", "reflect-axes", X, ints(2, 1, 3, 0), "", ints(2, -1), opset=18, mode="reflect"),
        case("Squeeze", "axes", (2, 1, 5, 1, 1), ints(1, -1)),
        case("Unsqueeze", "axes", (2, 3, 5), ints(3, 0)),
        case("Reshape", "shape", X, ints(0, -1, H)),
    ]
)

WINDOWS = [
    case("MatMul", "windows-right", X, weights(W, 5)),
    case("MatMul", "windows-left", weights(5, H), X),
    case("MatMul", "windows-channels", weights(1, 1, 5, H), X),
    case("MatMul", "windows-self", (N, C, 5, 5), "a", linear=False),
    case("Einsum", "windows", X, weights(C, 5), equation="nchw,cd->ndwh"),
    case("Einsum", "windows-gate", X, X, equation="nchw,nchw->nchw", linear=False),
    case("Einsum", "windows-attention", X, X, equation="nchw,ndhw->ncdw", linear=False),
    case("Einsum", "windows-diagonal", (N, C, 5, 5), weights(5), equation="nchh,w->nchw"),
    _attention("windows", X, "a", "a", opset=24, is_causal=1),
]

CASES: list[Case] = [
    *GATHERS,
    *SCATTERS,
    *MOVES,
    *EINSUMS,
    *ATTENTIONS,
    *RECURRENT,
    *TRANSFORMS,
    *WINDOWS,
    *CUT_AT_RUN_TIME,
]
CASES += at_run_time([*GATHERS, *SCATTERS, *MOVES])
