"""Reductions."""

from __future__ import annotations

import math

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import Cotangents, Step, constant_inputs, register


def _spread(step: Step, g: Array) -> tuple[Array, int]:
    """``g`` over every reduced position, and how many positions there are for each value."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    axes = {int(a) % len(shape) for a in step.ints("axes")} if "axes" in step.node.attrs else set()
    if not axes:
        if step.node.attrs.get("noop_with_empty_axes"):
            return g, 1
        axes = set(range(len(shape)))
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    count = math.prod(shape[axis] for axis in axes)
    return xp.broadcast_to(xp.reshape(g, kept), shape), count


@register("ReduceMean", restriction=constant_inputs(axes=1))
def reduce_mean(step: Step, g: Array) -> Cotangents:
    """An equal share to every position. ONNX ReduceMean-18."""
    full, count = _spread(step, g)
    return (full / count,)


@register("ReduceSum", restriction=constant_inputs(axes=1))
def reduce_sum(step: Step, g: Array) -> Cotangents:
    """The same to every position. ONNX ReduceSum-13."""
    return (_spread(step, g)[0],)
