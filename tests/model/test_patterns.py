"""Activations in pieces: every spelling is named rightly, proved by onnxruntime; near misses are left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxviz.model.constants import Constants
from onnxviz.model.graph import Graph, ModelFile, Node
from onnxviz.model.normalize import normalize
from onnxviz.model.patterns import recognise
from tests.model.nets import build, conv_weights, forward, node, write

RNG = np.random.default_rng(5)
SLOPES = np.array([0.25, -0.5, 0.75], np.float32).reshape(3, 1, 1)
ARRAYS = {
    "slopes": SLOPES,
    "slopes4": SLOPES[None],
    "negative": -SLOPES,
    "others": 1 - SLOPES,
    "scales": np.array([0.5, 2, 4], np.float32).reshape(3, 1, 1),
    "same": np.full((3, 1, 1), 0.3, np.float32),
    "one": np.array([1], np.float32),
    "six": np.array([6], np.float32),
    "zeros": np.zeros((2, 3, 12, 12), np.float32),
    "bias": np.linspace(-1, 1, 3, dtype=np.float32).reshape(3, 1, 1),
    "caps": np.array([1e6, 2, 3], np.float32).reshape(3, 1, 1),
    "0i": np.array(0, np.int64),
    "3i": np.array(3, np.int64),
    "cond": np.array(True),
    "cw": conv_weights(RNG, 3, 3, 1, 1),
}


def spell(text: str, dtype: type = np.float32) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes and constants of "s = Sigmoid x; y = Mul x s": a number is a constant, k=v an attribute."""
    nodes, weights = [], {}
    for statement in text.split(";"):
        output, op, *words = statement.replace(" = ", " ", 1).split()
        attrs = {}
        for word in [w for w in words if "=" in w]:
            name, value = word.split("=")
            attrs[name] = int(value) if value.isdigit() and name != "alpha" else float(value)
        inputs = [w for w in words if "=" not in w]
        for word in inputs:
            if word in ARRAYS:
                weights[word] = ARRAYS[word]
            elif word[0] in "-.0123456789":
                weights[word] = dtype(word)
        nodes.append(helper.make_node(op, inputs, [output], f"make_{output}", **attrs))
    return nodes, weights


def opened(tmp_path, model: onnx.ModelProto) -> tuple[Graph, ModelFile]:
    file = ModelFile(write(tmp_path / "model.onnx", model))
    return normalize(file.graph, file.constants, file.opset), file


def named(graph: Graph) -> list[tuple[str, str]]:
    """(output, operator) of every node that was recognised."""
    return [(node.output, node.op) for node in graph.nodes if node.pieces]


