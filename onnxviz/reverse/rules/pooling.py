"""Pooling."""

from __future__ import annotations

import numpy as np

from onnxviz.model.pulls import padding_begin
from onnxviz.reverse.kernels import Array, spread, unpool
from onnxviz.reverse.rules.registry import Cotangents, Step, register, rule


@register("MaxPool", switches=True)
def max_pool(step: Step, g: Array) -> Cotangents:
    """Back to the recorded switch; overlapping windows sum (the adjoint). ONNX MaxPool-12."""
    return (
        unpool(g, step.switches, step.ints("kernel_shape"), step.ints("strides"), step.ints("dilations")),
    )


@rule("max_pool_mean", switches=True)
def max_pool_mean(step: Step, g: Array) -> Cotangents:
    """Back to the switch; where several windows chose the same place, their mean."""
    kernel, strides, dilations = (step.ints(n) for n in ("kernel_shape", "strides", "dilations"))
    everywhere = step.read_switches(True)
    source = step.full_shape(0)[2:]
    full = unpool(np.ones(everywhere.shape, g.dtype), everywhere, kernel, strides, dilations)
    begins = padding_begin(step.node, source)
    inside = tuple(slice(b, b + n) for b, n in zip(begins, source, strict=True))
    chosen = np.zeros((*full.shape[:2], *source), g.dtype)
    part = full[:, :, *inside]
    chosen[:, :, *(slice(n) for n in part.shape[2:])] = part
    times = step.over_input(chosen)
    xp = g.__array_namespace__()
    return (unpool(g, step.switches, kernel, strides, dilations) / xp.maximum(times, xp.ones_like(times)),)


@register("AveragePool")
def average_pool(step: Step, g: Array) -> Cotangents:
    """An equal share to every cell that was averaged. ONNX AveragePool-19."""
    kernel, strides = step.ints("kernel_shape"), step.ints("strides")
    dilations = step.ints("dilations")
    source, outputs = step.full_shape(0)[2:], step.full_shapes[step.node.output][2:]
    begins = padding_begin(step.node, source)
    count = np.ones((1, 1), g.dtype)
    for axis, (n, begin) in enumerate(zip(source, begins, strict=True)):
        low, high = 0, n
        if step.attr("count_include_pad"):
            end = step.ints("pads")[len(source) + axis] if step.attr("auto_pad") == "NOTSET" else kernel[axis]
            low, high = -begin, n + end
        first = np.arange(outputs[axis]) * strides[axis] - begin
        cells = first[:, None] + np.arange(kernel[axis]) * dilations[axis]
        inside = ((cells >= low) & (cells < high)).sum(1)
        count = count[..., None] * inside.astype(g.dtype)
    shares = 1 / np.maximum(count, 1)
    return (spread(g * step.over_output(shares), kernel, strides, dilations),)


@register("GlobalAveragePool")
def global_average_pool(step: Step, g: Array) -> Cotangents:
    """An equal share to every position. ONNX GlobalAveragePool-1."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    positions = 1
    for n in shape[2:]:
        positions *= n
    return (xp.broadcast_to(g / positions, shape),)
