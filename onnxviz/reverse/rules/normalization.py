"""Normalisation."""

from __future__ import annotations

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import Cotangents, Step, constant_inputs, first_input, register


@register("BatchNormalization", restriction=constant_inputs(scale=1, B=2, input_mean=3, input_var=4))
def batch_normalization(step: Step, g: Array) -> Cotangents:
    """Scale by γ/√(σ² + ε); the shift plays no part. ONNX BatchNormalization-15, in inference."""
    xp = g.__array_namespace__()
    factor = step.value(1) / xp.sqrt(step.value(4) + step.number("epsilon"))
    return (g * xp.reshape(xp.astype(factor, g.dtype), (-1, *(1 for _ in g.shape[2:]))),)


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