def whole_batch(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """y for the whole batch: some spellings hold constants of its very shape."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def standard(node: Node, values: np.ndarray, slopes: dict[str, np.ndarray]) -> np.ndarray:
    """The operator of a recognised node on its own, run by onnxruntime."""
    attrs = dict(node.attrs)
    constants = {name: slopes[name] for name in node.inputs[1:]}
    if node.op == "Clip":
        constants = {"min": np.float32(attrs.pop("min")), "max": np.float32(attrs.pop("max"))}
    proto = helper.make_node(node.op, ["x", *constants], ["y"], **attrs)
    model = build([proto], constants, x=values.shape, opset=24)
    return whole_batch(model, values)


# id: (operator, attributes, spelling)
SPELLINGS = {
    # ReLU and bounded ReLU
    "relu-max": ("Relu", {}, "y = Max x 0"),
    "relu-max-first": ("Relu", {}, "y = Max 0 x"),
    "relu-max-array": ("Relu", {}, "z = Identity x; y = Max z zeros"),
    "relu-where": ("Relu", {}, "c = Greater x 0; y = Where c x 0"),
    "relu-where-full": ("Relu", {}, "c = Greater x 0; y = Where c x zeros"),
    "relu-where-less": ("Relu", {}, "c = LessOrEqual x 0; y = Where c 0 x"),
    "relu-where-not": ("Relu", {}, "c = Less x 0; n = Not c; y = Where n x 0"),
    "relu-mask": ("Relu", {}, "c = Greater x 0; m = Cast c to=1; y = Mul x m"),
    "relu-mask-int": ("Relu", {}, "c = Greater x 0; i = Cast c to=6; m = Cast i to=1; y = Mul x m"),
    "relu-abs": ("Relu", {}, "a = Abs x; s = Add x a; y = Mul s 0.5"),
    "relu-scaled-and-back": ("Relu", {}, "s = Mul x scales; r = Relu s; y = Div r scales"),
    "relu-sum": ("Relu", {}, "a = Abs x; h = Mul a 0.5; g = Mul x 0.5; y = Sum h g"),
    "relu6-min-max": ("Clip", {"min": 0.0, "max": 6.0}, "m = Max x 0; y = Min m 6"),
    "relu6-max-min": ("Clip", {"min": 0.0, "max": 6.0}, "m = Min x 6; y = Max m 0"),
    "relu6-relu-min": ("Clip", {"min": 0.0, "max": 6.0}, "r = Relu x; y = Min r six"),
    "relu6-relu-clip": ("Clip", {"min": 0.0, "max": 6.0}, "r = Relu x; y = Clip r -3 6"),
    "relu6-difference": (
        "Clip",
        {"min": 0.0, "max": 6.0},
        "a = Relu x; b = Sub x 6; c = Relu b; y = Sub a c",
    ),
    "relu-20": ("Clip", {"min": 0.0, "max": 20.0}, "r = Relu x; y = Min r 20"),
    "hard-tanh": ("Clip", {"min": -1.0, "max": 1.0}, "m = Max x -1; y = Min m 1"),
    # leaky and parametric ReLU
    "leaky-max": ("LeakyRelu", {"alpha": 0.1}, "a = Mul x 0.1; y = Max x a"),
    "leaky-max-first": ("LeakyRelu", {"alpha": 0.2}, "a = Mul 0.2 x; y = Max a x"),
    "leaky-where": ("LeakyRelu", {"alpha": 0.01}, "c = GreaterOrEqual x 0; a = Mul x 0.01; y = Where c x a"),
    "leaky-keras": (
        "LeakyRelu",
        {"alpha": 0.3},
        "p = Relu x; n = Neg x; q = Relu n; a = Mul -0.3 q; y = Add p a",
    ),
    "leaky-abs": ("LeakyRelu", {"alpha": 0.5}, "a = Abs x; p = Mul x 0.75; q = Mul a 0.25; y = Add p q"),
    "leaky-same-slopes": ("LeakyRelu", {"alpha": 0.3}, "a = Mul x same; y = Max x a"),
    "leaky-of-leaky": (
        "LeakyRelu",
        {"alpha": 0.05},
        "a = LeakyRelu x alpha=0.1; b = Mul x 0.05; y = Max a b",
    ),
    "prelu-max": ("PRelu", {}, "a = Mul x slopes; y = Max x a"),
    "prelu-where": ("PRelu", {}, "c = Less x 0; a = Mul slopes4 x; y = Where c a x"),
    "prelu-keras": ("PRelu", {}, "p = Relu x; n = Neg x; q = Relu n; a = Mul negative q; y = Add p a"),
    "prelu-min-max": ("PRelu", {}, "p = Max x 0; n = Min x 0; a = Mul slopes n; y = Add p a"),
    "prelu-abs": (
        "PRelu",
        {},
        "p = Relu x; b = Abs x; d = Sub x b; e = Mul d slopes; f = Mul e 0.5; y = Add p f",
    ),
    "prelu-mix": ("PRelu", {}, "r = Relu x; a = Mul r others; b = Mul x slopes; y = Add a b"),
    # ELU and its kin
    "elu-where": ("Elu", {"alpha": 1.0}, "e = Exp x; m = Sub e 1; c = Greater x 0; y = Where c x m"),
    "elu-sum": (
        "Elu",
        {"alpha": 0.7},
        "p = Relu x; n = Min x 0; e = Exp n; m = Sub e 1; a = Mul m 0.7; y = Add p a",
    ),
    "celu": (
        "Celu",
        {"alpha": 1.5},
        "p = Max x 0; d = Div x 1.5; e = Exp d; m = Sub e 1; a = Mul m 1.5; n = Min a 0; y = Add p n",
    ),
    "selu": (
        "Selu",
        {"alpha": 1.6732632, "gamma": 1.050701},
        "p = Elu x alpha=1.6732632; y = Mul p 1.050701",
    ),
    # SiLU
    "silu": ("Swish", {"alpha": 1.0}, "s = Sigmoid x; y = Mul x s"),
    "silu-gate-first": ("Swish", {"alpha": 1.0}, "s = Sigmoid x; y = Mul s x"),
    "silu-div": ("Swish", {"alpha": 1.0}, "n = Neg x; e = Exp n; d = Add e 1; y = Div x d"),
    "silu-reciprocal": (
        "Swish",
        {"alpha": 1.0},
        "n = Neg x; e = Exp n; d = Add 1 e; r = Reciprocal d; y = Mul x r",
    ),
    "silu-tanh": ("Swish", {"alpha": 1.0}, "h = Mul x 0.5; t = Tanh h; a = Add t 1; y = Mul h a"),
    "silu-casts": ("Swish", {"alpha": 1.0}, "c = Cast x to=11; s = Sigmoid c; f = Cast s to=1; y = Mul x f"),
    "silu-paddle": ("Swish", {"alpha": 1.0}, "b = Mul x one; s = Sigmoid b; y = Mul x s"),
    "quick-gelu": ("Swish", {"alpha": 1.702}, "a = Mul x 1.702; s = Sigmoid a; y = Mul x s"),
    # hard-swish
    "hard-swish": ("HardSwish", {}, "h = HardSigmoid x alpha=0.16666667 beta=0.5; y = Mul x h"),
    "hard-swish-6-digits": ("HardSwish", {}, "h = HardSigmoid x alpha=0.166667 beta=0.5; y = Mul x h"),
    "hard-swish-torch": ("HardSwish", {}, "a = Add x 3; c = Clip a 0 6; m = Mul x c; y = Div m 6"),
    "hard-swish-paddle": ("HardSwish", {}, "a = Add x 3; c = Clip a 0 6; m = Mul x c; y = Div m six"),
    "hard-swish-keras": (
        "HardSwish",
        {},
        "a = Add x 3; r = Relu a; c = Min r 6; s = Mul c 0.16666667; y = Mul s x",
    ),
    "hard-swish-gate-first": ("HardSwish", {}, "a = Add 3 x; c = Clip a 0 6; d = Div c 6; y = Mul x d"),
    "hard-swish-sixth-of-x": (
        "HardSwish",
        {},
        "s = Mul x 0.16666667; a = Add x 3; c = Clip a 0 6; y = Mul s c",
    ),
    "hard-swish-min-max": (
        "HardSwish",
        {},
        "a = Add x 3; m = Max a 0; n = Min m 6; d = Div n 6; y = Mul x d",
    ),
    "hard-swish-unit": ("HardSwish", {}, "a = Div x 6; b = Add a 0.5; c = Clip b 0 1; y = Mul c x"),
    "hard-swish-relus": (
        "HardSwish",
        {},
        "a = Add x 3; b = Sub x 3; p = Relu a; q = Relu b; d = Sub p q; m = Mul d x; y = Div m 6",
    ),
    # GELU
    "gelu-torch": (
        "Gelu",
        {"approximate": "none"},
        "d = Div x 1.4142135; e = Erf d; a = Add e 1; m = Mul x a; y = Mul m 0.5",
    ),
    "gelu-dynamo": (
        "Gelu",
        {"approximate": "none"},
        "d = Div x 1.4142135; e = Erf d; a = Add e 1; m = Mul 0.5 a; y = Mul x m",
    ),
    "gelu-keras": (
        "Gelu",
        {"approximate": "none"},
        "d = Mul x 0.70710677; e = Erf d; a = Add 1 e; h = Mul 0.5 x; y = Mul h a",
    ),
    "gelu-6-digits": (
        "Gelu",
        {"approximate": "none"},
        "d = Div x 1.41421; e = Erf d; a = Add e 1; m = Mul x a; y = Div m 2",
    ),
    "gelu-halves": (
        "Gelu",
        {"approximate": "none"},
        "d = Div x 1.4142135; e = Erf d; h = Mul e 0.5; a = Add h 0.5; y = Mul a x",
    ),
    "gelu-sum": (
        "Gelu",
        {"approximate": "none"},
        "d = Div x 1.4142135; e = Erf d; m = Mul x e; s = Add x m; y = Mul s 0.5",
    ),
    "gelu-tanh-torch": (
        "Gelu",
        {"approximate": "tanh"},
        "p = Mul x x; q = Mul x p; r = Mul 0.044715 q; s = Add x r; t = Mul 0.7978846 s; h = Tanh t;"
        "a = Add 1 h; m = Mul x a; y = Mul 0.5 m",
    ),
    "gelu-tanh-dynamo": (
        "Gelu",
        {"approximate": "tanh"},
        "p = Pow x 3; r = Mul 0.044715 p; s = Add x r; t = Mul 0.7978846 s; h = Tanh t; a = Add h 1;"
        "m = Mul 0.5 a; y = Mul x m",
    ),
    "gelu-tanh-transformers": (
        "Gelu",
        {"approximate": "tanh"},
        "b = Mul x 0.5; p = Pow x 3i; r = Mul p 0.044715; s = Add x r; t = Mul s 0.7978846; h = Tanh t;"
        "a = Add h 1; y = Mul b a",
    ),
    "gelu-tanh-factored": (
        "Gelu",
        {"approximate": "tanh"},
        "p = Mul x x; r = Mul p 0.035677408; s = Add r 0.7978846; t = Mul s x; h = Tanh t; a = Add h 1;"
        "b = Mul x 0.5; y = Mul a b",
    ),
    "gelu-tanh-sigmoid": (
        "Gelu",
        {"approximate": "tanh"},
        "p = Pow x 3; r = Mul 0.044715 p; s = Add x r; t = Mul 1.5957692 s; g = Sigmoid t; y = Mul x g",
    ),
    # Mish
    "mish": ("Mish", {}, "s = Softplus x; t = Tanh s; y = Mul x t"),
    "mish-dynamo": (
        "Mish",
        {},
        "s = Softplus x; c = Greater x 20; w = Where c x s; t = Tanh w; y = Mul x t",
    ),
    "mish-log": ("Mish", {}, "e = Exp x; a = Add e 1; s = Log a; t = Tanh s; y = Mul t x"),
    "mish-ratio": (
        "Mish",
        {},
        "e = Exp x; a = Add e 2; n = Mul e a; d = Add n 2; q = Div n d; y = Mul x q",
    ),
    # gates and others
    "hard-sigmoid-clip": (
        "HardSigmoid",
        {"alpha": 0.16666667, "beta": 0.5},
        "a = Div x 6; b = Add a 0.5; y = Clip b 0 1",
    ),
    "hard-sigmoid-relu6": (
        "HardSigmoid",
        {"alpha": 0.16666667, "beta": 0.5},
        "a = Add x 3; c = Clip a 0 6; y = Div c 6",
    ),
    "hard-sigmoid-min-max": (
        "HardSigmoid",
        {"alpha": 0.16666667, "beta": 0.5},
        "a = Add x 3; m = Max a 0; c = Min m 6; y = Mul c 0.16666667",
    ),
    "hard-sigmoid-keras": (
        "HardSigmoid",
        {"alpha": 0.2, "beta": 0.5},
        "a = Mul x 0.2; b = Add a 0.5; m = Max b 0; y = Min m 1",
    ),
    "sigmoid": ("Sigmoid", {}, "n = Neg x; e = Exp n; a = Add e 1; y = Reciprocal a"),
    "tanh": ("Tanh", {}, "d = Mul x 2; s = Sigmoid d; t = Mul s 2; y = Sub t 1"),
    "softplus": ("Softplus", {}, "e = Exp x; a = Add e 1; y = Log a"),
    "softplus-dynamo": ("Softplus", {}, "s = Softplus x; c = Greater x 20; y = Where c x s"),
    "softplus-stable": (
        "Softplus",
        {},
        "b = Abs x; n = Neg b; e = Exp n; a = Add e 1; l = Log a; r = Relu x; y = Add r l",
    ),
    "softsign": ("Softsign", {}, "b = Abs x; a = Add b 1; y = Div x a"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spelling(tmp_path, case):
    """The name, and the witness: the operator alone gives what the pieces give, both run by onnxruntime."""
    op, attrs, text = SPELLINGS[case]
    nodes, weights = spell(text)
    model = build(nodes, weights, x=(2, 3, 12, 12))
    graph, file = opened(tmp_path, model)
    after, slopes = recognise(graph, file.constants)
    found = after.nodes[-1]
    assert named(after) == [("y", op)]
    assert found.attrs == pytest.approx(attrs, rel=3e-6) if op != "Gelu" else found.attrs == attrs
    assert found.inputs[1:] == tuple(slopes)
    assert (found.name, found.outputs, found.domain) == ("make_y", ("y",), "")
    copied = [n for n in nodes if n.op_type == "Identity"]
    assert found.inputs[0] == ("z" if copied else "x")
    assert found.pieces == tuple(n.op_type for n in nodes if n not in copied)
    assert after.nodes[:-1] == graph.nodes[:-1]

    x = RNG.normal(0, 3, (2, 3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(standard(found, x, slopes), whole_batch(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in SPELLINGS if SPELLINGS[case][0] not in ("Clip",)])
def test_attributes_are_the_schemas_own(tmp_path, case):
    """All of them, as rules expect: nothing is left to a default. (Clip's are those of its levelled form.)"""
    nodes, weights = spell(SPELLINGS[case][2])
    graph, file = opened(tmp_path, build(nodes, weights, x=(2, 3, 12, 12)))
    found = recognise(graph, file.constants)[0].nodes[-1]
    assert set(found.attrs) == set(onnx.defs.get_schema(found.op).attributes)


HALF = ["silu", "quick-gelu", "hard-swish-torch", "hard-swish-keras", "gelu-torch", "gelu-tanh-dynamo"]
HALF += ["gelu-tanh-transformers", "mish-log", "leaky-max", "relu-max", "relu6-min-max", "hard-sigmoid-relu6"]


@pytest.mark.parametrize("case", HALF)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_constants_of_half_precision(tmp_path, case, dtype):
    """√2 is 1.4140625 in float16: the exact GELU is still told from the tanh form, 5e-4 away at most."""
    op, attrs, text = SPELLINGS[case]
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype.upper()))
    nodes, weights = spell(text, lambda word: np.array(float(word)).astype(kind))
    graph, file = opened(tmp_path, build(nodes, weights, dtype=getattr(TensorProto, dtype.upper())))
    after, _ = recognise(graph, file.constants)
    assert named(after) == [("y", op)]
    found = after.nodes[-1].attrs
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert found == attrs if op == "Gelu" else found == pytest.approx(attrs, rel=2 * rounding)


