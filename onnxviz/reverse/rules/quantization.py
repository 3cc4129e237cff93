"""Quantised operators: straight through, with dequantised weights.

One convention holds for all: a cotangent is by the tensor's own value, a quantised tensor's by its whole numbers as
if they were real. So QuantizeLinear divides by its scale, DequantizeLinear multiplies by its own, ConvInteger and
MatMulInteger know of none, and any other operator in between (Cast, Reshape, MaxPool …) has its usual rule.

Rounding counts as the identity, and so does saturation, but for one case: where the whole numbers begin at zero and
the real ones may not, a quantiser has folded a ReLU into the operator (``rectifies``, see `normalize`). Then the rule
begins with that ReLU's; `folded` puts a method's policy in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from onnxviz.model.graph import Node
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.convolution import pull_convolution
from onnxviz.reverse.rules.linear import matmul
from onnxviz.reverse.rules.registry import RULES, Cotangents, Rule, Step, first_input, register

STRAIGHT = (
    "straight through: rounding and saturation count as the identity, where the latter is not a folded ReLU"
)

FOLDS = ("QuantizeLinear", "QLinearConv", "QLinearMatMul")
"""Operators into which a ReLU can be folded."""


def _present(node: Node, numbers: Iterable[int]) -> list[str]:
    """The names of some inputs, without those that are left out, and of the output if a ReLU is folded into it."""
    found = [node.inputs[i] for i in numbers if i < len(node.inputs) and node.inputs[i]]
    return [*found, node.output] if node.attrs.get("rectifies") else found


def _along(step: Step, parameter: Array, x: tuple[int, ...]) -> Array:
    """A scale or zero point, stretched over a tensor of shape ``x``: one for all, for an axis's index, or a block."""
    if parameter.size == 1:
        return parameter.reshape((1,) * len(x))
    axis = int(step.number("axis")) % len(x)
    if parameter.ndim < 2:
        return parameter.reshape(-1, *(1 for _ in x[axis + 1 :]))
    return parameter.repeat(int(step.number("block_size")), axis=axis)[
        (slice(None),) * axis + (slice(x[axis]),)
    ]


def _rectifies(node: Node) -> bool:
    return bool(node.attrs["rectifies"])


def _unrectified(step: Step) -> Array:
    """What has the sign that a folded ReLU's input, or its output, had."""
    if step.node.op == "QuantizeLinear":
        return step.value(0)
    q = step.result.astype(np.int32)
    return q - np.iinfo(step.result.dtype).min


def _through_relu(step: Step, g: Array) -> Array:
    xp = g.__array_namespace__()
    return xp.where(_unrectified(step) > 0, g, 0) if _rectifies(step.node) else g


def folded(policy: Rule, op: str) -> Rule:
    """The rule of ``op`` with ``policy`` for the ReLU that a quantiser folded into it."""
    exact = RULES[op]

    def pull_back(step: Step, g: Array) -> Cotangents:
        plain = replace(step.node, attrs={**step.node.attrs, "rectifies": 0})
        (g,) = policy.pull_back(replace(step, read_result=lambda: _unrectified(step)), g)  # type: ignore[assignment]
        return exact.pull_back(replace(step, node=plain), g)

    pull_back.__doc__ = policy.pull_back.__doc__
    return replace(exact, name=policy.name, pull_back=pull_back)


def _quantize_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    return node.inputs[:2] if _rectifies(node) else node.inputs[1:2]


@register("QuantizeLinear", record=_quantize_needs, approximation=STRAIGHT)
def quantize_linear(step: Step, g: Array) -> Cotangents:
    """g over the scale, behind the derivative of a folded ReLU. ONNX QuantizeLinear-23."""
    return (_through_relu(step, g) / _along(step, step.value(1).astype(g.dtype), g.shape),)


@register("DynamicQuantizeLinear", record=first_input, approximation=STRAIGHT)
def dynamic_quantize_linear(step: Step, g: Array) -> Cotangents:
    """g over the scale that the values gave; scale and zero point count as constants. ONNX DynamicQuantizeLinear-11.

    That is exact but for rounding: a larger scale makes smaller whole numbers, and what multiplies them by it
    later makes up for that.
    """
    xp = g.__array_namespace__()
    x = step.value(0)
    scale = (xp.maximum(xp.max(x), 0) - xp.minimum(xp.min(x), 0)) / 255
    return (xp.where(scale > 0, g / xp.where(scale > 0, scale, 1), 0),)


def _dequantize_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    return _present(node, {1} if 0 in wanted else {0, 2})


