"""Operators that pick elements by index, or put them there.

What they have in common: the number of the element of the data, counted through the whole array, that every picked
or written element belongs to (`_element_places`, `_slice_places`). Picking is pulled back by adding up at those
places; writing, by picking there.
"""

from __future__ import annotations

import math

import numpy as np

from onnxviz.model.graph import Shape
from onnxviz.reverse.kernels import Array, put, scatter
from onnxviz.reverse.rules.registry import Cotangents, Step, all_inputs, parameters, register


def _from_the_front(index: Array, size: int) -> Array:
    xp = index.__array_namespace__()
    counted: Array = xp.where(index < 0, index + size, index)
    return counted


def _along(values: int | Array, axis: int, rank: int) -> Array:
    """Values, or the first whole numbers, along one axis of an array of ``rank``."""
    values = np.arange(values) if isinstance(values, int) else values
    return values.reshape((-1,) + (1,) * (rank - axis - 1))


def _pitches(shape: Shape) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _element_places(shape: Shape, index: Array, axis: int) -> Array:
    """Of GatherElements and the like: ``index`` counts along ``axis``, the other coordinates are its own."""
    pitches = _pitches(shape)
    places = _from_the_front(index, shape[axis]) * pitches[axis]
    for other, size in enumerate(index.shape):
        if other != axis:
            places = places + _along(size, other, index.ndim) * pitches[other]
    return places


def _slice_places(shape: Shape, index: Array, batch: int) -> Array:
    """Of GatherND and the like: the last axis of ``index`` holds coordinates after the first ``batch`` axes."""
    pitches = _pitches(shape)
    depth = index.shape[-1]
    rest = shape[batch + depth :]
    places = np.zeros(index.shape[:-1], np.int64)
    for k in range(depth):
        places = places + _from_the_front(index[..., k], shape[batch + k]) * pitches[batch + k]
    for axis in range(batch):
        places = places + _along(shape[axis], axis, index.ndim - 1) * pitches[axis]
    return places.reshape(places.shape + (1,) * len(rest)) + np.arange(math.prod(rest)).reshape(rest)


def _picked(step: Step, g: Array, places: Array) -> Cotangents:
    xp = g.__array_namespace__()
    shape = step.shape(0)
    places = xp.reshape(xp.broadcast_to(places, g.shape), (-1,))
    total = scatter(xp.zeros(math.prod(shape), dtype=g.dtype), places, xp.reshape(g, (-1,)), "add")
    return (xp.reshape(total, shape),)


@register("Gather", record=parameters)
def gather(step: Step, g: Array) -> Cotangents:
    """Each slice is added to the one it was taken from. ONNX Gather-13."""
    xp = g.__array_namespace__()
    shape, index = step.shape(0), step.value(1)
    axis = int(step.number("axis")) % len(shape)
    flat = xp.reshape(g, (*g.shape[:axis], index.size, *g.shape[axis + index.ndim :]))
    return (put(flat, _from_the_front(xp.reshape(index, (-1,)), shape[axis]), axis, shape[axis]),)


@register("GatherElements", record=parameters)
def gather_elements(step: Step, g: Array) -> Cotangents:
    """Each element is added to the one it was taken from. ONNX GatherElements-13."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    index = xp.broadcast_to(step.value(1), g.shape)
    return _picked(step, g, _element_places(shape, index, int(step.number("axis")) % len(shape)))


@register("GatherND", record=parameters)
def gather_nd(step: Step, g: Array) -> Cotangents:
    """Each slice is added to the one it was taken from. ONNX GatherND-13."""
    batch = step.node.attrs.get("batch_dims", 0)
    assert isinstance(batch, int)
    return _picked(step, g, _slice_places(step.shape(0), step.value(1), batch))


@register("TopK", record=lambda node, wanted: (node.inputs[0], node.output))
def top_k(step: Step, g: Array) -> Cotangents:
    """Each value goes back to where it was found. ONNX TopK-11."""
    xp = g.__array_namespace__()
    x, y = step.value(0), step.result
    axis = int(step.number("axis")) % x.ndim
    sign = -1 if step.node.attrs.get("largest", 1) else 1
    # In order of size the found are the first of all, whether or not they came sorted.
    order = xp.argsort(sign * x, axis=axis, stable=True)
    order = order[(slice(None),) * axis + (slice(g.shape[axis]),)]
    ranks = xp.argsort(xp.argsort(sign * y, axis=axis, stable=True), axis=axis, stable=True)
    return _picked(step, g, _element_places(step.shape(0), xp.take_along_axis(order, ranks, axis=axis), axis))


@register("Compress", record=parameters)
def compress(step: Step, g: Array) -> Cotangents:
    """What was kept goes back to its place. ONNX Compress-11."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    (kept,) = xp.nonzero(step.value(1))
    if "axis" in step.node.attrs:
        axis = int(step.number("axis")) % len(shape)
        return (put(g, kept, axis, shape[axis]),)
    return (xp.reshape(put(g, kept, 0, math.prod(shape)), shape),)


