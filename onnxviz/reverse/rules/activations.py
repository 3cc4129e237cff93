"""Activations: the exact derivatives, and the policies that deconvnet and guided backpropagation put in place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from onnxviz.model.graph import Node
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.elementwise import function_rule
from onnxviz.reverse.rules.registry import (
    Cotangents,
    Step,
    all_inputs,
    nothing,
    register,
    result,
    rule,
    sum_to,
)


def _sigmoid(x: Array) -> Array:
    """1/(1 + e⁻ˣ), without overflow."""
    xp = x.__array_namespace__()
    e = xp.exp(-xp.abs(x))
    answer: Array = xp.where(x >= 0, 1, e) / (1 + e)
    return answer


def _swish_slope(x: Array, alpha: float) -> Array:
    gate = _sigmoid(alpha * x)
    slope: Array = gate * (1 + alpha * x * (1 - gate))
    return slope


def _mish_slope(xp: Any, x: Array) -> Array:
    gate = xp.tanh(xp.logaddexp(x, xp.zeros_like(x)))
    slope: Array = gate + x * _sigmoid(x) * (1 - gate * gate)
    return slope


def _exponential_slope(xp: Any, x: Array, alpha: float, width: float = 1) -> Array:
    """1 where x > 0, else α·e^(x/width)."""
    slope: Array = xp.where(x > 0, 1, alpha * xp.exp(xp.minimum(x, 0) / width))
    return slope


_of_result = partial(function_rule, of=result)

_of_result("Relu", 14, "[x > 0]", lambda xp, y, a: y > 0)
_of_result("Sigmoid", 13, "y·(1 − y)", lambda xp, y, a: y * (1 - y))
_of_result("Tanh", 13, "(1 − y²)", lambda xp, y, a: (1 - y) * (1 + y))
_of_result("Softplus", 22, "(1 − e⁻ʸ)", lambda xp, y, a: -xp.expm1(-y))
_of_result(
    "HardSigmoid",
    22,
    "α·[0 < y < 1]",
    lambda xp, y, a: xp.where((y > 0) & (y < 1), a("alpha"), xp.zeros_like(y)),
)
function_rule(
    "LeakyRelu", 16, "1, or α where x < 0", lambda xp, x, a: xp.where(x < 0, a("alpha"), xp.ones_like(x))
)
function_rule("ThresholdedRelu", 22, "[x > α]", lambda xp, x, a: x > a("alpha"))
function_rule("Shrink", 9, "[|x| > λ]", lambda xp, x, a: xp.abs(x) > a("lambd"))
function_rule("Softsign", 22, "1/(1 + |x|)²", lambda xp, x, a: 1 / (1 + xp.abs(x)) ** 2)
function_rule("Elu", 22, "1, or α·eˣ where x < 0", lambda xp, x, a: _exponential_slope(xp, x, a("alpha")))
function_rule(
    "Selu",
    22,
    "γ, or γ·α·eˣ where x < 0",
    lambda xp, x, a: a("gamma") * _exponential_slope(xp, x, a("alpha")),
)
function_rule(
    "Celu", 28, "1, or e^(x/α) where x < 0", lambda xp, x, a: _exponential_slope(xp, x, 1, a("alpha"))
)
function_rule(
    "HardSwish",
    22,
    "(x/3 + 1/2), 0 below −3, 1 above 3",
    lambda xp, x, a: xp.where(xp.abs(x) < 3, x / 3 + 0.5, xp.astype(x > 0, x.dtype)),
)
function_rule("Swish", 24, "s·(1 + αx·(1 − s)), s = σ(αx)", lambda xp, x, a: _swish_slope(x, a("alpha")))
function_rule("Mish", 22, "(w + x·σ(x)·(1 − w²)), w = tanh(softplus(x))", lambda xp, x, a: _mish_slope(xp, x))


# Experiments of ONNX's first versions, which onnxruntime still runs up to opset 9.
function_rule(
    "ParametricSoftplus", 1, "α·β·σ(βx)", lambda xp, x, a: a("alpha") * a("beta") * _sigmoid(a("beta") * x)
)
function_rule(
    "ScaledTanh",
    1,
    "α·β·(1 − tanh²(βx))",
    lambda xp, x, a: a("alpha") * a("beta") * (1 - xp.tanh(a("beta") * x) ** 2),
)


@register("SwiGLU", slots=(0, 1), record=all_inputs)
def swiglu(step: Step, g: Array) -> Cotangents:
    """g·b·swish′(a) and g·swish(a). ONNX SwiGLU-28."""
    a, b, alpha = step.value(0), step.value(1), step.number("alpha")
    return (g * b * _swish_slope(a, alpha), g * a * _sigmoid(alpha * a))


def _gelu_needs(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    return (*node.inputs, *(node.outputs if node.attrs["approximate"] == "none" else ()))


@register("Gelu", record=_gelu_needs)
def gelu(step: Step, g: Array) -> Cotangents:
    """g·(Φ(x) + x·φ(x)), Φ and φ the normal distribution and density; or the tanh form's own. ONNX Gelu-20."""
    xp = g.__array_namespace__()
    x = step.value(0)
    if step.attr("approximate") == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        t = xp.tanh(scale * (x + cubic * x**3))
        return (g * (1 + t + x * (1 - t * t) * scale * (1 + 3 * cubic * x * x)) / 2,)
    density = xp.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return (g * (_normal_distribution(x, step.result, density) + x * density),)


