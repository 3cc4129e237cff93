"""Normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxviz.model.graph import Node, Shape
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.elementwise import inverse
from onnxviz.reverse.rules.registry import Cotangents, Step, first_input, register, sum_to


@dataclass(frozen=True)
class _Standard:
    """z = (x − μ)·r, r = 1/√(σ² + ε), with means over ``axes``; without ``centred`` μ is 0."""

    z: Array
    r: Array
    axes: tuple[int, ...]
    centred: bool

    @classmethod
    def of(cls, x: Array, axes: tuple[int, ...], epsilon: float, *, centred: bool = True) -> _Standard:
        """Work out z and r."""
        xp = x.__array_namespace__()
        x = x - xp.mean(x, axis=axes, keepdims=True) if centred else x
        r = inverse(xp.sqrt(xp.mean(x * x, axis=axes, keepdims=True) + epsilon))
        return cls(x * r, r, axes, centred)

    def pull_back(self, g: Array) -> Array:
        """The cotangent of x for one of z: r·(g − mean g − z·mean(g·z)), mean g only where centred."""
        xp = g.__array_namespace__()
        inner: Array = g - self.z * xp.mean(g * self.z, axis=self.axes, keepdims=True)
        if self.centred:
            inner = inner - xp.mean(g, axis=self.axes, keepdims=True)
        return self.r * inner


def _scaled(step: Step, g: Array, standard: _Standard, line: Shape | None = None) -> Cotangents:
    """Of y = z·scale + bias. ``line``: the shape that lines scale and bias up with z, if their own does not."""
    xp = g.__array_namespace__()
    answers: list[Array | None] = [None] * len(step.node.inputs)
    if 0 in step.wanted:
        scale = step.value(1) if line is None else xp.reshape(step.value(1), line)
        answers[0] = standard.pull_back(g * scale)
    if 1 in step.wanted:
        answers[1] = sum_to(g * standard.z, line or step.shape(1))
    if 2 in step.wanted:
        answers[2] = sum_to(g, line or step.shape(2))
    return tuple(a if a is None else xp.reshape(a, step.shape(i)) for i, a in enumerate(answers))


def _data_and_scale(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    return node.inputs[:2]


def _per_channel(g: Array) -> Shape:
    """The shape that lines one value a channel up with ``g``: (N, C, …)."""
    return (g.shape[1], *(1 for _ in g.shape[2:]))


def _batch_needs(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    if node.attrs.get("training_mode"):
        return node.inputs[:2]
    return node.inputs if wanted & {1, 4} else node.inputs[1:]


@register("BatchNormalization", slots=(0, 1, 2, 3, 4), record=_batch_needs)
def batch_normalization(step: Step, g: Array) -> Cotangents:
    """Scale by γ/√(σ² + ε); in training, through the batch's own μ and σ too. ONNX BatchNormalization-15."""
    xp = g.__array_namespace__()
    epsilon, line = step.number("epsilon"), _per_channel(g)
    if step.node.attrs.get("training_mode"):
        standard = _Standard.of(step.value(0), (0, *range(2, g.ndim)), epsilon)
        answers = _scaled(step, g, standard, line)
        return (*answers[:3], *(xp.zeros(step.shape(i), dtype=g.dtype) for i in (3, 4)))
    if step.node.attrs.get("spatial") == 0:  # before opset 9: a value for every position
        line = g.shape[1:]
    scale, mean, variance = (xp.reshape(xp.astype(step.value(i), g.dtype), line) for i in (1, 3, 4))
    rate = 1 / xp.sqrt(variance + epsilon)
    back = g * (scale * rate)
    found = {0: back, 2: g, 3: -back}
    if step.wanted & {1, 4}:
        z = (step.value(0) - mean) * rate
        found |= {1: g * z, 4: back * z * rate / -2}
    return tuple(
        None
        if i not in step.wanted
        else found[i]
        if i == 0
        else xp.reshape(sum_to(found[i], line), step.shape(i))
        for i in range(5)
    )


@register("InstanceNormalization", slots=(0, 1, 2), record=_data_and_scale)
def instance_normalization(step: Step, g: Array) -> Cotangents:
    """Through each map's mean and deviation. ONNX InstanceNormalization-22."""
    standard = _Standard.of(step.value(0), tuple(range(2, g.ndim)), step.number("epsilon"))
    return _scaled(step, g, standard, _per_channel(g))