@register("ReverseSequence", record=parameters)
def reverse_sequence(step: Step, g: Array) -> Cotangents:
    """Reversed once more. ONNX ReverseSequence-10."""
    xp = g.__array_namespace__()
    time, batch = int(step.number("time_axis")), int(step.number("batch_axis"))
    lengths = _along(step.value(1), batch, g.ndim)
    at = _along(g.shape[time], time, g.ndim)
    return (xp.take_along_axis(g, xp.where(at < lengths, lengths - 1 - at, at), axis=time),)


@register("OneHot", slots=(2,), record=all_inputs)
def one_hot(step: Step, g: Array) -> Cotangents:
    """What is off adds up for the first value, what is on for the second. ONNX OneHot-11."""
    xp = g.__array_namespace__()
    axis = int(step.number("axis")) % g.ndim
    depth = g.shape[axis]
    index = xp.expand_dims(step.value(0), axis=axis)
    valid = (index >= -depth) & (index < depth)
    on = valid & (_from_the_front(index, depth) == _along(depth, axis, g.ndim))
    return (None, None, xp.stack([xp.sum(g * ~on), xp.sum(g * on)]))


def _written(step: Step, g: Array, places: Array, *, updates: int = 2, reduction: str = "none") -> Cotangents:
    """Cotangents of the data, input 0, and of the input ``updates`` that was written at ``places``."""
    xp = g.__array_namespace__()
    flat, shape = xp.reshape(g, (-1,)), step.shape(updates)
    places = xp.reshape(xp.broadcast_to(places, shape), (-1,))
    picked = xp.take(flat, places)
    zeros, order = xp.zeros(flat.shape, dtype=xp.int64), xp.arange(places.size)
    if reduction == "add":
        data, written = flat, picked
    elif reduction == "none":
        last = xp.take(scatter(zeros, places, order, "none"), places) == order
        data, written = scatter(flat, places, xp.zeros_like(picked), "none"), picked * last
    else:
        # Windows of constants and of recorded values have one row or as many as there are units.
        old = xp.reshape(xp.broadcast_to(step.value(0), g.shape), (-1,))
        new = xp.reshape(xp.broadcast_to(step.value(updates), shape), (-1,))
        if reduction == "mul":
            blank, product = zeros + (old == 0), xp.where(old == 0, 1, old)
            blank = scatter(blank, places, xp.astype(new == 0, xp.int64), "add")
            product = scatter(product, places, xp.where(new == 0, 1, new), "mul")
            data = flat * _without(old, product, blank)
            written = picked * _without(new, xp.take(product, places), xp.take(blank, places))
        else:
            best = scatter(old, places, new, reduction)
            wins = (new == xp.take(best, places)) & (new != xp.take(old, places))
            rank = xp.where(wins, order, places.size)
            first = xp.take(scatter(zeros + places.size, places, rank, "min"), places) == order
            data, written = flat * (old == best), picked * (wins & first)
    answers: list[Array | None] = [None] * len(step.node.inputs)
    answers[0], answers[updates] = xp.reshape(data, g.shape), xp.reshape(written, shape)
    return tuple(answers)


def _without(factor: Array, product: Array, zeros: Array) -> Array:
    """What multiplies ``factor`` in a product that leaves out its ``zeros`` factors of 0."""
    xp = factor.__array_namespace__()
    others: Array = product / xp.where(factor == 0, 1, factor) * (zeros == (factor == 0))
    return others


@register("Scatter", "ScatterElements", slots=(0, 2), record=all_inputs)
def scatter_elements(step: Step, g: Array) -> Cotangents:
    """To the data where nothing was written, to the updates from where they are. ONNX ScatterElements-18."""
    xp = g.__array_namespace__()
    index = xp.broadcast_to(step.value(1), step.shape(2))
    places = _element_places(g.shape, index, int(step.number("axis")) % g.ndim)
    return _written(step, g, places, reduction=str(step.node.attrs.get("reduction", "none")))


@register("ScatterND", slots=(0, 2), record=all_inputs)
def scatter_nd(step: Step, g: Array) -> Cotangents:
    """To the data where nothing was written, to the updates from where they are. ONNX ScatterND-18."""
    places = _slice_places(g.shape, step.value(1), 0)
    return _written(step, g, places, reduction=str(step.node.attrs.get("reduction", "none")))


@register("TensorScatter", slots=(0, 1), record=lambda node, wanted: [n for n in node.inputs[2:] if n])
def tensor_scatter(step: Step, g: Array) -> Cotangents:
    """To the cache where nothing was written, to the update from where it is. ONNX TensorScatter-24."""
    xp = g.__array_namespace__()
    axis, shape = int(step.number("axis")) % g.ndim, step.shape(1)
    start = _along(step.value(2), 0, g.ndim) if any(step.node.inputs[2:]) else 0
    index = (start + _along(shape[axis], axis, g.ndim)) % g.shape[axis]
    return _written(step, g, _element_places(g.shape, xp.broadcast_to(index, shape), axis), updates=1)
