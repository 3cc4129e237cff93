"""Activations: the exact derivatives, and the policies that deconvnet and guided backpropagation put in place."""

from __future__ import annotations

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import (
    Cotangents,
    Step,
    first_input,
    known_attributes,
    nothing,
    register,
    result,
    rule,
)


@register("Relu", record=result)
def relu(step: Step, g: Array) -> Cotangents:
    """g·[x > 0]. ONNX Relu-14."""
    return (g * (step.result > 0),)


@register("Clip", record=result, restriction=known_attributes("min", "max"))
def clip(step: Step, g: Array) -> Cotangents:
    """g·[min < x < max]. ONNX Clip-13."""
    y = step.result
    return (g * ((y > step.number("min")) & (y < step.number("max"))),)


@register("LeakyRelu", record=first_input)
def leaky_relu(step: Step, g: Array) -> Cotangents:
    """g where x ≥ 0, else α·g. ONNX LeakyRelu-16."""
    xp = g.__array_namespace__()
    return (xp.where(step.value(0) >= 0, g, g * step.number("alpha")),)


@register("Sigmoid", record=result)
def sigmoid(step: Step, g: Array) -> Cotangents:
    """g·y·(1 − y). ONNX Sigmoid-13."""
    return (g * step.result * (1 - step.result),)


@register("Tanh", record=result)
def tanh(step: Step, g: Array) -> Cotangents:
    """g·(1 − y²). ONNX Tanh-13."""
    return (g * (1 - step.result * step.result),)


@register("Softmax", record=result)
def softmax(step: Step, g: Array) -> Cotangents:
    """y·(g − Σ g·y) along the axis, or over all axes from it on before opset 13. ONNX Softmax-13."""
    xp = g.__array_namespace__()
    y = step.result
    axis = int(step.number("axis")) % y.ndim
    axes = tuple(range(axis, y.ndim)) if step.attr("flattened") else axis
    return (y * (g - xp.sum(g * y, axis=axes, keepdims=True)),)


@rule("rectify", record=nothing)
def rectify(step: Step, g: Array) -> Cotangents:
    """max(g, 0), whatever the activation was: Zeiler & Fergus (2014), 2.1."""
    xp = g.__array_namespace__()
    return (xp.maximum(g, 0),)


@rule("guided", record=result)
def guided(step: Step, g: Array) -> Cotangents:
    """max(g, 0) where the activation is above 0 and below its upper bound: Springenberg et al. (2015)."""
    xp = g.__array_namespace__()
    passed = step.result > 0
    if "max" in step.node.attrs:
        passed = passed & (step.result < step.number("max"))
    return (xp.maximum(g, 0) * passed,)
