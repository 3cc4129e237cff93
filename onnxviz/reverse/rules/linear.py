"""Matrix products."""

from __future__ import annotations

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import Cotangents, Step, other_inputs, register, sum_to


@register("Gemm", slots=(0, 1, 2), record=lambda node, wanted: other_inputs(node, wanted - {2}))
def gemm(step: Step, g: Array) -> Cotangents:
    """Transposed products for A and B, β·g for C. ONNX Gemm-13."""
    xp = g.__array_namespace__()
    alpha, beta = step.number("alpha"), step.number("beta")
    trans_a, trans_b = bool(step.attr("transA")), bool(step.attr("transB"))
    ga = gb = gc = None
    if 0 in step.wanted:
        b = step.value(1)
        ga = alpha * xp.matmul(g, b if trans_b else xp.matrix_transpose(b))
        ga = xp.matrix_transpose(ga) if trans_a else ga
    if 1 in step.wanted:
        a = step.value(0)
        gb = alpha * xp.matmul(a if trans_a else xp.matrix_transpose(a), g)
        gb = xp.matrix_transpose(gb) if trans_b else gb
    if 2 in step.wanted:
        gc = beta * sum_to(g, step.shape(2))
    return (ga, gb, gc)


@register("MatMul", slots=(0, 1), record=other_inputs)
def matmul(step: Step, g: Array) -> Cotangents:
    """g·Bᵀ and Aᵀ·g, batch axes broadcast as in NumPy. ONNX MatMul-13."""
    xp = g.__array_namespace__()
    shapes = [step.shape(i) for i in (0, 1)]
    if len(shapes[1]) == 1:
        g = xp.expand_dims(g, axis=-1)
    if len(shapes[0]) == 1:
        g = xp.expand_dims(g, axis=-2)
    ga = gb = None
    if 0 in step.wanted:
        b = step.value(1)
        b = xp.expand_dims(b, axis=-1) if b.ndim == 1 else b
        ga = xp.matmul(g, xp.matrix_transpose(b))
        ga = sum_to(ga, (1, *shapes[0]) if len(shapes[0]) == 1 else shapes[0])
        ga = xp.reshape(ga, shapes[0])
    if 1 in step.wanted:
        a = step.value(0)
        a = xp.expand_dims(a, axis=0) if a.ndim == 1 else a
        gb = xp.matmul(xp.matrix_transpose(a), g)
        gb = sum_to(gb, (*shapes[1], 1) if len(shapes[1]) == 1 else shapes[1])
        gb = xp.reshape(gb, shapes[1])
    return (ga, gb)
