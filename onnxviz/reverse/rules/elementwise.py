"""Elementwise arithmetic, with broadcasting."""

from __future__ import annotations

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import Cotangents, Step, other_inputs, register, sum_to


@register("Add", "Sum", slots=None)
def add(step: Step, g: Array) -> Cotangents:
    """The same to every operand. ONNX Add-14, Sum-13."""
    return tuple(sum_to(g, step.shape(i)) if i in step.wanted else None for i in range(len(step.node.inputs)))


@register("Sub", slots=None)
def sub(step: Step, g: Array) -> Cotangents:
    """g and −g. ONNX Sub-14."""
    return (
        sum_to(g, step.shape(0)) if 0 in step.wanted else None,
        sum_to(-g, step.shape(1)) if 1 in step.wanted else None,
    )


@register("Mul", slots=None, record=other_inputs)
def mul(step: Step, g: Array) -> Cotangents:
    """Each operand gets g times the other. ONNX Mul-14."""
    return (
        sum_to(g * step.value(1), step.shape(0)) if 0 in step.wanted else None,
        sum_to(g * step.value(0), step.shape(1)) if 1 in step.wanted else None,
    )


def _div_needs(node: object, wanted: frozenset[int]) -> tuple[str, ...]:
    inputs: tuple[str, ...] = node.inputs  # type: ignore[attr-defined]
    return inputs if 1 in wanted else inputs[1:]


@register("Div", slots=None, record=_div_needs)
def div(step: Step, g: Array) -> Cotangents:
    """g/b and −g·a/b². ONNX Div-14."""
    xp = g.__array_namespace__()
    # Nothing comes of nothing, also where a window leaves the tensor and the divisor reads as 0.
    b = xp.where(g == 0, 1, step.value(1))
    return (
        sum_to(g / b, step.shape(0)) if 0 in step.wanted else None,
        sum_to(-g * step.value(0) / (b * b), step.shape(1)) if 1 in step.wanted else None,
    )


@register("Identity", "Dropout")
def identity(step: Step, g: Array) -> Cotangents:
    """g itself: copies, and Dropout in inference. ONNX Identity-1, Dropout-13."""
    return (g,)


_REAL_TYPES = (1, 10, 11, 16)
"""FLOAT, FLOAT16, DOUBLE and BFLOAT16 of TensorProto.DataType."""


@register("Cast")
def cast(step: Step, g: Array) -> Cotangents:
    """g itself; 0 through whole numbers and truth values, which are steps. ONNX Cast-13."""
    xp = g.__array_namespace__()
    return (g if step.attr("to") in _REAL_TYPES else xp.zeros_like(g),)
