"""Elementwise arithmetic, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

from onnxviz.model.graph import Constants, Node
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import (
    Cotangents,
    Record,
    Restriction,
    Step,
    all_inputs,
    first_input,
    other_inputs,
    register,
    result,
    sum_to,
)

Derivative: TypeAlias = Callable[[Any, Array, Callable[[str], float]], Array]
"""Of a function of one number: of its array namespace, forward values, and numeric attributes by name."""


def function_rule(
    op: str, since: int, words: str, derivative: Derivative, *, of: Record = first_input
) -> None:
    """Register g times ``derivative`` as the rule of an elementwise operator with one operand.

    Args:
        since: the version of the operator that it follows.
        words: the derivative.
        of: `first_input` or `result`, whichever the derivative is a function of.
    """

    def pull_back(step: Step, g: Array) -> Cotangents:
        value = step.result if of is result else step.value(0)
        return (g * derivative(g.__array_namespace__(), value, step.number),)

    pull_back.__doc__ = f"g·{words}. ONNX {op}-{since}."
    pull_back.__name__ = op.lower()
    register(op, record=of)(pull_back)


def inverse(d: Array) -> Array:
    """1/d, and 0 where d is 0: where there is no derivative, and where a window has left the tensor."""
    xp = d.__array_namespace__()
    answer: Array = xp.where(d == 0, 0, 1 / xp.where(d == 0, 1, d))
    return answer


def finite(d: Array) -> Array:
    """d, and 0 where it has overflowed: there is no derivative there, and 0·∞ behind a Where would not be 0."""
    xp = d.__array_namespace__()
    answer: Array = xp.where(xp.isfinite(d), d, 0)
    return answer


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


def _div_needs(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    return node.inputs if 1 in wanted else node.inputs[1:]


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


@register("Mod", slots=(0, 1), record=lambda node, wanted: (*node.inputs, node.output) if 1 in wanted else ())
def mod(step: Step, g: Array) -> Cotangents:
    """g, and −g times how often b was taken away, (a − y)/b. ONNX Mod-28."""
    xp = g.__array_namespace__()
    gb = None
    if 1 in step.wanted:
        times = xp.round((step.value(0) - step.result) * inverse(step.value(1)))
        gb = sum_to(-g * times, step.shape(1))
    return (sum_to(g, step.shape(0)) if 0 in step.wanted else None, gb)


def _pow_needs(node: Node, wanted: frozenset[int]) -> tuple[str, ...]:
    return (*node.inputs, node.output) if 1 in wanted else node.inputs


@register("Pow", slots=(0, 1), record=_pow_needs)
def pow_(step: Step, g: Array) -> Cotangents:
    """g·b·aᵇ⁻¹ and g·y·log a, the latter where a > 0. ONNX Pow-15."""
    xp = g.__array_namespace__()
    a, b = step.value(0), xp.astype(step.value(1), g.dtype)
    ga = gb = None
    if 0 in step.wanted:
        # √ and the like have no derivative at 0, which is also what is read where a window leaves the tensor.
        endless = (a == 0) & (b < 1)
        slope = b * xp.where(endless, 1, a) ** (b - 1)
        ga = sum_to(g * xp.where(endless, 0, slope), step.shape(0))
    if 1 in step.wanted:
        gb = sum_to(g * step.result * xp.log(xp.where(a > 0, a, 1)), step.shape(1))
    return (ga, gb)


@register("Max", "Min", slots=None, record=all_inputs)
def extremum(step: Step, g: Array) -> Cotangents:
    """All of g to the operand that was taken, of equal ones the first. ONNX Max-13, Min-13."""
    xp = g.__array_namespace__()
    values = [step.value(i) for i in range(len(step.node.inputs))]
    best = reduce(xp.maximum if step.node.op == "Max" else xp.minimum, values)
    answers: list[Array | None] = []
    for i, value in enumerate(values):
        answers.append(sum_to(xp.where(value == best, g, 0), step.shape(i)) if i in step.wanted else None)
        g = xp.where(value == best, 0, g)
    return tuple(answers)


@register("Mean", slots=None)
def mean(step: Step, g: Array) -> Cotangents:
    """An equal share to every operand. ONNX Mean-13."""
    count = len(step.node.inputs)
    return tuple(sum_to(g / count, step.shape(i)) if i in step.wanted else None for i in range(count))


@register("Where", slots=(1, 2), record=first_input)
def where(step: Step, g: Array) -> Cotangents:
    """To each side where the condition chose it. ONNX Where-16."""
    xp = g.__array_namespace__()
    chosen = step.value(0)
    return (
        None,
        sum_to(xp.where(chosen, g, 0), step.shape(1)) if 1 in step.wanted else None,
        sum_to(xp.where(chosen, 0, g), step.shape(2)) if 2 in step.wanted else None,
    )


@register("Identity")
def identity(step: Step, g: Array) -> Cotangents:
    """g itself. ONNX Identity-1."""
    return (g,)


def _training(node: Node, constants: Constants) -> str | None:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return None
    on = node.inputs[2] not in constants or bool(constants[node.inputs[2]])
    return "it is in training mode: its output is random" if on else None


@register("Dropout", restriction=Restriction("training_mode off", _training))
def dropout(step: Step, g: Array) -> Cotangents:
    """g itself: in inference it is a copy. ONNX Dropout-13."""
    return (g,)


# Experiments of ONNX's first versions, which onnxruntime still runs up to opset 9.
@register("Affine", "ImageScaler", "Scale")
def scaled(step: Step, g: Array) -> Cotangents:
    """The factor times g. ONNX Affine-1, ImageScaler-1, Scale-1."""
    return (g * step.number("alpha" if step.node.op == "Affine" else "scale"),)


_REAL_TYPES = (1, 10, 11, 16)
"""FLOAT, FLOAT16, DOUBLE and BFLOAT16 of TensorProto.DataType."""


@register("Cast")
def cast(step: Step, g: Array) -> Cotangents:
    """g itself; 0 through whole numbers and truth values, which are steps. ONNX Cast-13."""
    xp = g.__array_namespace__()
    return (g if step.attr("to") in _REAL_TYPES else xp.zeros_like(g),)


@register("CastLike", record=result)
def cast_like(step: Step, g: Array) -> Cotangents:
    """g itself; 0 if what came out are whole numbers or truth values. ONNX CastLike-25."""
    xp = g.__array_namespace__()
    return (g if xp.isdtype(step.result.dtype, "real floating") else xp.zeros_like(g),)