@register("GroupNormalization", slots=(0, 1, 2), record=_data_and_scale)
def group_normalization(step: Step, g: Array) -> Cotangents:
    """Through each group's mean and deviation. ONNX GroupNormalization-21; -18 has one scale a group."""
    xp = g.__array_namespace__()
    n, channels, *sizes = g.shape
    groups = int(step.number("num_groups"))
    apart = (n, groups, channels // groups, *sizes)
    scales = step.full_shape(1)[0]
    x = xp.reshape(step.value(0), apart)
    standard = _Standard.of(x, tuple(range(2, x.ndim)), step.number("epsilon"))
    line = (groups, scales // groups, *(1 for _ in sizes))
    return _scaled(step, xp.reshape(g, apart), standard, line)


@register("LayerNormalization", slots=(0, 1, 2), outputs=None, record=_data_and_scale)
def layer_normalization(step: Step, g: Array) -> Cotangents:
    """Through the mean and deviation over the axes from ``axis`` on. ONNX LayerNormalization-17."""
    xp = g.__array_namespace__()
    x = step.value(0)
    axes = tuple(range(int(step.number("axis")) % x.ndim, x.ndim))
    standard = _Standard.of(x, axes, step.number("epsilon"))
    if step.index == 0:
        return _scaled(step, g, standard)
    count = math.prod(x.shape[axis] for axis in axes)
    # The further outputs are μ and r: dr/dx is −r²·z over the number of values.
    slope = xp.ones_like(x) if step.index == 1 else -standard.r * standard.r * standard.z
    zeros = (xp.zeros(step.shape(i), dtype=g.dtype) for i in range(1, len(step.node.inputs)))
    return (g * slope / count, *zeros)


@register("RMSNormalization", slots=(0, 1), record=_data_and_scale)
def rms_normalization(step: Step, g: Array) -> Cotangents:
    """Through the root of the mean square over the axes from ``axis`` on. ONNX RMSNormalization-23."""
    x = step.value(0)
    axes = tuple(range(int(step.number("axis")) % x.ndim, x.ndim))
    return _scaled(step, g, _Standard.of(x, axes, step.number("epsilon"), centred=False))


@register("MeanVarianceNormalization", record=first_input)
def mean_variance_normalization(step: Step, g: Array) -> Cotangents:
    """Through the mean and deviation over ``axes``. ONNX MeanVarianceNormalization-13."""
    axes = tuple(axis % g.ndim for axis in step.ints("axes"))
    if not step.attr("normalize_variance"):  # before opset 9
        xp = g.__array_namespace__()
        return (g - xp.mean(g, axis=axes, keepdims=True),)
    # The operator adds 10⁻⁹ to the deviation; its square in the variance is the same to 10⁻⁹.
    return (_Standard.of(step.value(0), axes, 1e-18).pull_back(g),)


@register("LpNormalization", record=first_input)
def lp_normalization(step: Step, g: Array) -> Cotangents:
    """(g − n′·Σ g·y)/n, n the norm along the axis and n′ its derivative. ONNX LpNormalization-22."""
    xp = g.__array_namespace__()
    x, axis = step.value(0), int(step.number("axis"))
    if step.attr("p") == 1:
        rate, slope = inverse(xp.sum(xp.abs(x), axis=axis, keepdims=True)), xp.sign(x)
    else:
        rate = inverse(xp.sqrt(xp.sum(x * x, axis=axis, keepdims=True)))
        slope = x * rate
    return (rate * (g - slope * xp.sum(g * x * rate, axis=axis, keepdims=True)),)


@register("LRN", record=first_input)
def lrn(step: Step, g: Array) -> Cotangents:
    """The exact derivative of y = x·s^−β, s = bias + α/size·Σx² over neighbouring channels. ONNX LRN-13."""
    xp = g.__array_namespace__()
    x = step.value(0)
    size = int(step.number("size"))
    alpha, beta = step.number("alpha") / size, step.number("beta")
    below, above = (size - 1) // 2, size // 2
    s = step.number("bias") + alpha * _neighbours(x * x, below, above)
    s = xp.where(s > 0, s, 1)  # with bias 0, where a window leaves the tensor
    inner = _neighbours(g * x * s ** (-beta - 1), above, below)
    answer: Array = g * s**-beta - 2 * alpha * beta * x * inner
    return (answer,)


def _neighbours(x: Array, below: int, above: int) -> Array:
    """Sum over the channels c − below … c + above."""
    xp = x.__array_namespace__()
    n, c = x.shape[:2]
    low = xp.zeros((n, below, *x.shape[2:]), dtype=x.dtype)
    high = xp.zeros((n, above, *x.shape[2:]), dtype=x.dtype)
    padded = xp.concat([low, x, high], axis=1)
    total: Array = padded[:, :c]
    for shift in range(1, below + above + 1):
        total = total + padded[:, shift : shift + c]
    return total