def _normal_distribution(x: Array, y: Array, density: Array) -> Array:
    """Φ(x), from y = x·Φ(x); and near 0, where that says little, ½ + φ(x)·(x + x³/3 + x⁵/(3·5) + …).

    Source: Abramowitz & Stegun, 26.2.11; below ½ twelve terms leave 10⁻¹⁷.
    """
    xp = x.__array_namespace__()
    near = xp.abs(x) < 0.5
    small = xp.where(near, x, 0)
    total = term = small
    for odd in range(3, 25, 2):
        term = term * small * small / odd
        total = total + term
    distribution: Array = xp.where(near, 0.5 + density * total, y / xp.where(near, 1, x))
    return distribution


@register("PRelu", slots=(0, 1), record=all_inputs)
def prelu(step: Step, g: Array) -> Cotangents:
    """Where x < 0, g·slope and g·x; elsewhere g and 0. ONNX PRelu-16."""
    xp = g.__array_namespace__()
    x = step.value(0)
    return (
        xp.where(x < 0, g * step.value(1), g) if 0 in step.wanted else None,
        sum_to(g * xp.minimum(x, 0), step.shape(1)) if 1 in step.wanted else None,
    )


def _clip_needs(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    return (node.output, *filter(None, node.inputs[1:]))


def _bound(step: Step, name: str) -> float | Array:
    """A bound of a Clip, also if it is computed at run time."""
    return step.number(name) if name in step.node.attrs else step.value(("min", "max").index(name) + 1)


@register("Clip", slots=(0, 1, 2), record=_clip_needs)
def clip(step: Step, g: Array) -> Cotangents:
    """g·[min < x < max]; the rest is the bounds'. ONNX Clip-13."""
    xp = g.__array_namespace__()
    y = step.result
    low, high = (_bound(step, name) for name in ("min", "max"))
    above, below = y >= high, y <= low
    return (
        xp.where(above | below, 0, g),
        sum_to(xp.where(below & ~above, g, 0), step.shape(1)) if 1 in step.wanted else None,
        sum_to(xp.where(above, g, 0), step.shape(2)) if 2 in step.wanted else None,
    )


@register("Softmax", record=result)
def softmax(step: Step, g: Array) -> Cotangents:
    """y·(g − Σ g·y) along the axis, or over all axes from it on before opset 13. ONNX Softmax-13."""
    xp = g.__array_namespace__()
    y = step.result
    y = xp.where(xp.isnan(y), 0, y)  # of a row that is masked throughout
    return (y * (g - xp.sum(g * y, axis=_axes(step, y), keepdims=True)),)


@register("LogSoftmax", record=result)
def log_softmax(step: Step, g: Array) -> Cotangents:
    """g − eʸ·Σ g along the axis, or over all axes from it on before opset 13. ONNX LogSoftmax-13."""
    xp = g.__array_namespace__()
    y = step.result
    return (g - xp.exp(y) * xp.sum(g, axis=_axes(step, y), keepdims=True),)


def _axes(step: Step, y: Array) -> tuple[int, ...]:
    axis = int(step.number("axis")) % y.ndim
    return tuple(range(axis, y.ndim)) if step.attr("flattened") else (axis,)


@rule("rectify", record=nothing)
def rectify(step: Step, g: Array) -> Cotangents:
    """max(g, 0), whatever the activation was (Zeiler & Fergus 2014, 2.1)."""
    xp = g.__array_namespace__()
    return (xp.maximum(g, 0),)


def _guided_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    return _clip_needs(node, wanted) if node.op == "Clip" else (node.output,)


@rule("guided", record=_guided_needs)
def guided(step: Step, g: Array) -> Cotangents:
    """max(g, 0) where the activation is above 0 and below its upper bound: Springenberg et al. (2015)."""
    xp = g.__array_namespace__()
    passed = step.result > 0
    if step.node.op == "Clip":
        passed = passed & (step.result < _bound(step, "max"))
    return (xp.maximum(g, 0) * passed,)
