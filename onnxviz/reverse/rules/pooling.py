"""Pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from onnxviz.model.graph import Node
from onnxviz.model.pulls import padding_begin
from onnxviz.reverse.kernels import Array, spread, unpool
from onnxviz.reverse.rules.registry import Cotangents, Step, first_input, register, rule


@register("MaxPool", switches=True, stays_inside=True)
def max_pool(step: Step, g: Array) -> Cotangents:
    """Back to the recorded switch; overlapping windows sum (the adjoint). ONNX MaxPool-12."""
    return (
        unpool(g, step.switches, step.ints("kernel_shape"), step.ints("strides"), step.ints("dilations")),
    )


@rule("max_pool_mean", switches=True, stays_inside=True)
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
    """An equal share to every position. ONNX GlobalAveragePool-22."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    return (xp.broadcast_to(g / math.prod(shape[2:]), shape),)


@register("GlobalMaxPool", record=first_input)
def global_max_pool(step: Step, g: Array) -> Cotangents:
    """All of it to the first maximum. ONNX GlobalMaxPool-22."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    x = xp.reshape(step.value(0), (*shape[:2], -1))
    chosen = xp.arange(x.shape[2]) == xp.argmax(x, axis=2, keepdims=True)
    return (xp.reshape(xp.where(chosen, xp.reshape(g, (*shape[:2], 1)), 0), shape),)


def _both(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    return (node.inputs[0], node.output)


def _through_power(step: Step, x: Array, shares: Array) -> Array:
    """x's part of the derivative of (Σ|x|^p)^(1/p): ``shares``·|x|^(p−1)·sign(x)."""
    xp = x.__array_namespace__()
    answer: Array = shares * xp.abs(x) ** (int(step.number("p")) - 1) * xp.sign(x)
    return answer


def _power_shares(step: Step, g: Array) -> Array:
    """The result's part of it: g·y^(1−p), and 0 where all of x is 0."""
    xp = g.__array_namespace__()
    y = step.result
    shares: Array = xp.where(y > 0, g * xp.where(y > 0, y, 1) ** (1 - int(step.number("p"))), 0)
    return shares


@register("LpPool", record=_both)
def lp_pool(step: Step, g: Array) -> Cotangents:
    """g·y^(1−p)·|x|^(p−1)·sign(x), summed over the windows. ONNX LpPool-22."""
    window = (step.ints("kernel_shape"), step.ints("strides"), step.ints("dilations"))
    return (_through_power(step, step.value(0), spread(_power_shares(step, g), *window)),)


@register("GlobalLpPool", record=_both)
def global_lp_pool(step: Step, g: Array) -> Cotangents:
    """g·y^(1−p)·|x|^(p−1)·sign(x). ONNX GlobalLpPool-22."""
    return (_through_power(step, step.value(0), _power_shares(step, g)),)


@register("MaxUnpool", record=lambda node, wanted: (node.inputs[1],))
def max_unpool(step: Step, g: Array) -> Cotangents:
    """From where each value was put; of several that were put on one place the last counts. ONNX MaxUnpool-22."""
    size = math.prod(g.shape[1:])
    answers = []
    for row, values in zip(np.broadcast_to(step.value(1), step.shape(0)), g, strict=True):
        # Indices are flat over the whole batch; each image has its own part.
        index = row.ravel() % size
        last = np.full(size, -1)
        last[index] = np.arange(len(index))
        answers.append(values.ravel()[index] * (last[index] == np.arange(len(index))))
    return (np.stack(answers).reshape(step.shape(0)),)


@register("MaxRoiPool", record=lambda node, wanted: node.inputs)
def max_roi_pool(step: Step, g: Array) -> Cotangents:
    """To the first maximum of each bin of each region. ONNX MaxRoiPool-22."""
    x, rois = step.value(0), step.value(1)
    height, width = x.shape[2:]
    scale, channels = step.number("spatial_scale"), np.arange(x.shape[1])
    answer = np.zeros(x.shape, g.dtype)
    for part, (image, left, top, right, bottom) in zip(g, rois.tolist(), strict=True):
        rows = _bins(top * scale, bottom * scale, part.shape[1], height)
        columns = _bins(left * scale, right * scale, part.shape[2], width)
        for (i, (top_, end)), (j, (left_, side)) in itertools.product(enumerate(rows), enumerate(columns)):
            if end <= top_ or side <= left_:
                continue
            cell = x[int(image), :, top_:end, left_:side]
            best = cell.reshape(len(channels), -1).argmax(1)
            y, z = np.unravel_index(best, cell.shape[1:])
            answer[int(image), channels, top_ + y, left_ + z] += part[:, i, j]
    return (answer,)


def _bins(first: float, last: float, count: int, size: int) -> list[tuple[int, int]]:
    """Begin and end of each bin of a region, in whole positions as onnxruntime has them."""
    start = math.floor(first + 0.5)
    extent = max(math.floor(last + 0.5) - start + 1, 1) / count
    return [
        (
            min(max(math.floor(i * extent) + start, 0), size),
            min(max(math.ceil((i + 1) * extent) + start, 0), size),
        )
        for i in range(count)
    ]
