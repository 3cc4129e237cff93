"""Mathematical functions of one operand."""

from __future__ import annotations

import math

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.elementwise import finite, function_rule, inverse
from onnxviz.reverse.rules.registry import Cotangents, Step, first_input, register, result

function_rule("Abs", 13, "sign x", lambda xp, x, a: xp.sign(x))
function_rule("Reciprocal", 13, "(−y²)", lambda xp, y, a: -finite(y) * finite(y), of=result)
function_rule("Sqrt", 13, "1/(2y)", lambda xp, y, a: inverse(2 * y), of=result)
function_rule("Exp", 13, "y", lambda xp, y, a: finite(y), of=result)
function_rule("Log", 13, "1/x", lambda xp, x, a: inverse(x))
function_rule("Erf", 13, "2/√π·exp(−x²)", lambda xp, x, a: 2 / math.sqrt(math.pi) * xp.exp(-x * x))
function_rule("Sin", 22, "cos x", lambda xp, x, a: xp.cos(x))
function_rule("Cos", 22, "(−sin x)", lambda xp, x, a: -xp.sin(x))
function_rule("Tan", 22, "(1 + y²)", lambda xp, y, a: 1 + y * y, of=result)
# Products of sums, and not 1 − x²: they lose no digits near ±1.
function_rule("Asin", 22, "1/√(1 − x²)", lambda xp, x, a: inverse(xp.sqrt((1 - x) * (1 + x))))
function_rule("Acos", 22, "(−1/√(1 − x²))", lambda xp, x, a: -inverse(xp.sqrt((1 - x) * (1 + x))))
function_rule("Atan", 22, "1/(1 + x²)", lambda xp, x, a: 1 / (1 + x * x))
function_rule("Sinh", 22, "cosh x", lambda xp, x, a: xp.cosh(x))
function_rule("Cosh", 22, "sinh x", lambda xp, x, a: xp.sinh(x))
function_rule("Asinh", 22, "1/√(x² + 1)", lambda xp, x, a: 1 / xp.sqrt(x * x + 1))
function_rule("Acosh", 22, "1/√(x² − 1)", lambda xp, x, a: inverse(xp.sqrt(xp.maximum((x - 1) * (x + 1), 0))))
function_rule("Atanh", 22, "1/(1 − x²)", lambda xp, x, a: inverse((1 - x) * (1 + x)))


@register("Neg")
def neg(step: Step, g: Array) -> Cotangents:
    """−g. ONNX Neg-13."""
    return (-g,)


@register("Det", record=first_input)
def det(step: Step, g: Array) -> Cotangents:
    """g times the cofactors, also of a singular matrix. ONNX Det-22."""
    xp = g.__array_namespace__()
    # Of A = U·diag(s)·V they are det U·det V·U·diag(∏ of the other s)·V.
    u, s, v = xp.linalg.svd(step.value(0))
    ones = xp.eye(s.shape[-1], dtype=s.dtype)
    others = xp.prod(xp.where(ones == 1, ones, xp.expand_dims(s, axis=-2)), axis=-1)
    sign = xp.linalg.det(u) * xp.linalg.det(v)
    cofactors = xp.matmul(u * xp.expand_dims(others, axis=-2), v)
    return (xp.expand_dims(g * sign, axis=(-2, -1)) * cofactors,)