@register("DequantizeLinear", slots=(0, 1), record=_dequantize_needs, approximation=STRAIGHT)
def dequantize_linear(step: Step, g: Array) -> Cotangents:
    """g times the scale. To the scale of constant numbers g times these; of others none. ONNX DequantizeLinear-23.

    A computed scale goes with the numbers that were made with it, and cancels out (see `dynamic_quantize_linear`).
    """
    gx = gs = None
    if 0 in step.wanted:
        gx = g * _along(step, step.value(1).astype(g.dtype), g.shape)
    if 1 in step.wanted:
        shape = step.shape(1)
        gs = np.zeros(shape, g.dtype) if 0 in step.wanted else _gathered(step, g * _centred(step, g), shape)
    return (gx, gs)


def _centred(step: Step, g: Array) -> Array:
    """A DequantizeLinear's whole numbers less their zero point, in the type of ``g``."""
    values = step.value(0).astype(g.dtype)
    if len(step.node.inputs) > 2 and step.node.inputs[2]:
        values = values - _along(step, step.value(2).astype(g.dtype), values.shape)
    return values


def _gathered(step: Step, g: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of `_along`."""
    if math.prod(shape) == 1:
        return np.asarray(g.sum()).reshape(shape)
    axis = int(step.number("axis")) % g.ndim
    if len(shape) > 1:
        starts = np.arange(shape[axis]) * int(step.number("block_size"))
        blocks: Array = np.add.reduceat(g, starts, axis=axis)
        return blocks
    summed: Array = g.sum(axis=tuple(a for a in range(g.ndim) if a != axis))
    return summed


def _number(step: Step, index: int, g: Array, axis: int, rank: int) -> Array:
    """A scale or zero point (0 if there is none); several lie along ``axis`` of ``rank`` axes."""
    if len(step.node.inputs) <= index or not step.node.inputs[index]:
        return np.zeros((1,) * rank, g.dtype)
    value = step.value(index).astype(g.dtype)
    if value.ndim > 1:
        return value
    return value.reshape([-1 if a == axis % rank else 1 for a in range(rank)])


def _weights(step: Step, g: Array, weight: int, zero: int) -> Array:
    value = step.value(weight).astype(g.dtype)
    return value - _number(step, zero, g, 0, value.ndim)


@register("ConvInteger", record=lambda node, wanted: _present(node, {1, 3}))
def conv_integer(step: Step, g: Array) -> Cotangents:
    """The transposed convolution, by whole numbers as if they were real. ONNX ConvInteger-10."""
    return (pull_convolution(step, g, _weights(step, g, 1, 3)),)


@register(
    "QLinearConv",
    record=lambda node, wanted: _present(node, {1, 3, 4, 5, 6}),
    approximation=f"{STRAIGHT}; weights dequantised",
)
def qlinear_conv(step: Step, g: Array) -> Cotangents:
    """The transposed convolution with dequantised weights, by both tensors' scales. ONNX QLinearConv-10."""
    g = _through_relu(step, g)
    weight = _weights(step, g, 3, 5)
    rank = weight.ndim
    scale = _number(step, 4, g, 0, rank) * _number(step, 1, g, 0, rank) / _number(step, 6, g, 0, rank)
    return (pull_convolution(step, g, weight * scale),)


def _product(step: Step, g: Array, factors: tuple[int, int], zeros: tuple[int, int]) -> Cotangents:
    """A MatMul's cotangents for the inputs ``factors``, whose zero points are the inputs ``zeros``."""

    def factor(side: int) -> Array:
        value = step.value(factors[side]).astype(g.dtype)
        return value - _number(step, zeros[side], g, side - 2, value.ndim)

    plain = replace(
        step,
        wanted=frozenset(factors.index(i) for i in step.wanted),
        shapes=tuple(step.shape(i) for i in factors),
        read_input=factor,
    )
    answers = dict(zip(factors, matmul.pull_back(plain, g), strict=True))
    return tuple(answers.get(i) for i in range(len(step.node.inputs)))


def _integer_product_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """The other factor and its zero point."""
    return _present(node, {j for i in wanted for j in (1 - i, 3 - i)})


@register("MatMulInteger", slots=(0, 1), record=_integer_product_needs)
def matmul_integer(step: Step, g: Array) -> Cotangents:
    """The products of MatMul, by whole numbers as if they were real. ONNX MatMulInteger-10."""
    return _product(step, g, (0, 1), (2, 3))


def _quantized_product_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """All scales, and the other factor with its zero point."""
    return _present(node, {1, 4, 6} | {j for i in wanted for j in (3 - i, 5 - i)})


@register("QLinearMatMul", slots=(0, 3), record=_quantized_product_needs, approximation=STRAIGHT)
def qlinear_matmul(step: Step, g: Array) -> Cotangents:
    """The products of MatMul, times the factors' scales over the output's. ONNX QLinearMatMul-21."""
    g, rank = _through_relu(step, g), g.ndim
    a, b, y = (_number(step, i, g, axis, rank) for i, axis in ((1, -2), (4, -1), (6, -2)))
    return _product(step, g * (a * b / y), (0, 3), (2, 5))
