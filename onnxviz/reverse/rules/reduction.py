"""Reductions, running sums and products, and the losses of the standard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from onnxviz.model.graph import Node
from onnxviz.model.pulls import reduced_axes
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.elementwise import inverse
from onnxviz.reverse.rules.registry import Cotangents, Step, all_inputs, parameters, register

_Axes: TypeAlias = tuple[int, ...]


def _spread(step: Step, small: Array, axes: _Axes) -> Array:
    """A reduced tensor over every reduced position."""
    xp = small.__array_namespace__()
    shape = step.shape(0)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    spread: Array = xp.broadcast_to(xp.reshape(small, kept), shape)
    return spread


def _axes(step: Step) -> _Axes:
    """The reduced axes, also if they are computed at run time."""
    node = step.node
    if "axes" not in node.attrs and any(node.inputs[1:]):
        node = replace(node, attrs={**node.attrs, "axes": tuple(int(a) for a in step.value(1))})
    return reduced_axes(node, len(step.shape(0)))


@register("ReduceSum", record=parameters)
def reduce_sum(step: Step, g: Array) -> Cotangents:
    """The same to every position. ONNX ReduceSum-13."""
    return (_spread(step, g, _axes(step)),)


@register("ReduceMean", record=parameters)
def reduce_mean(step: Step, g: Array) -> Cotangents:
    """An equal share to every position. ONNX ReduceMean-18."""
    shape, axes = step.shape(0), _axes(step)
    return (_spread(step, g / math.prod(shape[axis] for axis in axes), axes),)


def _operands_and_result(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    return (*filter(None, node.inputs), node.output)


def _reduction_rule(
    op: str, since: int, words: str, derivative: Callable[[Any, Array, Array, _Axes], Array]
) -> None:
    """Register g times ``derivative``, of the input, the output spread over it and the axes, as a rule."""

    def pull_back(step: Step, g: Array) -> Cotangents:
        xp, axes = g.__array_namespace__(), _axes(step)
        slope = derivative(xp, step.value(0), _spread(step, step.result, axes), axes)
        return (_spread(step, g, axes) * slope,)

    pull_back.__doc__ = f"g·{words} to every position. ONNX {op}-{since}."
    pull_back.__name__ = op.lower()
    register(op, record=_operands_and_result)(pull_back)


def _together(function: Callable[[Array], Array], x: Array, axes: _Axes) -> Array:
    """Apply a function of the last axis to ``axes`` as one, in scan order."""
    xp = x.__array_namespace__()
    order = (*(axis for axis in range(x.ndim) if axis not in axes), *axes)
    moved = xp.permute_dims(x, order)
    lead = moved.shape[: x.ndim - len(axes)]
    done = xp.reshape(
        function(xp.reshape(moved, (*lead, math.prod(x.shape[axis] for axis in axes)))), moved.shape
    )
    back: Array = xp.permute_dims(done, tuple(order.index(axis) for axis in range(x.ndim)))
    return back


def _first_largest(x: Array) -> Array:
    """Which value of the last axis is the first of the largest."""
    xp = x.__array_namespace__()
    where: Array = xp.arange(x.shape[-1]) == xp.argmax(x, axis=-1, keepdims=True)
    return where


def _product_before(x: Array) -> Array:
    """The product of all values before each, along the last axis."""
    xp = x.__array_namespace__()
    product: Array = xp.cumulative_prod(x[..., :-1], axis=-1, include_initial=True)
    return product


def _product_of_others(x: Array) -> Array:
    """The product of all values but one, for each along the last axis; zeros do no harm."""
    xp = x.__array_namespace__()
    product: Array = _product_before(x) * xp.flip(_product_before(xp.flip(x, axis=-1)), axis=-1)
    return product


_reduction_rule(
    "ReduceMax", 20, "[x is the first largest]", lambda xp, x, y, axes: _together(_first_largest, x, axes)
)
_reduction_rule(
    "ReduceMin", 20, "[x is the first smallest]", lambda xp, x, y, axes: _together(_first_largest, -x, axes)
)
_reduction_rule(
    "ReduceProd", 18, "∏ of the others", lambda xp, x, y, axes: _together(_product_of_others, x, axes)
)
_reduction_rule("ReduceL1", 18, "sign x", lambda xp, x, y, axes: xp.sign(x))
_reduction_rule("ReduceL2", 18, "x/y", lambda xp, x, y, axes: x * inverse(y))
_reduction_rule("ReduceLogSum", 28, "e⁻ʸ", lambda xp, x, y, axes: xp.exp(-y))
_reduction_rule("ReduceLogSumExp", 28, "e^(x − y)", lambda xp, x, y, axes: xp.exp(x - y))
_reduction_rule("ReduceSumSquare", 18, "2x", lambda xp, x, y, axes: 2 * x)


def _axis(step: Step) -> int:
    """The axis of a running sum, also if it is computed at run time."""
    if "axis" in step.node.attrs:
        return int(step.number("axis"))
    axis = step.value(1)
    return int(axis.__array_namespace__().reshape(axis, (-1,))[0])


@register("CumSum", record=parameters)
def cumulative_sum(step: Step, g: Array) -> Cotangents:
    """The sum from the other end. ONNX CumSum-14."""
    xp = g.__array_namespace__()
    axis = _axis(step)
    g = _turned(g, axis, not step.attr("reverse"))
    if step.attr("exclusive"):
        g = xp.cumulative_sum(g[..., :-1], axis=-1, include_initial=True)
    else:
        g = xp.cumulative_sum(g, axis=-1)
    return (_turned_back(g, axis, not step.attr("reverse")),)


@register("CumProd", record=all_inputs)
def cumulative_product(step: Step, g: Array) -> Cotangents:
    """The product before a value times Sⱼ = gⱼ + xⱼ₊₁·Sⱼ₊₁; zeros do no harm. ONNX CumProd-26."""
    xp = g.__array_namespace__()
    axis, reverse = _axis(step), bool(step.attr("reverse"))
    x, g = _turned(step.value(0), axis, reverse), _turned(g, axis, reverse)
    if step.attr("exclusive"):
        g = xp.concat([g[..., 1:], xp.zeros_like(g[..., :1])], axis=-1)
    sums = [g[..., -1]]
    for j in reversed(range(g.shape[-1] - 1)):
        sums.append(g[..., j] + x[..., j + 1] * sums[-1])
    return (_turned_back(_product_before(x) * xp.stack(sums[::-1], axis=-1), axis, reverse),)


def _turned(x: Array, axis: int, reverse: bool) -> Array:
    """``axis`` last, and turned round if ``reverse``."""
    xp = x.__array_namespace__()
    x = xp.moveaxis(x, axis, -1)
    turned: Array = xp.flip(x, axis=-1) if reverse else x
    return turned


def _turned_back(x: Array, axis: int, reverse: bool) -> Array:
    xp = x.__array_namespace__()
    back: Array = xp.moveaxis(xp.flip(x, axis=-1) if reverse else x, -1, axis)
    return back


def _shares(step: Step, g: Array, x: Array) -> Array:
    """What a negative log-likelihood loss takes from each log-probability (N, C, …), times ``g``."""
    xp = g.__array_namespace__()
    target = xp.expand_dims(step.value(1), axis=1)
    line = (-1, *(1 for _ in x.shape[2:]))
    shares = xp.astype(target == xp.reshape(xp.arange(x.shape[1]), line), g.dtype)
    if "ignore_index" in step.node.attrs:
        shares = xp.where(target == int(step.number("ignore_index")), 0, shares)
    if len(step.node.inputs) > 2 and step.node.inputs[2]:
        shares = shares * xp.reshape(step.value(2), line)
    if step.attr("reduction") == "mean":
        shares = shares * inverse(xp.sum(shares))
    answer: Array = -shares * (xp.expand_dims(g, axis=1) if step.attr("reduction") == "none" else g)
    return answer


@register("NegativeLogLikelihoodLoss", record=all_inputs)
def negative_log_likelihood_loss(step: Step, g: Array) -> Cotangents:
    """−g times each target's weight. ONNX NegativeLogLikelihoodLoss-22."""
    return (_shares(step, g, step.value(0)),)


@register("SoftmaxCrossEntropyLoss", outputs=None, record=all_inputs)
def softmax_cross_entropy_loss(step: Step, g: Array) -> Cotangents:
    """Through the log-probabilities, its second output, to the scores. ONNX SoftmaxCrossEntropyLoss-13."""
    xp = g.__array_namespace__()
    x = step.value(0)
    g = _shares(step, g, x) if step.index == 0 else g
    powers = xp.exp(x - xp.max(x, axis=1, keepdims=True))
    softmax = powers / xp.sum(powers, axis=1, keepdims=True)
    return (g - softmax * xp.sum(g, axis=1, keepdims=True),)
