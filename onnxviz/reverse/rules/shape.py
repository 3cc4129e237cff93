"""Operators that move, join or take apart."""

from __future__ import annotations

import numpy as np

from onnxviz.model.pulls import pad_begins, permutation, slices
from onnxviz.reverse.kernels import Array, dilate
from onnxviz.reverse.rules.registry import Cotangents, Step, constant_inputs, register


@register("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(step: Step, g: Array) -> Cotangents:
    """Back to the input's shape. ONNX Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21."""
    xp = g.__array_namespace__()
    return (xp.reshape(g, step.shape(0)),)


@register("Transpose")
def transpose(step: Step, g: Array) -> Cotangents:
    """The inverse permutation. ONNX Transpose-21."""
    xp = g.__array_namespace__()
    perm = permutation(step.node, g.ndim)
    return (xp.permute_dims(g, tuple(perm.index(axis) for axis in range(g.ndim))),)


@register("Concat", slots=None)
def concat(step: Step, g: Array) -> Cotangents:
    """To each input its own part: the geometry says where that lies. ONNX Concat-13."""
    return tuple(g if i in step.wanted else None for i in range(len(step.node.inputs)))


@register("Split", outputs=None)
def split(step: Step, g: Array) -> Cotangents:
    """Each output's part at its place: the geometry says where that lies. ONNX Split-18."""
    return (g,)


@register("Slice", restriction=constant_inputs(starts=1, ends=2, axes=3, steps=4))
def slice_(step: Step, g: Array) -> Cotangents:
    """Back to where it was cut out, zeros between steps. ONNX Slice-13."""
    return (dilate(g, [n for _, n in slices(step.node, step.full_shape(0))]),)


@register("Pad", restriction=constant_inputs(pads=1, axes=3))
def pad(step: Step, g: Array) -> Cotangents:
    """What was padded on is cut off; in the other modes it goes back to where it was copied from. ONNX Pad-21."""
    mode = step.attr("mode")
    if mode == "constant":
        return (g,)
    xp = g.__array_namespace__()
    shape = step.shape(0)
    for axis, (n, begin) in enumerate(zip(shape, pad_begins(step.node, g.ndim), strict=True)):
        out = g.shape[axis]
        if out == n and begin == 0:
            continue
        source = _copied_from(n, begin, out, str(mode))
        matrix = (source[:, None] == np.arange(n)).astype(g.dtype)
        g = xp.moveaxis(xp.tensordot(g, xp.asarray(matrix), axes=([axis], [0])), -1, axis)
    return (g,)


def _copied_from(n: int, begin: int, out: int, mode: str) -> Array:
    """For each of ``out`` padded positions the position, of ``n``, that it is a copy of."""
    place = np.arange(out) - begin
    if mode == "edge":
        return np.clip(place, 0, n - 1)
    if mode == "wrap":
        return place % n
    period = max(2 * (n - 1), 1)
    return n - 1 - np.abs(place % period - (n - 1)) if n > 1 else np.zeros_like(place)