def test_what_half_precision_forgives_float32_does_not(tmp_path):
    nodes, weights = spell(SPELLINGS["gelu-torch"][2].replace("1.4142135", "1.4140625"))
    graph, file = opened(tmp_path, build(nodes, weights))
    assert named(recognise(graph, file.constants)[0]) == []


NEAR_MISSES = {
    "gate-from-elsewhere": "z = Conv x cw; s = Sigmoid z; y = Mul x s",
    "gate-shifted": "a = Add x 1; s = Sigmoid a; y = Mul x s",
    "gate-negative": "n = Neg x; s = Sigmoid n; y = Mul x s",
    "swish-scaled": "s = Sigmoid x; m = Mul x s; y = Mul m 1.001",
    "swish-per-channel": "a = Mul x slopes; s = Sigmoid a; y = Mul x s",
    "gelu-0.4": "d = Div x 1.4142135; e = Erf d; a = Add e 1; m = Mul x a; y = Mul m 0.4",
    "gelu-0.1-percent-off": "d = Div x 1.4156277; e = Erf d; a = Add e 1; m = Mul x a; y = Mul m 0.5",
    "gelu-tanh-0.1-percent-off": (
        "p = Pow x 3; r = Mul 0.0447597 p; s = Add x r; t = Mul 0.7978846 s; h = Tanh t; a = Add h 1;"
        "m = Mul 0.5 a; y = Mul x m"
    ),
    "gelu-square": SPELLINGS["gelu-tanh-dynamo"][2].replace("Pow x 3", "Pow x 2"),
    "hard-swish-0.2": "h = HardSigmoid x alpha=0.2 beta=0.5; y = Mul x h",
    "hard-swish-0.1-percent-off": "h = HardSigmoid x alpha=0.16683333 beta=0.5; y = Mul x h",
    "hard-swish-clip-5": "a = Add x 3; c = Clip a 0 5; m = Mul x c; y = Div m 6",
    "mish-base-2": "e = Exp x; a = Add e 2; s = Log a; t = Tanh s; y = Mul x t",
    "squeeze-excite": "p = GlobalAveragePool x; c = Conv p cw; s = Sigmoid c; y = Mul x s",
    "hard-squeeze-excite": (
        "p = GlobalAveragePool x; c = Conv p cw; h = HardSigmoid c alpha=0.16666667 beta=0.5; y = Mul x h"
    ),
    "squeeze-without-excite": "p = GlobalAveragePool x; s = Sigmoid p; y = Mul x s",
    "softmax": "m = ReduceMax x; d = Sub x m; e = Exp d; s = ReduceSum e; y = Div e s",
    "attention": "m = Mul x 0.125; s = Softmax m; y = Mul s x",
    "two-sources": "z = Conv x cw; y = Max x z",
    "affine": "a = Mul x slopes; y = Add a bias",
    "identity": "a = Relu x; n = Neg x; b = Relu n; y = Sub a b",
    "absolute": "n = Neg x; y = Max x n",
    "overflowing": "e = Exp x; f = Exp e; g = Exp f; m = Max g x; y = Mul m 2",
    "overflowing-per-channel": "b = Add x bias; e = Exp b; m = Max e bias; y = Mul m b",
    "cube": "p = Mul x x; y = Mul p x",
    "norm-guard": "a = Abs x; y = Max a 0.000001",
    "guard": "y = Max x 0.000000000001",
    "upper-bound-only": "y = Min x 6",
    "lower-bound-of-1": "y = Max x 1",
    "mask-far-below": "y = Max x -60000",
    "scaled-and-back": "s = Mul x scales; m = Max s -200000; y = Div m scales",
    "positive-slope": "a = Relu x; y = Add x a",
    "residual": "r = Relu x; c = Conv r cw; y = Add x c",
    "normalisation": (
        "m = ReduceMean x; d = Sub x m; p = Pow d 2; v = ReduceMean p; a = Add v 0.001; s = Sqrt a; y = Div d s"
    ),
    "log-sigmoid": "s = Sigmoid x; y = Log s",
    "tanh-shrink": "t = Tanh x; y = Sub x t",
    "softplus-of-2x": "m = Mul x 2; s = Softplus m; y = Div s 2",
    "prelu-of-slope-2-right": "p = Relu x; a = Mul p 2; n = Min x 0; b = Mul n slopes; y = Add a b",
    "prelu-bounded": "a = Mul x slopes; m = Max x a; y = Min m 1000",
    "prelu-bounded-but-for-the-first": "a = Mul x slopes; m = Max x a; y = Min m caps",
    "bounds-above-0": "m = Max x 1; y = Min m 6",
    "mish-bounded-where-exp-overflows": (
        "e = Exp x; a = Add e 2; n = Mul e a; d = Add n 2; q = Div n d; m = Min x 50; y = Mul m q"
    ),
    "whole-numbers": "i = Cast x to=7; y = Max i 0i",
}
NAMED_WITHIN = {
    "swish-scaled": [("m", "Swish")],
    "prelu-bounded": [("m", "PRelu")],
    "prelu-bounded-but-for-the-first": [("m", "PRelu")],
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss(tmp_path, case):
    nodes, weights = spell(NEAR_MISSES[case])
    graph, file = opened(tmp_path, build(nodes, weights, x=("N", 3, 12, 12)))
    after, _ = recognise(graph, file.constants)
    assert after.producer["y"] == graph.producer["y"]
    assert named(after) == NAMED_WITHIN.get(case, [])


STANDARD = {
    **{op: f"y = {op} x" for op in ("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "Tanh")},
    **{op: f"y = {op} x" for op in ("Softplus", "Softsign", "HardSwish", "Celu", "Identity", "Abs", "Neg")},
    "Clip": "y = Clip x 0 6",
    "PRelu": "y = PRelu x slopes",
    "Relu after Relu": "z = Relu x; y = Relu z",
    "Clip from 0": "y = Clip x 0",
    "Clip after Relu": "z = Relu x; y = Clip z 0 0.3",
    "Relu after Cast": "z = Cast x to=1; y = Relu z",
}


@pytest.mark.parametrize("case", STANDARD)
def test_standard_operators_are_left_alone(tmp_path, case):
    nodes, weights = spell(STANDARD[case])
    graph, file = opened(tmp_path, build(nodes, weights))
    assert recognise(graph, file.constants) == (graph, {})


def test_slopes_are_new_constants(tmp_path):
    """tf2onnx stores Keras' slopes with their sign turned."""
    nodes, weights = spell(SPELLINGS["prelu-keras"][2])
    graph, file = opened(tmp_path, build(nodes, weights))
    after, slopes = recognise(graph, file.constants)
    assert after.nodes[-1].inputs == ("x", "y:slope")
    assert slopes["y:slope"].dtype == np.float32
    np.testing.assert_allclose(slopes["y:slope"], SLOPES, rtol=1e-6)
    assert "y:slope" not in file.constants


def test_the_slopes_name_is_free(tmp_path):
    nodes, weights = spell(SPELLINGS["prelu-keras"][2])
    nodes[-2].output[0] = nodes[-1].input[1] = "y:slope"
    graph, file = opened(tmp_path, build(nodes, weights))
    after, slopes = recognise(graph, file.constants)
    assert after.nodes[-1].inputs == ("x", "y:slope_")
    assert list(slopes) == ["y:slope_"]


def test_slopes_that_are_computed_or_in_constant_nodes(tmp_path):
    """Weights hide in many places; onnxruntime computes what is not stored."""
    nodes, weights = spell(
        "n = Neg slopes; "
        + SPELLINGS["prelu-keras"][2]
        .replace("negative", "n")
        .replace("n = Neg x", "m = Neg x")
        .replace("Relu n", "Relu m")
    )
    stored = node("Constant", "", "slopes", value=numpy_helper.from_array(weights.pop("slopes"), "slopes"))
    graph, file = opened(tmp_path, build([stored, *nodes], weights))
    after, slopes = recognise(graph, file.constants)
    assert named(after) == [("y", "PRelu")]
    np.testing.assert_allclose(slopes["y:slope"], SLOPES, rtol=1e-6)


CHAIN = "; ".join(
    [
        "a = Conv x cw; b = Sigmoid a; c = Mul a b",
        "d = Conv c cw; e = Add d 3; f = Clip e 0 6; g = Mul d f; h = Div g 6",
        "i = Conv h cw; j = Div i 1.4142135; k = Erf j; l = Add k 1; m = Mul i l; n = Mul m 0.5",
        "o = Conv n cw; p = Softplus o; q = Tanh p; y = Mul o q",
    ]
)
CHAIN_NAMES = {"c": ("Swish", "a"), "h": ("HardSwish", "d"), "n": ("Gelu", "i"), "y": ("Mish", "o")}


def test_every_activation_of_a_network_is_found(tmp_path):
    nodes, weights = spell(CHAIN)
    graph, file = opened(tmp_path, build(nodes, weights))
    after, _ = recognise(graph, file.constants)
    found = {node.output: (node.op, node.inputs[0]) for node in after.nodes if node.pieces}
    assert found == CHAIN_NAMES
    assert [node.name for node in after.nodes] == [node.name for node in graph.nodes]


def test_the_other_pieces_stay_and_can_be_targets(tmp_path):
    """They keep their places and their inputs, and the file still computes each of them."""
    nodes, weights = spell(CHAIN)
    model = build(nodes, weights)
    graph, file = opened(tmp_path, model)
    after, _ = recognise(graph, file.constants)
    kept = [node for node in after.nodes if node.output not in CHAIN_NAMES]
    assert kept == [node for node in graph.nodes if node.output not in CHAIN_NAMES]
    ready = {"x", *weights}
    for piece in after.nodes:
        assert ready.issuperset(piece.inputs), piece.name
        ready.update(piece.outputs)
    assert after.ancestors("f") == {"f", "e", "d", "c", "a", "x", "cw", "3", "0", "6"}
    x = RNG.normal(size=(2, 3, 12, 12)).astype(np.float32)
    pieces = [node.output for node in kept]
    session = onnxruntime.InferenceSession(file.cut(pieces), providers=["CPUExecutionProvider"])
    for name, value in zip(pieces, session.run(pieces, {"x": x}), strict=True):
        np.testing.assert_allclose(value, forward(model, x, [name])[name], rtol=1e-5, atol=1e-5)


def test_the_largest_region_wins(tmp_path):
    """The hard sigmoid inside a hard-swish gets no name of its own."""
    nodes, weights = spell("a = Add x 3; c = Clip a 0 6; h = Div c 6; y = Mul x h")
    graph, file = opened(tmp_path, build(nodes, weights))
    after, _ = recognise(graph, file.constants)
    assert named(after) == [("y", "HardSwish")]


@pytest.mark.parametrize("how", ["read", "an output"])
def test_an_inner_tensor_that_is_used_elsewhere_has_its_own_name(tmp_path, how):
    text = "a = Add x 3; c = Clip a 0 6; h = Div c 6; y = Mul x h"
    nodes, weights = spell(text + ("; w = Conv h cw; z = Add w y" if how == "read" else ""))
    outputs = ["z"] if how == "read" else ["y", "h"]
    graph, file = opened(tmp_path, build(nodes, weights, outputs=outputs))
    after, _ = recognise(graph, file.constants)
    assert named(after) == [("h", "HardSigmoid"), ("y", "HardSwish")]


def test_activations_one_after_the_other(tmp_path):
    nodes, weights = spell("s = Sigmoid x; m = Mul x s; y = Max m 0")
    graph, file = opened(tmp_path, build(nodes, weights))
    after, _ = recognise(graph, file.constants)
    assert named(after) == [("m", "Swish"), ("y", "Relu")]


def test_batch_normalisation_in_pieces_is_no_part_of_the_activation(tmp_path):
    nodes, weights = spell("s = Mul x slopes; b = Add s bias; g = Sigmoid b; y = Mul b g")
    graph, file = opened(tmp_path, build(nodes, weights))
    found = recognise(graph, file.constants)[0].nodes[-1]
    assert (found.op, found.inputs, found.pieces) == ("Swish", ("b",), ("Sigmoid", "Mul"))


def test_a_copy_before_the_activation_is_no_part_of_it(tmp_path):
    nodes, weights = spell("z = Cast x to=1; i = Identity z; s = Sigmoid i; y = Mul i s")
    graph, file = opened(tmp_path, build(nodes, weights))
    found = recognise(graph, file.constants)[0].nodes[-1]
    assert (found.inputs, found.pieces) == (("i",), ("Sigmoid", "Mul"))


def test_a_region_that_changes_the_shape_is_none(tmp_path):
    """x: (N, 1, H, W) meets three slopes: PRelu of ONNX cannot do that."""
    nodes, weights = spell("a = Mul x slopes; y = Max x a")
    graph, file = opened(tmp_path, build(nodes, weights, x=(2, 1, 12, 12)))
    shapes = file.shapes({"x": (2, 1, 12, 12)})
    assert shapes["y"] == (2, 3, 12, 12)
    assert named(recognise(graph, file.constants, shapes)[0]) == []
    known = {**shapes, "x": (2, 3, None, 12)}
    assert named(recognise(graph, file.constants, known)[0]) == [("y", "PRelu")]


def test_other_domains_are_foreign(tmp_path):
    nodes, weights = spell(SPELLINGS["silu"][2])
    graph, file = opened(tmp_path, build(nodes, weights))
    foreign = tuple(
        replace(node, domain="com.example") if node.op == "Sigmoid" else node for node in graph.nodes
    )
    assert named(recognise(replace(graph, nodes=foreign), file.constants)[0]) == []


@pytest.fixture
def fetched(monkeypatch):
    """Names of constants that are read, a tuple for each call."""
    calls = []
    fetch = Constants.fetch

    def record(self, names):
        calls.append(tuple(names))
        fetch(self, calls[-1])

    monkeypatch.setattr(Constants, "fetch", record)
    return calls


def test_constants_are_read_at_once_and_only_where_needed(tmp_path, fetched):
    text = "b = Add x bias; r = Relu b; c = Conv r cw; a = Mul c slopes; m = Max c a; n = Mul m same; y = Add n 1"
    nodes, weights = spell(text)
    graph, file = opened(tmp_path, build(nodes, weights))
    fetched.clear()
    assert named(recognise(graph, file.constants)[0]) == [("m", "PRelu")]
    assert sorted(fetched[0]) == ["1", "same", "slopes"]
    assert {name for names in fetched for name in names} == set(fetched[0])


def test_big_constants_take_no_part(tmp_path, fetched):
    """By their shapes, where these are known, they are not even read."""
    big = np.linspace(0.1, 0.5, 3 * 60 * 60, dtype=np.float32).reshape(3, 60, 60)
    model = build([node("Mul", "x big", "a"), node("Max", "x a", "y")], {"big": big}, x=(1, 3, 60, 60))
    graph, file = opened(tmp_path, model)
    shapes = file.shapes({"x": (1, 3, 60, 60)})
    fetched.clear()
    assert named(recognise(graph, file.constants, shapes)[0]) == []
    assert not any(fetched)
    assert named(recognise(graph, file.constants)[0]) == []


def test_bounds_that_depend_on_the_image_make_no_activation(tmp_path):
    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Clip", "x - top", "c"),
        node("Mul", "x c", "y"),
    ]
    graph, file = opened(tmp_path, build(nodes))
    assert named(recognise(graph, file.constants)[0]) == []
